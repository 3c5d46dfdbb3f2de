"""Training histories cut into rows, and rows into batches: seeded, resumable, the same for any number of workers.

Legend: U users, R rows, B rows of a batch, L longest input. A row is a run of up to L + 1 events of one user; L inputs
and one more, because the last event is predicted and never read. No row is stored: where row r lies follows from the
number of rows before its user, so that a row per event costs no more memory than a row per user. Where one target per
user is drawn anew in each epoch, from the whole history, the row is the window that ends with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.errors import DataError
from recsys.randomness import derive_seed, numpy_generator

SCHEMES = ("windows", "prefixes", "drawn")
Draw = Callable[[np.ndarray, np.random.Generator], np.ndarray]
CHUNK_BATCHES = 64  # how many batches are sorted by length together


@dataclass(frozen=True)
class Rows:
    """Which events each training row holds: row j of a user ends ``j * stride`` events before its newest one.

    With ``newest`` (R,) there is a row per user, which ends with that event of the user's training history.
    """

    start: np.ndarray  # (U,) int64 first training event of each user
    stop: np.ndarray  # (U,) int64 end of the training events
    first: np.ndarray  # (U+1,) int64 number of rows of the users before
    width: int  # most events of a row, L + 1
    stride: int
    newest: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.first[-1])

    def ranges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User, first event and end of each row: (B,) int64 each."""
        rows = np.asarray(rows, dtype=np.int64)
        user = np.searchsorted(self.first, rows, side="right") - 1
        if self.newest is None:
            stop = self.stop[user] - (rows - self.first[user]) * self.stride
        else:
            stop = self.start[user] + self.newest[rows] + 1
        return user, np.maximum(stop - self.width, self.start[user]), stop

    def lengths(self) -> np.ndarray:
        """(R,) int32: inputs of every row, one less than its events."""
        lengths = np.empty(len(self), dtype=np.int32)
        for begin in range(0, len(self), 1 << 20):
            end = min(begin + (1 << 20), len(self))
            _, start, stop = self.ranges(np.arange(begin, end))
            lengths[begin:end] = stop - start - 1
        return lengths


def last_windows(training: TrainingEvents, max_length: int) -> Rows:
    """One row per user: the last L + 1 training events."""
    return _rows(training, (training.lengths > 1).astype(np.int64), max_length, 1)


