"""What every recommender answers, learned or counted: ``scores``, ``recommend``; raw ids in, raw ids out.

Legend: B histories, N items (rows 1..N), K cut-off.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.data.cut import Cut
from recsys.data.prepared import padded_blocks
from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataWarning, printable
from recsys.protocols import Context
from recsys.ranking.products import refuse_nonfinite
from recsys.ranking.shown import EXCLUDE, Shown, checked_k
from recsys.ranking.ties import best
from recsys.recommenders.times import moments, warn_of_far_times
from recsys.storage.tensors import once_each, shared

if TYPE_CHECKING:
    import polars as pl

    from recsys.data.cut import Cut

SCORE_BUDGET = 256 * 2**20  # bytes of one block of scores and padded histories in recommend and scores
SHOWN = 10  # histories whose recommendations are printed
TOKEN_BYTES = 64  # of one place of the padded view, while a batch is made of it


@dataclass(frozen=True)
class History:
    """One user's raw item ids, oldest first, with what else a model may ask for.

    ``times`` (one per item) and ``query_time`` are numbers since 1970, dates or ISO text. The unit of numbers is
    ``time_unit`` ("s", "ms", "us", "ns"); if that is None it is told by magnitude, over all histories of a call.
    """

    items: Sequence[Any]
    times: Sequence[Any] | np.ndarray | None = None
    user: Any = None
    query_time: Any = None
    time_unit: str | None = None


@dataclass(frozen=True)
class TopK:
    """Recommendations for B histories, readable as a data frame too (:meth:`to_frame`, or ``polars.DataFrame(top)``).

    K is what was asked for, or the size of the catalogue. Rows are 0, scores -inf, where fewer items were left.
    """

    rows: np.ndarray  # (B, K) int64
    scores: np.ndarray  # (B, K) float32
    unknown: np.ndarray  # (B,) int64: history items the catalogue does not hold, skipped
    fallback: np.ndarray  # (B,) bool: nothing known in the history, ranked by popularity
    vocabulary: Vocabulary
    users: Sequence[Any] | None = None  # (B,) ``History.user`` where every history has one

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def items(self) -> list[list[Any]]:
        """Raw item ids, best first, one list per history."""
        found = self.rows != PAD
        raw = iter(self.vocabulary.raw(self.rows[found]).tolist())
        return [[next(raw) for _ in range(count)] for count in found.sum(1).tolist()]

    def to_frame(self) -> pl.DataFrame:
        """A Polars frame with a row per recommendation: ``history`` (its position, or ``user`` where all histories have
        one), ``rank`` from 1, ``item``, ``score``."""
        import polars as pl

        found = self.rows != PAD
        owner, rank = found.nonzero()
        kind = pl.Int64 if self.vocabulary.kind == "int" else pl.String
        return pl.DataFrame(
            [
                pl.Series("history", owner) if self.users is None else pl.Series("user", self.users).gather(owner),
                pl.Series("rank", rank + 1, dtype=pl.Int32),
                pl.Series("item", self.vocabulary.raw(self.rows[found]).tolist(), dtype=kind),
                pl.Series("score", self.scores[found], dtype=pl.Float32),
            ]
        )

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow interface, by which pandas, pyarrow, DuckDB and others read :meth:`to_frame`."""
        return self.to_frame().__arrow_c_stream__(requested_schema)

    def __str__(self) -> str:
        lines = []
        for at, items in enumerate(replace(self, rows=self.rows[:SHOWN]).items):
            shown = ", ".join(
                f"{printable(item)} {score:.4g}" for item, score in zip(items, self.scores[at], strict=False)
            )
            notes = ["by popularity"] if self.fallback[at] else []
            notes += [f"{self.unknown[at]:,} unknown in the history"] if self.unknown[at] else []
            told = f" ({'; '.join(notes)})" if notes else ""
            lines.append(f"{at}: {shown or 'nothing is left to recommend'}{told}")
        if len(self) > SHOWN:
            lines.append(f"... and {len(self) - SHOWN:,} more histories")
        return "\n".join(lines)


