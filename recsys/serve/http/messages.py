"""What goes over the wire: requests, which are checked strictly, and answers, for the OpenAPI document.

An id is a text or a whole number; which of the two the catalogue has does not matter to who asks. Nothing is
converted besides: ``true`` is no id and ``"10"`` no number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

LONGEST_HISTORY, MOST_HISTORIES, LONGEST_LIST = 10_000, 256, 100
LARGEST_K, MOST_IDS, MOST_EVENTS, MOST_ANSWERS = 1_000, 100_000, 1_000, 1_000

Whole = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Annotated[StrictStr, Field(max_length=1_000)] | Whole
Number = Whole | Annotated[StrictFloat, Field(allow_inf_nan=False)]
Time = Number | Annotated[StrictStr, Field(max_length=100)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]
Value = Annotated[StrictStr, Field(max_length=1_000)] | Number
Scalar = Value | None
Features = Annotated[list[Scalar], Field(fail_fast=True, max_length=LONGEST_HISTORY)]
Values = Annotated[list[Value], Field(fail_fast=True, min_length=1, max_length=LONGEST_LIST)]
Words = Annotated[list[Name], Field(fail_fast=True, min_length=1, max_length=LONGEST_LIST)]
Denied = Annotated[list[Id], Field(fail_fast=True, max_length=MOST_IDS)]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)]
Text = Annotated[StrictStr, Field(max_length=10_000)]
K = Annotated[StrictInt, Field(ge=1, le=LARGEST_K)]
Rows = Annotated[list[Id], Field(fail_fast=True, max_length=LONGEST_HISTORY)]


class Message(BaseModel):
    """Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class HistoryIn(Message):
    """One user's items, oldest first, with what else the model reads."""

    items: Rows
    times: Annotated[list[Time], Field(fail_fast=True, max_length=LONGEST_HISTORY)] | None = Field(
        None, description="one per item: numbers since 1970 (unit by magnitude), or ISO text"
    )
    query_time: Time | None = Field(None, description="when the answer is wanted, of models that read it")
    features: dict[Name, Scalar | Features] | None = Field(
        None, description="features that the model reads: a list with one value per item, or one value of the user"
    )


Histories = Annotated[list[HistoryIn | Rows], Field(fail_fast=True, min_length=1, max_length=MOST_HISTORIES)]


class Condition(Message):
    """Conditions on one column of the item table, all of which hold."""

    is_: Values | None = Field(None, alias="is")
    is_not: Values | None = None
    has: Words | None = None
    has_not: Words | None = None
    min: Number | None = None
    max: Number | None = None


class RecommendIn(Message):
    """Histories to recommend for, and what may be recommended."""

    histories: Histories = Field(examples=[[["50", "172"]]])
    k: K = 10
    exclude: Literal["history", "none"] = Field("history", description="items that are left out")
    allow: Ids | None = Field(None, description="only these")
    deny: Denied | None = Field(None, description="none of these")
    filters: Annotated[dict[Name, Condition], Field(max_length=20)] | None = Field(
        None, examples=[{"release_year": {"min": 1990}, "class": {"has": ["comedy"]}}]
    )
    search: Literal["auto", "exact"] = Field("auto", description="exact: an approximate index is not asked")
    bundle: Name | None = None


class SimilarIn(Message):
    """Items to find similar ones of."""

    items: Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=LONGEST_LIST)]
    k: K = 10
    metric: Literal["cosine", "dot"] = "cosine"
    bundle: Name | None = None


class WhyIn(Message):
    """A history, and the recommended items that are to be explained."""

    history: HistoryIn | Rows
    items: Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=LONGEST_LIST)]
    bundle: Name | None = None


class AnswerIn(Message):
    """What somebody said about an item; ``unknown``: never seen it."""

    id: Id
    answer: Literal["like", "dislike", "unknown"]


class ElicitIn(Message):
    """The answers of somebody without a history, in the order they were given."""

    answers: Annotated[list[AnswerIn], Field(fail_fast=True, max_length=MOST_ANSWERS)] = Field(
        [], examples=[[{"id": "50", "answer": "like"}, {"id": "172", "answer": "unknown"}]]
    )
    k: Annotated[StrictInt, Field(ge=1, le=LONGEST_LIST)] = Field(1, description="questions")
    count: Annotated[StrictInt, Field(ge=0, le=LARGEST_K)] = Field(10, description="items recommended by now; 0: none")
    bundle: Name | None = None


