"""Protocols: everything a paper adds to this library is one of those on this page.

Legend: B histories, L longest history of a batch, T real tokens, D width, N items (rows 1..N, 0 is padding).
Parts are ``nn.Module``s or plain callables (what has weights to train is a module); nothing is registered and no base
class is required. A part keeps its constructor arguments as attributes of the same name (that is how it is saved, and
how parts within parts are found).

Hooks that any part may have, at any depth; :mod:`recsys.hooks` finds the parts and calls them:

====================  ===========================  ====================================  ===========================
hook                  who calls it                 when, and what it is for              example
====================  ===========================  ====================================  ===========================
bind(context)         ``Recommender.bind``         once before training and before       ``PopularityPropensity``
                                                   saved tensors are loaded; a part
                                                   that has it binds what it holds
reserve(rows)         ``Recommender``              of an item table, one in the encoder  ``TextItems``
                                                   too, when the parts are put together:
                                                   room for input-only rows
make_room(tensors)    ``Ranker.load_tensors``      before saved tensors are loaded:      ``FeatureItems``
                                                   parameters of sizes only those know
carry(before,         ``fit(init="keep")``         behind ``bind``, where a learned      ``TextItems``
change)                                            model goes on: see :class:`Change`
param_groups()        the optimizer                when a stage begins: parameters of a  see :class:`ParamGroup`
                                                   rate of their own
on_stage(name)        ``fit``                      when a stage begins, again when it    ``OneTarget``
                                                   is resumed
on_optimizer(         ``fit``                      when a stage has its optimizer, for    ``ASLoRA``
optimizer)                                         a part that makes parameters fewer
on_gradients()        ``fit``                      behind the backward pass of an        ``ALLoRA``
                                                   update and before clipping
after_update(done)    ``fit``                      behind the optimizer's step, before   ``AdaLoRA``
                                                   gradients are cleared; ``done``
                                                   updates of the stage, from 1
on_epoch(epoch)       ``fit``                      before each epoch, again with the     ``ReaRec``
                                                   same number when a run is resumed in
                                                   it: the part must then be what it
                                                   was (keep counts in buffers)
refresh(encoder,      ``Recommender.on_epoch``     of an item table whose vectors the    ``RecformerItems``
epoch)                                             encoder makes, before each epoch
refresh(items,        losses that draw views       of what makes views by item vectors,  ``Substitute``
epoch)                                             before they are drawn
sources()             ``fit``                      a hash of what it reads elsewhere: a  ``TextItems``
                                                   run is not resumed with another one
check_split(split)    ``recsys evaluate``,         to refuse a split that does not fit   ``RecformerItems``
                      ``export``                   what was learned
sections(model,       the run's report             content by heading: text, a mapping,  ``InversePropensity``
split)                                             rows, ``{"bars": {label: number}}``
request_columns()     ``recommend``                columns of events and of users by     ``FeatureInputs``
                                                   which a request's features are read
alone(batch)          ``Generator``                of an encoder: gives a position to    ``PreferenceVectors``
                                                   histories without items that it can
                                                   answer all the same
tallies()             ``fit``                      behind each epoch: what a part counts  ``Tuning``
                                                   besides losses, numbers by name, for
                                                   the record of the epoch
state_dict()          ``fit``, ``export``          what is saved of a module: its        ``register_buffer(...,
                                                   parameters and persistent buffers     persistent=False)``: not
====================  ===========================  ====================================  ===========================

What a part may say of itself, read by :func:`recsys.hooks.member` with its default from ``recsys.hooks.DEFAULTS``:

============  ===========  ==========================================================================================
member        default      meaning
============  ===========  ==========================================================================================
needs         frozenset()  optional fields of :class:`Batch` that it reads
may_read      frozenset()  of an encoder: optional fields that it reads of requests and of sources that have them, and
                           does without elsewhere
gives         frozenset()  of an encoder: the dataclasses among ``Encoded.given``
reads         frozenset()  of a loss: the dataclasses that it looks up there
newest_only   False        of an encoder: only the newest token gets a state; of targets: only it has a target
longest       None         of an encoder: tokens it reads (None: ``max_length``); of what makes histories: their items
                           (None: no more than it gets)
as_ranked     False        its histories are read as they are ranked, with what the targets append
appends       0            of targets: tokens that a query has behind its history
rows_behind   0            input-only rows behind the items that it writes or reads (a mask, row N + 1; an end token,
                           row N + 2): the recommender has the item table make room for them
reads_behind  True         of an encoder: it can read such rows
keeps_events  True         of an augmentation: the event that is predicted stays the same
writes_mask   False        of an augmentation: it writes the mask's row
scheme        "windows"    of targets: the rows they get, see :class:`recsys.train.loader.TrainBatches`
draw          None         of targets of the scheme "drawn": ``draw(lengths, random)``, which event is to be predicted
whole         False        of a decoder: it reads the states of a history's earlier items as well
carried       ()           names of parameters that ``carry`` puts right itself, as their rows are no items or users
============  ===========  ==========================================================================================

An auxiliary of weight 0 is unused: it gets its shapes, as in a loaded model, and changes nothing for others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.randomness import torch_generator

if TYPE_CHECKING:
    from recsys.data.split import TrainingEvents
    from recsys.features.features import Features
    from recsys.ids.vocabulary import Vocabulary


@dataclass(frozen=True)
class Context:
    """What a part may know before training. Held-out rows cannot be reached from it.

    ``training`` is None when a saved model is loaded: shapes must follow from the other fields, contents come from
    the saved tensors.
    """

    num_items: int
    vocabulary: Vocabulary | None = None  # raw item id <-> row
    training: TrainingEvents | None = None
    item_text: Mapping[str, Any] | None = None  # column -> array aligned with item rows, entry 0 for padding
    seed: int = 0
    users: Vocabulary | None = None  # raw user id <-> row
    item_features: Features | None = None  # typed columns aligned with item rows, row 0 for padding
    user_features: Features | None = None  # typed columns aligned with user rows


@dataclass(frozen=True)
class Change:
    """How the data differ that a learned model goes on with; given to ``carry(before, change)`` of a part.

    Parameters, and buffers that ``bind`` does not fill from the data, are carried over by raw id before that: old rows
    as they were, new rows at the mean of the old ones unless ``bind`` read them (texts). ``before`` holds what the
    part's own ``state_dict()`` held. ``carry`` does what that leaves (tables of item rows, marks of epochs).
    """

    same: bool  # the same events, cut and ids: everything is as it was
    items: np.ndarray  # (N+1,) int64: the former row of each item row, 0 for padding and for new items
    context: Context  # of the new data


class ParamGroup(TypedDict, total=False):
    """Some of a part's parameters, trained otherwise than the model's others: a plain dict.

    ``param_groups()`` gives groups by name, such as ``{"adapters": {"parameters": ["*.lora_a", "*.lora_b"],
    "learning_rate": 1e-4, "weight_decay": 0.0}}``. Parts that ask for the same of a group of one name share it. A stage
    may set the rate of a group by its name; warm-up and decay multiply all rates.
    """

    parameters: Sequence[str]  # names within the part, their beginnings up to a dot, or patterns; absent: all of them
    learning_rate: float  # absent: the one of the run or the stage
    factor: float  # or this many times that one
    weight_decay: float  # absent: the one of the run


def who_gives(kind: type) -> str:
    """What to do where a loss reads what its encoder does not give."""
    by = getattr(kind, "given_by", "")
    if not by:
        return "use an encoder that names it in gives"
    return f"use {by} as the encoder (what wraps one names in its own gives what it hands on), or leave the loss out"


Given = TypeVar("Given")


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of a batch: one state per real token, one per user, and what else it ``gives``.

    States of tokens that are not in ``batch.wanted_tokens`` may be zero, if the encoder leaves them out to save their
    cost: encode ``batch.ask_all()`` to read all of them.

    ``user`` is what is scored, exported and indexed; for an empty history it is zero. ``given`` are small dataclasses,
    each of a class that the encoder names in ``gives`` (reasoning states, block ends, branches), which losses that name
    it in ``reads`` look up by :meth:`read`. Such a class says in ``given_by`` who gives it.
    """

    batch: Batch
    tokens: Tensor  # (T, D) states of the real tokens, in the order of ``batch.flat``
    given: tuple[Any, ...] = ()  # at most one of each class
    users: Tensor | None = None  # (B, D) what is scored, where it is not the newest token's state

    @cached_property
    def states(self) -> Tensor:
        """(B, L, D): token states on the padded view, zeros at padding."""
        return self.batch.pad(self.tokens)

    @cached_property
    def user(self) -> Tensor:
        """(B, D): ``users``, or else the state of the newest token, zero for an empty history."""
        if self.users is not None:
            return self.users
        if self.tokens.shape[0] == 0:
            return self.tokens.new_zeros(len(self.batch), self.tokens.shape[1])
        state = self.tokens[self.batch.last.clamp(min=0)]
        return state * (self.batch.lengths > 0).unsqueeze(1)

    def get(self, kind: type[Given]) -> Given | None:
        """What the encoder gives of the class ``kind``, or None."""
        return next((one for one in self.given if isinstance(one, kind)), None)

    def read(self, kind: type[Given]) -> Given:
        """What the encoder gives of the class ``kind``.

        Raises:
            ValueError: it gives none.
        """
        found = self.get(kind)
        if found is None:
            others = ", ".join(type(one).__name__ for one in self.given) or "nothing besides states"
            raise ValueError(f"a loss reads {kind.__name__}, and the encoder gives {others}: {who_gives(kind)}")
        return found

    def at_targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """States (T', D), target rows (T',) and what multiplies their losses (T',), None for 1, in flat order.

        That is the product of ``batch.weights`` and ``batch.importance``, as far as there are any.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("the batch has no targets: apply a Targets part (NextItem, LastItem) before the objective")
        targets = batch.flatten(batch.targets)
        weights = None if batch.weights is None else batch.flatten(batch.weights)
        if batch.importance is not None:
            importance = batch.flatten(batch.importance)
            weights = importance if weights is None else weights * importance
        chosen = targets > 0
        if bool(chosen.all()):
            return self.tokens, targets, weights
        return self.tokens[chosen], targets[chosen], None if weights is None else weights[chosen]


@dataclass(frozen=True)
class Step:
    """One training step, as losses see it. ``encode`` runs the same encoder on another view of the batch."""

    batch: Batch
    seed: int = 0
    epoch: int = 0
    index: int = 0  # optimizer step within the run
    rank: int = 0
    stage: str = "train"  # name of the running stage
    losses: Sequence[str] | None = None  # the terms that this stage asks for, None for all
    total_weight: float | Tensor = 1.0  # sum of target weights of this update, over ranks and accumulation
    share: float = 1.0  # part of this update that this batch is, for losses that are means of their own
    items: ItemTable | None = None
    encode: Callable[[Batch], Encoded] | None = None
    query: Callable[[Batch], Batch] | None = None  # makes of histories what is ranked (a mask behind them); None: as is
    twin: int = 0  # auxiliaries of the same class before the one that is called
    scope: str = ""  # the part that calls another one

    @cached_property
    def encoded(self) -> Encoded:
        """The batch as the encoder sees it: computed at first use, and once for all losses of the step."""
        if self.encode is None:
            raise ValueError("this step knows no encoder: losses are called by Recommender.loss, which sets it")
        return self.encode(self.batch)

    def asks_for(self, term: str) -> bool:
        """Whether this stage minimises the loss ``term`` ("loss" is the objective's)."""
        return self.losses is None or any(name == term or name.startswith(f"{term}.") for name in self.losses)

    def generator(self, name: str) -> torch.Generator:
        """The random stream of the part called ``name`` in this step, on the batch's device; twins have their own."""
        name = f"{self.scope}{name} {self.twin}" if self.twin else f"{self.scope}{name}"
        return torch_generator(self.seed, name, self.epoch, self.index, self.rank, device=self.batch.ids.device)

    def for_twin(self, number: int) -> Step:
        """The same step, for the auxiliary that comes behind ``number`` others of its class."""
        return self if number == self.twin else self._but(twin=number)

    def within(self, name: str) -> Step:
        """The same step, for a part that the part called ``name`` calls: its random streams are its own."""
        return self._but(scope=f"{self.scope}{name}.")

    def asked(self, histories: Batch) -> Batch:
        """Histories as they are ranked: what the recommender's targets make of them."""
        return histories if self.query is None else self.query(histories)

    def _but(self, **changed: Any) -> Step:
        other = copy.copy(self)  # not replace: what was encoded already comes along
        for name, value in changed.items():
            object.__setattr__(other, name, value)
        return other


@runtime_checkable
class Targets(Protocol):
    """What is predicted where; may have ``newest_only``, ``scheme``, ``draw`` and ``appends`` (see the top)."""

    sees: str  # what an encoder may see without leaking the target: "past" or "all"

    def train(self, batch: Batch, generator: torch.Generator) -> Batch: ...
    def query(self, batch: Batch) -> Batch: ...


@runtime_checkable
class Weighting(Protocol):
    """How much each target counts, beside the weights that the data may have (propensities, recency).

    ``normalised``: the loss is divided by the sum of the weights (self-normalised), as for
    weights of the data; otherwise by what it would be divided by without this part.
    """

    normalised: bool  # multiplied into ``batch.weights``, else into ``batch.importance``

    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) float32 multipliers for a prepared batch; what stands where there is no target does not matter."""


@runtime_checkable
class Encoder(Protocol):
    """Histories to states. ``sees`` is "past" if a state depends on no later token, else "all".

    May have ``gives``, ``newest_only`` and ``longest`` (see the top).
    """

    sees: str
    dim: int
    max_length: int

    def __call__(self, batch: Batch, items: ItemTable) -> Encoded: ...


@runtime_checkable
class Stepwise(Protocol):
    """An encoder that reads further tokens behind a history without reading the history again (ReaRec asks for it).

    Each of the Q tokens of ``batch.wanted_tokens`` gets a continuation of its own: it sees what that token sees and its
    own earlier latents, never another's. What is in ``memory`` is up to the encoder.
    """

    def begin(self, batch: Batch, items: ItemTable) -> tuple[Encoded, Any]:
        """What calling the encoder gives, and the memory at ``batch.wanted_tokens``."""

    def extend(self, latents: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """States (Q, D) of one more token each, from input vectors (Q, D), and the memory with that token in it.

        The latents pass the encoder's input norm and dropout; they get no position and no scale.
        """


@runtime_checkable
class ItemTable(Protocol):
    """Item vectors, and what needs those of all items; the whole matrix is never needed, so it can be sharded.

    A table that has its vectors in this process inherits :class:`recsys.items.local.LocalItems` and writes ``embed``
    and ``output``; one that has a part of them answers the same verbs with a reduction over its processes. A table
    whose vectors an encoder makes may have ``refresh(encoder, epoch)``, called before each epoch.
    """

    dim: int
    num_items: int
    extra: int  # input-only rows N + 1 .. N + extra (a mask, an end token)

    def reserve(self, rows: int) -> None:
        """Have room for ``rows`` input-only rows from the next ``bind`` on; a ValueError where there can be none."""

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...)."""

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...), those that all verbs below mean."""

    def scores(self, users: Tensor, metric: str = "dot", out: Tensor | None = None) -> Tensor:
        """(B, N) scores of ``users`` (B, D) with all items, as inner products ("dot") or cosines ("cosine")."""

    def topk(self, users: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and item rows, (B, K) each, of the K = min(k, N) largest inner products; equal ones by row."""

    def log_sum_exp(self, hidden: Tensor) -> Tensor:
        """(T,) log of the sum over all items of exp(score), of states ``hidden`` (T, D)."""

    def cross_entropy(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        more: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Scalar sum over targets (T,) of weight times (log_sum_exp - score of the target), made in one pass.

        ``more`` (M, D) are output vectors of classes that are no items, rows N + 1 .. N + M.
        """

    def divergence(self, hidden: Tensor, pairs: Tensor, stop_gradient: bool = True) -> Tensor:
        """Scalar sum over targets of pairs[j, i] KL(p_j || p_i) between the softmaxes of their states (T, S, D)."""


@runtime_checkable
class Objective(Protocol):
    """The loss of the targets of a batch: the scalar sum of weight times loss, the weights of ``Encoded.at_targets``.

    The recommender divides it by the weight of all targets of the update (``Step.total_weight``), for every objective
    alike; :func:`recsys.objectives.weighted.weighted_sum` makes it of a loss per target.
    """

    def __call__(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor: ...


@runtime_checkable
class Decoder(Protocol):
    """An objective that also generates: the codes of the next item, one at a time.

    Its items are a table with codes (:class:`recsys.items.codes.CodeItems`, which numbers codes as tokens). May have
    ``whole`` (see the top). Log-probabilities are those of all codes, whether an item has them or not, and are never
    normalised again over those that exist: their sum is the log-probability of an item, in any search.
    """

    ordered: bool  # level by level; else the codes of a set, in any order

    def __call__(self, encoded: Encoded, batch: Batch, items: Any, generator: torch.Generator) -> Tensor:
        """The loss of the targets, as of an :class:`Objective`."""

    def begin(self, encoded: Encoded, items: Any) -> Any:
        """The memory of B histories, of which nothing is generated yet."""

    def step(self, memory: Any, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Any]:
        """Log-probabilities (B, W, C) of what comes next for W beams of each history, and the memory with these beams.

        First ``tokens`` and ``parents`` are None, and W is 1. Then ``tokens`` (B, W) are the tokens just chosen, and
        ``parents`` (B, W) which of the beams before each continues. If ordered, C are the codes of the next level;
        else the tokens of all levels, token 1 first, and what is chosen already is up to who searches.
        """


@runtime_checkable
class Auxiliary(Protocol):
    """A further loss, added with its ``weight``; it owns its parameters.

    A scalar, or several by name, each of which a stage may ask for ("CL4SRec0", or "TripletContrast0.triplet").
    """

    weight: float

    def __call__(self, step: Step) -> Tensor | dict[str, Tensor]: ...


@runtime_checkable
class Augmentation(Protocol):
    """A changed copy of a batch; never in place."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch: ...
