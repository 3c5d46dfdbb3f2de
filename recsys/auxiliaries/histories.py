"""Training histories that may be each other's positives, and what is computed of all their windows at once.

In the released code of SRA-CL (arXiv 2503.04162) these are every prefix of every history, the one that ends in the
validation item included. Here rows are made of training events only, and may be one per user as well.

Legend: N items (rows 1..N), E training events, Q histories, a row each, D width of the item vectors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.ids.ranges import blocks, spread
from recsys.statistics.cooccurrence import require_memory
from recsys.targets.last_item import LastItem

KINDS, WINDOWS = ("user", "prefix"), ("mean", "recent")
NUMBERS = 1 << 23  # in the running sums held at a time
FACTOR = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64


@dataclass(frozen=True)
class Histories:
    """Training histories: row r is the up to ``max_length`` events of ``users[r]`` before its event ``events[r]``.

    Rows are sorted by user and by event. Make one with :meth:`of`.
    """

    training: TrainingEvents
    kind: str
    max_length: int
    users: np.ndarray  # (Q,) int64, ascending
    events: np.ndarray  # (Q,) int64, strictly ascending indices into all events; the row's target

    @classmethod
    def of(cls, training: TrainingEvents, kind: str = "user", max_length: int = 20) -> Histories:
        """Rows of every user with two training events or more.

        Args:
            kind: "user" takes one row per user, which ends before the newest training event; "prefix" one row per
                training event that has a history.
            max_length: longest window.

        Raises:
            ValueError: an unknown kind, or a window without events.
        """
        if kind not in KINDS:
            raise ValueError(f"pool must be one of {', '.join(KINDS)}, found {kind!r}")
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, found {max_length}")
        longer = np.flatnonzero(training.lengths > 1)
        if kind == "user":
            return cls(training, kind, max_length, longer, training.stop[longer] - 1)
        owner, events = spread(training.start[longer] + 1, training.stop[longer])
        return cls(training, kind, max_length, longer[owner], events)

    def __len__(self) -> int:
        return len(self.users)

    @property
    def keys(self) -> np.ndarray:
        """(Q,) int64, ascending: what a row is found by, its user or (kind "prefix") its event."""
        return self.users if self.kind == "user" else self.events

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many events the windows of some rows (B,) hold."""
        before = self.events[rows] - self.training.start[self.users[rows]]
        return np.minimum(before, self.max_length)

    def batch(self, rows: np.ndarray, needs: frozenset[str] = frozenset()) -> Batch:
        """The histories of some rows (B,), as the encoder reads them when their targets are predicted."""
        users, events = self.users[rows], self.events[rows]
        return LastItem().train(self.training.gather(users, self.max_length + 1, stop=events + 1, needs=needs))

    def vectors(self, items: np.ndarray, known: np.ndarray, window: str = "mean") -> np.ndarray:
        """(Q, D) float32 of unit length: the pooled vectors of each row's items, zero where none of them is known.

        Sums over windows are differences of running sums, so a row costs D whatever its length.

        Args:
            items: (N+1, D) vectors by item row.
            known: (N+1,) bool; the others count as nothing.
            window: "mean" of the vectors, or "recent", weighted 1, 2, 3 ... from the oldest to the newest.

        Raises:
            ValueError: an unknown ``window``.
            MemoryError: the vectors do not fit, said before they are made.
        """
        if window not in WINDOWS:
            raise ValueError(f"window must be one of {', '.join(WINDOWS)}, found {window!r}")
        what = f"Vectors of {len(self):,} histories"
        require_memory(
            8.0 * len(self) * items.shape[1], what, 'take pool="user", one row per user, or narrower vectors'
        )
        items = unit(np.where(known[:, None], items, 0))
        pooled = np.zeros((len(self), items.shape[1]), np.float32)
        for users in blocks(self.training.lengths, max(NUMBERS // items.shape[1], 1)):
            rows = slice(*np.searchsorted(self.users, [users.start, users.stop]))
            if rows.stop > rows.start:
                pooled[rows] = self._sums(users, rows, items, known, window)
        return unit(pooled)

    def twins(self) -> np.ndarray:
        """(Q,) int64: rows have the same number if their windows hold the same items in the same order.

        Windows are distinguished by a 64-bit polynomial of random numbers drawn per item, again from running sums.
        """
        if len(self) == 0:
            return np.zeros(0, np.int64)
        mixed = np.random.default_rng(0).integers(0, 2**64, self.training.num_items + 1, dtype=np.uint64)
        powers = np.cumprod(np.full(len(self._items) + 1, FACTOR, np.uint64))  # modulo 2^64, as all that follows
        inverse = np.cumprod(np.full(len(self._items), pow(FACTOR, -1, 2**64), np.uint64))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed[self._items] * inverse)])
        begin, end = self._bounds(slice(None))
        _, number = np.unique((sums[end] - sums[begin]) * powers[end], return_inverse=True)
        return number.astype(np.int64)

    def facts(self) -> dict[str, Any]:
        """What decides the rows, in JSON."""
        lengths = self.training.lengths
        return {"pool": self.kind, "max_length": self.max_length, "training": fingerprint(self._items, lengths)}

    @cached_property
    def _items(self) -> np.ndarray:
        """(E,) int32 training events, user by user."""
        return self.training.events(slice(None))[1]

    def _bounds(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Where the windows of ``rows`` begin and end among the E training events."""
        lengths, users = self.training.lengths, self.users[rows]
        first = (np.cumsum(lengths) - lengths)[users]
        end = first + self.events[rows] - self.training.start[users]
        return np.maximum(end - self.max_length, first), end

    def _sums(self, users: slice, rows: slice, items: np.ndarray, known: np.ndarray, window: str) -> np.ndarray:
        """(rows, D) float64 weighted sums of the item vectors in each window."""
        begin, end = self._bounds(rows)
        base = int(self.training.lengths[: users.start].sum())
        ids = self._items[base : base + int(self.training.lengths[users].sum())]
        begin, end = begin - base, end - base
        values = items[ids].astype(np.float64)
        total = _between(values, begin, end)
        if window == "recent":
            rank = np.arange(1, len(ids) + 1)[:, None]
            total = _between(values * rank, begin, end) - begin[:, None] * total
        held = _between(known[ids].astype(np.int64)[:, None], begin, end)
        return np.where(held > 0, total, 0.0)


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of some arrays, with their shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, D) float32 of unit length; what is (almost) zero becomes zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    near: np.ndarray = np.where(lengths > 1e-6, vectors / np.maximum(lengths, 1e-6), 0).astype(np.float32)
    return near


def _between(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Sums of ``values`` (n, D) over rows [begin, end): (Q, D)."""
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    return sums[end] - sums[begin]