class NewItem(Message):
    """An item that came after training, with what the model makes of it."""

    id: Id
    vector: Annotated[list[Number], Field(fail_fast=True, min_length=1, max_length=10_000)] | None = None
    features: dict[Name, Scalar | Features] | None = None
    text: dict[Name, Text] | None = Field(None, description="columns of the item table: its title, ...")


class ItemsIn(Message):
    """Items to take in."""

    items: Annotated[list[NewItem], Field(fail_fast=True, min_length=1, max_length=MOST_EVENTS)]
    bundle: Name | None = None


class IdsIn(Message):
    """Items by their raw ids."""

    ids: Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=MOST_IDS)]
    bundle: Name | None = None


class Event(Message):
    """What a person did with an item; ``id`` makes it one event however often it is sent."""

    id: Annotated[StrictStr, Field(min_length=1, max_length=200)]
    user: Id
    item: Id
    time: Time | None = Field(None, description="when; the server's time if it is not given")
    type: Name = "click"
    value: Number | None = None


class FeedbackIn(Message):
    """Events for the log."""

    events: Annotated[list[Event], Field(fail_fast=True, min_length=1, max_length=MOST_EVENTS)]


class SearchIn(Message):
    """The query of a search."""

    model_config = ConfigDict(extra="forbid", strict=False)

    q: Annotated[str, Field(max_length=200)] = Field("", description='words of a title, or an id; "": what is popular')
    count: Annotated[int, Field(ge=1, le=100)] = 10
    bundle: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class BundleOut(BaseModel):
    """Which bundle answered."""

    name: str
    hash: str


class Item(BaseModel):
    """An item, and what it scores; no score where somebody chose the list."""

    id: str | int
    score: float | None = None
    title: str | None = None


class ListOut(BaseModel):
    """The answer to one history."""

    items: list[Item]
    source: str = Field(description="model, or the name of the fallback that answered")
    unknown: list[str | int] = Field(description="items of the history that the model does not know")


class RecommendOut(BaseModel):
    """Lists in the order of the histories."""

    bundle: BundleOut
    results: list[ListOut]


class SimilarList(BaseModel):
    """The nearest items of one."""

    id: str | int
    title: str | None
    items: list[Item]


class SimilarOut(BaseModel):
    """Lists in the order of the items asked about."""

    bundle: BundleOut
    results: list[SimilarList]


class InfluenceOut(BaseModel):
    """What one item of the history does for a recommended one."""

    id: str | int
    title: str | None
    change: float = Field(description="what the recommended item would have less without this one")
    rank_without: int


class WhyItem(BaseModel):
    """One recommended item."""

    id: str | int
    title: str | None
    rank: int = Field(description="among items outside the history, 1 the best; 0: beyond a list that is made")
    influence: list[InfluenceOut]


class WhyOut(BaseModel):
    """Influence of each item of the history, oldest first."""

    bundle: BundleOut
    scale: str = Field(description="what change is a difference of: log-probability, share or reciprocal rank")
    items: list[WhyItem]


class Question(BaseModel):
    """An item to ask about."""

    id: str | int
    title: str | None
    known: float | None = Field(description="share of training users who know it, where that was counted")


class ElicitOut(BaseModel):
    """What to ask next, best first, and what is recommended by now."""

    bundle: BundleOut
    asker: str
    reader: str
    questions: list[Question]
    enough: bool = Field(description="whether nothing more is worth asking")
    items: list[Item]


class Found(BaseModel):
    """An item that was searched for, with its entries in the item table."""

    id: str | int
    title: str | None
    text: dict[str, str]
    withdrawn: bool


class SearchOut(BaseModel):
    """Items, the best match first."""

    bundle: BundleOut
    items: list[Found]


class BundleFacts(BaseModel):
    """What a bundle is."""

    name: str
    hash: str
    model: str
    items: int
    withdrawn: int
    index: dict[str, Any] | None
    similar: bool = Field(description="whether it has vectors, by which items are compared")
    columns: list[str]
    fallbacks: list[str]
    created: str | None
    reads: list[str] = Field(description="what a history must have besides items: times, query_time, features")


class BundlesOut(BaseModel):
    """All bundles; the first one answers where none is named."""

    bundles: list[BundleFacts]


class ReloadOut(BaseModel):
    """The bundle that is asked from now on, and the one before."""

    bundle: BundleOut
    before: BundleOut


class ChangedOut(BaseModel):
    """How many items the bundle has now, and how many of them are withdrawn."""

    bundle: BundleOut
    items: int
    withdrawn: int


class FeedbackOut(BaseModel):
    """How many events were written, and how many had been before."""

    written: int
    repeated: int


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = Field(None, description="of a body that is not as it should be: where, what")