class Ranker(nn.Module):
    """Shared by all recommenders: raw histories to batches, exclusion, top-k, fallback, saved tensors.

    A subclass implements :meth:`score`. ``max_length`` is the longest history it reads (None: all of it), ``needs``
    the optional batch fields, ``saved`` whether class, arguments and tensors are all of it, so that it can be loaded.
    """

    popularity: Tensor
    max_length: int | None = None
    needs: frozenset[str] = frozenset()
    saved: bool = True
    learned: bool = False  # whether fit or load_tensors gave it what it knows, and bind alone did not
    cut: Cut | None = None  # which events it learned from, as far as that is known
    users: Vocabulary | None = None  # raw user ids of the training; not saved

    def __init__(self) -> None:
        super().__init__()
        self.num_items = 0
        self.vocabulary: Vocabulary | None = None
        self.register_buffer("popularity", torch.zeros(1))

    def bind(self, context: Context) -> None:
        """Learn the catalogue: sizes, vocabulary, training popularity (the fallback for empty histories)."""
        self.learned, self.cut = False, None
        self.num_items, self.users = context.num_items, context.users
        self.vocabulary = context.vocabulary
        counts = np.zeros(context.num_items + 1) if context.training is None else context.training.item_counts()
        self.popularity = torch.from_numpy(np.array(counts, dtype=np.float32))

    def score(self, batch: Batch) -> Tensor:
        """(B, N) scores of all items, column j for item row j + 1, in a tensor the caller may write to.

        Histories in ``batch`` are not empty.
        """
        raise NotImplementedError(f"{type(self).__name__} does not score all items; use recommend")

    def score_safely(self, batch: Batch) -> Tensor:
        """:meth:`score` in float32, with training popularity where a history is empty."""
        known = (batch.lengths > 0).nonzero().squeeze(1)
        if len(known) == len(batch):
            return self.score(batch).float()
        scores = self.popularity[1:].to(batch.ids.device).repeat(len(batch), 1)
        if len(known):
            scores[known] = self.score(batch.select(known)).float()
        return scores

    def scores(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, N) float32 scores of the whole catalogue for raw histories; column j is item row j + 1."""
        histories = self._ready(histories)
        with evaluating(self), torch.inference_mode():
            blocks = [self.score_safely(batch).cpu().numpy() for batch, _ in self._batches(histories)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.num_items), np.float32)

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        """The ``k`` best items for each raw history: a list of raw ids, or a :class:`History`.

        Best first, equal scores in the order of the catalogue, so that a short list begins the long one; items that a
        model gives -inf are never shown. Where fewer than ``k`` items are left, the list is shorter.

        Args:
            exclude: "history" leaves out what the history holds, "none" lets it be recommended again.
            allow, deny: raw ids for all histories, or one list of them per history: nothing else, or none of these, is
                recommended. Unknown ones are counted in a warning.

        Unknown ids are skipped and counted; a history without a known item is ranked by popularity (``fallback``).

        Raises:
            ValueError: ``k`` is below 1, ``exclude`` is neither, nothing is allowed, or scores are not finite.
            TypeError: a history is one id, not a list of them, or ``k`` is no whole number.
        """
        top, shown = self._rank(histories, k, exclude, allow, deny)
        warn_of(shown, top, 3)
        return top

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned, by name, ready for safetensors; what goes by several names is one tensor."""
        return once_each(self.state_dict(), lambda value: value.detach().cpu().contiguous())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` gave; buffers may have any shape, parameters must fit.

        Parameters that were one when they were saved are one afterwards.

        Raises:
            ValueError: names are missing or left over, or a parameter has another shape.
        """
        own = self.state_dict()
        missing, left = own.keys() - tensors.keys(), tensors.keys() - own.keys()
        if missing or left:
            raise ValueError(f"saved tensors do not fit this model: missing {sorted(missing)}, unknown {sorted(left)}")
        if tensors["popularity"].shape != own["popularity"].shape:
            raise ValueError(f"popularity is {tuple(tensors['popularity'].shape)} for {self.num_items:,} items")
        parameters = dict(self.named_parameters(remove_duplicate=False))
        copies = once_each({name: tensors[name] for name in own if name not in parameters}, Tensor.clone)
        for name, value in tensors.items():
            path, _, leaf = name.rpartition(".")
            if name not in parameters:
                setattr(self.get_submodule(path), leaf, copies[name].to(own[name].device))
            elif parameters[name].shape != value.shape:
                raise ValueError(
                    f"{name} is {tuple(value.shape)} in the file and {tuple(own[name].shape)} in the model"
                )
            else:
                with torch.no_grad():
                    parameters[name].copy_(value)
        for first, *others in shared(tensors):
            for name in others if first in parameters else ():
                path, _, leaf = name.rpartition(".")
                if parameters.get(name) is not parameters[first]:
                    setattr(self.get_submodule(path), leaf, parameters[first])
        self.learned = True

    def _check(self, k: Any, exclude: str) -> int:
        if self.vocabulary is None:
            raise ValueError(f"{type(self).__name__} does not know a catalogue yet: fit it first, or load a run")
        k = checked_k(k)
        if exclude not in EXCLUDE:
            raise ValueError(f'exclude must be "history" or "none", found {exclude!r}')
        return k

    def _rank(
        self, histories: Sequence[Any], k: int, exclude: str, allow: Any = None, deny: Any = None
    ) -> tuple[TopK, Shown]:
        """:meth:`recommend` without a word, and what might be shown."""
        k = self._check(k, exclude)
        histories = self._ready(histories, 4)
        shown = Shown.of(self._find, [one.items for one in histories], exclude, allow, deny)
        found: list[tuple[np.ndarray, ...]] = []
        first = 0
        with evaluating(self), torch.inference_mode():
            for batch, skipped in self._batches(histories):
                scores = self.score_safely(batch)
                refuse_nonfinite(scores, first)
                shown.part(first, first + len(batch)).hide(scores)
                values, columns = best(scores, k)
                rows = torch.where(values == -torch.inf, PAD, columns + 1).cpu().numpy()
                found.append((values.cpu().numpy(), rows, skipped, (batch.lengths == 0).cpu().numpy()))
                first += len(batch)
        return top_of(found, min(k, self.num_items), self.vocabulary, histories), shown

    def _find(self, ids: list[Any]) -> np.ndarray:
        """Columns of raw ids, -1 for unknown ones."""
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(ids)
        return np.where(rows > PAD, rows - 1, -1)

    def _ready(self, histories: Sequence[Any], stacklevel: int = 3) -> list[History]:
        """Each as a :class:`History`, with times in milliseconds if the model reads them."""
        self._check(1, "none")
        found = as_histories(histories)
        if not self.needs & {"times", "query_time"} or all(_is_ready(one) for one in found):
            return found
        found = in_milliseconds(found)
        cut = getattr(self, "cut", None)
        warn_of_far_times(
            [np.asarray(one.times) for one in found if one.times is not None], cut and cut.newest, stacklevel
        )
        return found

    def _batches(self, histories: Sequence[Any]) -> Iterator[tuple[Batch, np.ndarray]]:
        histories = self._ready(histories)
        assert self.vocabulary is not None
        lengths = np.asarray([len(one.items) for one in histories], np.int64)
        lengths = lengths if self.max_length is None else np.minimum(lengths, self.max_length)
        for rows in padded_blocks(lengths, SCORE_BUDGET, 4 * max(self.num_items, 1), TOKEN_BYTES):
            yield collate(histories[rows], self.vocabulary, self.max_length, self.needs, self.popularity.device)


def top_of(
    found: list[tuple[np.ndarray, ...]], width: int, vocabulary: Vocabulary | None, histories: Sequence[History]
) -> TopK:
    """Blocks of (scores, rows, unknown, fallback) as one :class:`TopK`."""
    assert vocabulary is not None
    if not found:
        found = [
            (np.zeros((0, width), np.float32), np.zeros((0, width), np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        ]
    scores, rows, unknown, fallback = (np.concatenate(column) for column in zip(*found, strict=True))
    users = [one.user for one in histories]
    named = bool(users) and all(user is not None for user in users)
    return TopK(rows, scores, unknown, fallback, vocabulary, users if named else None)


def warn_of(shown: Shown, top: TopK, stacklevel: int) -> None:
    """Say which ids of ``allow`` and ``deny`` are unknown, and how many histories are ranked by popularity."""
    notes = shown.notes("catalogue")
    if top.fallback.any():
        count = int(top.fallback.sum())
        notes.append(f"{count:,} of {len(top):,} histories hold no known item and are ranked by popularity")
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=stacklevel)


_CHANGING = threading.Lock()
_AT_WORK: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()  # users, modules in training


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; the modules that were in training mode are so again when the last thread has left.

    A model that is no module has no modes.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with _CHANGING:
        users, training = _AT_WORK.get(model, (0, []))
        if not users:
            training = [module for module in model.modules() if module.training]
            for module in training:
                module.training = False
        _AT_WORK[model] = users + 1, training
    try:
        yield
    finally:
        with _CHANGING:
            users, training = _AT_WORK[model]
            _AT_WORK[model] = users - 1, training if users > 1 else []
            if users == 1:
                for module in training:
                    module.training = True


def as_histories(histories: Sequence[Any]) -> list[History]:
    """Each as a :class:`History`.

    Raises:
        TypeError: one is an id or nothing, where a list of ids is expected.
    """
    if isinstance(histories, (str, bytes)) or not hasattr(histories, "__iter__"):
        raise TypeError(f"a history is a list of raw ids, and a list of them is expected; found {histories!r}")
    found = [one if isinstance(one, History) else History(one) for one in histories]
    for one in found:
        if isinstance(one.items, (str, bytes)) or not hasattr(one.items, "__len__"):
            raise TypeError(
                f"a history is a list of raw ids, oldest first, and {one.items!r} is none: pass a list of histories, "
                'such as [["50", "172"]] for one user'
            )
    return found


def in_milliseconds(histories: Sequence[History]) -> list[History]:
    """The same histories with times and query times as int64 milliseconds.

    Raises:
        ValueError: a time cannot be read, or numbers without a unit mix units.
    """
    at = [i for i, one in enumerate(histories) if one.times is not None]
    asked = [i for i, one in enumerate(histories) if one.query_time is not None]
    lists = [*(histories[i].times for i in at), *([histories[i].query_time] for i in asked)]
    read = moments(lists, [histories[i].time_unit for i in (*at, *asked)])
    found = [replace(one, time_unit="ms") for one in histories]
    for i, times in zip(at, read, strict=False):
        found[i] = replace(found[i], times=times)
    for i, times in zip(asked, read[len(at) :], strict=True):
        found[i] = replace(found[i], query_time=int(times[0]))
    return found


def collate(
    histories: Sequence[History],
    vocabulary: Vocabulary,
    max_length: int | None,
    needs: frozenset[str] = frozenset(),
    device: torch.device | str = "cpu",
) -> tuple[Batch, np.ndarray]:
    """A batch of raw histories (their last ``max_length`` known items) and the number of unknown items of each.

    Times are taken for milliseconds here; :func:`in_milliseconds` makes them so.

    Raises:
        ValueError: ``times`` are needed and a history does not have one per item.
    """
    counts = np.asarray([len(one.items) for one in histories], np.int64)
    rows = vocabulary.rows(list(chain.from_iterable(one.items for one in histories)))
    user = np.repeat(np.arange(len(histories)), counts)
    known = rows > 0
    lengths = np.bincount(user[known], minlength=len(histories))
    batch = Batch(
        rows=torch.arange(len(histories), device=device),
        users=torch.full((len(histories),), -1, device=device),
        ids=_padded(rows[known], lengths, max_length, device),
        lengths=torch.as_tensor(np.minimum(lengths, max_length or lengths.max(initial=0)), device=device),
    )
    if "times" in needs:
        times = _times(histories, counts)[known]
        batch = batch.replace(times=_padded(times, lengths, max_length, device))
    if "query_time" in needs:
        if any(one.query_time is None for one in histories):
            raise ValueError("this model reads query_time: pass History(items, times, query_time=...) for every user")
        batch = batch.replace(query_time=torch.tensor([one.query_time for one in histories], device=device))
    return batch, counts - lengths


def _times(histories: Sequence[History], counts: np.ndarray) -> np.ndarray:
    for one, count in zip(histories, counts, strict=True):
        if len(_own_times(one)) != count:
            raise ValueError(
                f"this model reads times: pass History(items, times) with one time (milliseconds) per item; "
                f"found {None if one.times is None else len(one.times)} times for {count} items"
            )
    times = np.asarray(list(chain.from_iterable(_own_times(one) for one in histories)))
    if times.dtype.kind not in "iuf" or not np.isfinite(times).all():
        wrong = next(one for one in times.tolist() if not (isinstance(one, (int, float)) and np.isfinite(one)))
        raise ValueError(f"times are whole numbers, milliseconds since 1970, and one is {wrong!r}")
    return times.astype(np.int64)


def _own_times(history: History) -> Sequence[Any] | np.ndarray:
    return () if history.times is None else history.times


def _is_ready(history: History) -> bool:
    return (
        history.time_unit == "ms"
        and (history.times is None or (isinstance(history.times, np.ndarray) and history.times.dtype == np.int64))
        and (history.query_time is None or type(history.query_time) is int)
    )


def _padded(values: np.ndarray, lengths: np.ndarray, max_length: int | None, device: torch.device | str) -> Tensor:
    """Ragged values to (B, L), the last ``max_length`` of each row."""
    kept = np.minimum(lengths, max_length or lengths.max(initial=0))
    ends = np.cumsum(lengths)
    width = max(int(kept.max(initial=0)), 1)
    column = np.arange(width)
    index = (ends - kept)[:, None] + column
    inside = column < kept[:, None]
    padded = np.zeros(index.shape, np.int64)
    padded[inside] = values[index[inside]]
    return torch.as_tensor(padded, device=device)