def sliding_windows(training: TrainingEvents, max_length: int, stride: int | None = None) -> Rows:
    """As many rows as a history needs, counted from its newest event; by default each target occurs in exactly one."""
    stride = max_length if stride is None else stride
    if not 1 <= stride <= max_length:
        raise ValueError(f"stride must lie in 1..max_length={max_length}, or targets would be left out; found {stride}")
    targets = training.lengths - 1
    more = -(-np.maximum(targets - max_length, 0) // stride)
    return _rows(training, np.where(targets > 0, 1 + more, 0), max_length, stride)


def prefixes(training: TrainingEvents, max_length: int) -> Rows:
    """One row per target: the L events before it, and itself."""
    return _rows(training, np.maximum(training.lengths - 1, 0), max_length, 1)


def uniform_positions(lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(n,) int64 positions 1..length - 1 drawn uniformly, of histories of ``lengths`` (n,), two events or more."""
    return random.integers(1, lengths)


class TrainBatches:
    """The training batches of each epoch, before targets are set.

    The batch of a step is a function of seed, epoch and step alone; rank r of ``world_size`` takes every
    ``world_size``-th of its rows, starting with the r-th, so sizes are those of the batch over all ranks together. At
    the end of an epoch a rank may get a batch without rows. It is a :class:`recsys.train.source.BatchSource`, so that
    a stage may train on the rows of another split with the same items: ``Stage(data=TrainBatches(other.train, ...))``.

    Args:
        training: what may be learned from.
        scheme: "windows" (many targets per row), "prefixes" (one target per row) or "drawn" (one target per user and
            epoch, from anywhere in the history; ``target_index`` (B,) says which event of the row it is); the
            ``scheme`` of the targets. With windows="sliding" targets are drawn from each window instead.
        max_length: L, the most events the encoder reads.
        batch_size: rows per batch, over all ranks.
        tokens: instead, the most inputs per batch, over all ranks.
        order: "random", or "length" to put rows of similar length together (faster, but measure what it costs).
        windows: "last" window of a long history, or "sliding" windows over all of it.
        stride: distance of sliding windows (default ``max_length``).
        workers: processes that gather ahead; the batches are the same for any number.
        needs: optional batch fields to carry ("times", "weights", "query_time"); weights are carried anyway.
        pin: page-locked memory, for copies to a GPU.
        draw: gives the positions of the targets in histories of some lengths (n,), two or more, for the scheme "drawn"
            (default: :func:`uniform_positions`).

    Raises:
        ValueError: contradictory arguments, or a token budget smaller than one row.
        DataError: no user has two training events, or a needed field is missing.
    """

    def __init__(
        self,
        training: TrainingEvents,
        scheme: str = "windows",
        max_length: int = 50,
        batch_size: int | None = None,
        tokens: int | None = None,
        order: str = "random",
        windows: str = "last",
        stride: int | None = None,
        seed: int = 0,
        workers: int = 0,
        needs: frozenset[str] = frozenset(),
        pin: bool = False,
        draw: Draw | None = None,
    ) -> None:
        _check("scheme", scheme, SCHEMES)
        _check("order", order, ("random", "length"))
        _check("windows", windows, ("last", "sliding"))
        if (batch_size is None) == (tokens is None):
            raise ValueError("give either batch_size (rows per batch) or tokens (inputs per batch), not both or none")
        for name, value in (("max_length", max_length), ("batch_size", batch_size), ("tokens", tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        training.check_needs(needs)
        self.training, self.scheme, self.max_length = training, scheme, max_length
        self.batch_size, self.tokens, self.order, self.windows = batch_size, tokens, order, windows
        self.seed, self.stride = seed, stride
        self.workers, self.needs, self.pin = workers, frozenset(needs), pin
        self.draw: Draw | None = None
        if scheme == "drawn" and windows == "last":
            self.draw = uniform_positions if draw is None else draw
        self.rows = _cut(training, scheme, windows, max_length, stride)
        self._row_lengths = self.rows.lengths() if tokens is not None or order == "length" else None
        self._planned: tuple[int, Rows, np.ndarray, np.ndarray] | None = None
        if len(self.rows) == 0:
            raise DataError(
                f"none of {training.num_users:,} users has two training events, so nothing can be predicted from "
                "anything: filter less, or hold out less"
            )
        longest = 0 if tokens is None or self._row_lengths is None else int(self._row_lengths.max())
        if tokens is not None and tokens < longest:
            raise ValueError(
                f"a budget of {tokens} tokens is smaller than one history of {longest}: raise tokens, or lower "
                f"max_length={max_length}"
            )

    prepared = False  # the model sets targets in its batches

    @property
    def num_rows(self) -> int:
        """Training rows of an epoch, over all ranks."""
        return len(self.rows)

    @property
    def num_targets(self) -> int:
        """Targets of an epoch, over all ranks (with overlapping windows a target counts as often as it occurs)."""
        if self.scheme in ("prefixes", "drawn"):
            return self.num_rows
        if self._row_lengths is not None:
            return int(self._row_lengths.sum(dtype=np.int64))
        return int(self.rows.lengths().sum(dtype=np.int64))

    @property
    def truncated(self) -> int:
        """Training events that no row holds, because only the last window of a long history is used."""
        if self.scheme in ("prefixes", "drawn") or self.windows == "sliding":
            return 0
        return int(np.maximum(self.training.lengths - self.rows.width, 0).sum())

    @property
    def short_users(self) -> int:
        """Users with a single training event, which gives nothing to predict."""
        return int((self.training.lengths == 1).sum())

    def num_batches(self, epoch: int = 0) -> int:
        """Steps of an epoch, the same on every rank."""
        if self.batch_size is not None:
            return -(-self.num_rows // self.batch_size)
        return len(self._plan(epoch)[2])

    def identity(self) -> dict[str, Any]:
        """What decides the batches: the training events, by a hash, and how they are cut and ordered."""
        digest = hashlib.sha256()
        for begin in range(0, self.training.num_users, 1 << 16):
            owner, items, times = self.training.events(slice(begin, begin + (1 << 16)))
            for values in (owner, items) if times is None else (owner, items, times):
                digest.update(np.ascontiguousarray(values).tobytes())
        names = ("scheme", "max_length", "batch_size", "tokens", "order", "windows", "stride", "seed")
        return {"events": digest.hexdigest(), **{name: getattr(self, name) for name in names}}

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """A rank's batches of an epoch, from the one after ``start`` consumed batches on.

        Raises:
            ValueError: there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, found {rank}")
        cut, rows, bounds = self._plan(epoch)
        shares = _Shares(rows, bounds[start:], rank, world_size)
        gather = _Gather(self.training, cut, self.needs)
        if self.workers == 0:
            for share in shares:
                yield gather[share].pin_memory() if self.pin else gather[share]
            return
        yield from DataLoader(
            gather,
            sampler=shares,
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.pin,
            # Without a generator of its own the loader would draw from torch's global one.
            generator=torch.Generator().manual_seed(derive_seed(self.seed, "workers", epoch)),
        )

    def _plan(self, epoch: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        """What rows hold, (R,) their numbers in the order of the epoch, and [begin, end) of each batch in it (S, 2)."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, *self._order(epoch))
        return self._planned[1:]

    def _order(self, epoch: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        random = numpy_generator(self.seed, "batches", epoch)
        cut, lengths = self.rows, self._row_lengths
        if self.draw is not None:
            histories = self.training.lengths[self.training.lengths > 1]
            drawn = self.draw(histories, numpy_generator(self.seed, "places", epoch))
            cut = replace(cut, newest=drawn.astype(np.int32 if histories.max() < 2**31 else np.int64))
            lengths = None if lengths is None else cut.lengths()
        rows = np.arange(self.num_rows, dtype=np.int32 if self.num_rows < 2**31 else np.int64)
        random.shuffle(rows)
        if self.order == "length":
            self._sort_chunks(rows, lengths)
        if self.tokens is None:
            assert self.batch_size is not None
            begins = np.arange(0, self.num_rows, self.batch_size)
            bounds = np.stack([begins, np.minimum(begins + self.batch_size, self.num_rows)], axis=1)
        else:
            assert lengths is not None
            bounds = _budgeted(lengths[rows], self.tokens)
        return cut, rows, random.permutation(bounds) if self.order == "length" else bounds

    def _sort_chunks(self, rows: np.ndarray, lengths: np.ndarray | None) -> None:
        assert lengths is not None
        size = self.batch_size
        if size is None:
            assert self.tokens is not None
            size = max(int(self.tokens / max(float(lengths.mean()), 1.0)), 1)
        for begin in range(0, len(rows), size * CHUNK_BATCHES):
            chunk = rows[begin : begin + size * CHUNK_BATCHES]
            chunk[:] = chunk[np.argsort(lengths[chunk], kind="stable")]


class _Shares:
    """Row numbers of this rank in each batch, one array per step."""

    def __init__(self, rows: np.ndarray, bounds: np.ndarray, rank: int, world_size: int) -> None:
        self.rows, self.bounds, self.rank, self.world_size = rows, bounds, rank, world_size

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[np.ndarray]:
        for begin, end in self.bounds:
            yield self.rows[begin + self.rank : end : self.world_size].astype(np.int64)


class _Gather(Dataset[Batch]):
    """Row numbers to a batch; all that a worker process does."""

    def __init__(self, training: TrainingEvents, rows: Rows, needs: frozenset[str]) -> None:
        self.training, self.rows, self.needs = training, rows, needs

    def __getitem__(self, rows: np.ndarray) -> Batch:
        users, start, stop = self.rows.ranges(rows)
        order = np.argsort(stop - start, kind="stable")  # neighbours of like length: less padding in attention
        batch = self.training.gather(
            users[order], start=start[order], stop=stop[order], rows=rows[order], needs=self.needs
        )
        if self.rows.newest is None:
            return batch
        return batch.replace(target_index=batch.lengths - 1)


def _as_is(batch: Any) -> Any:
    return batch


def _rows(training: TrainingEvents, counts: np.ndarray, max_length: int, stride: int) -> Rows:
    first = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=first[1:])
    return Rows(training.start, training.stop, first, max_length + 1, stride)


def _cut(training: TrainingEvents, scheme: str, windows: str, max_length: int, stride: int | None) -> Rows:
    if stride is not None and (windows != "sliding" or scheme == "prefixes"):
        raise ValueError(f"stride={stride} belongs to windows='sliding' of the schemes 'windows' and 'drawn'")
    if scheme == "prefixes":
        return prefixes(training, max_length)
    return last_windows(training, max_length) if windows == "last" else sliding_windows(training, max_length, stride)


def _budgeted(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """(S, 2) bounds of the longest runs of rows whose lengths sum to at most ``tokens``."""
    ends = np.cumsum(lengths, dtype=np.int64)
    cuts = [0]
    while cuts[-1] < len(ends):
        used = ends[cuts[-1] - 1] if cuts[-1] else 0
        cuts.append(int(np.searchsorted(ends, used + tokens, side="right")))
    return np.stack([cuts[:-1], cuts[1:]], axis=1)


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
