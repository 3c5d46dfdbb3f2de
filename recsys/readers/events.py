"""Events in memory while they are cleaned: parallel columns, ids as codes.

Legend: E events, U and N distinct users and items. Codes are ranks among the sorted ids of everything read, so they
depend neither on the order of rows nor on what cleaning drops later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError

TIES = ("file", "hash")  # what decides between events of one user at the same time: Events.sorted
MISSING_TIME = np.iinfo(np.int64).min
PLAIN_INTEGER = r"^(0|-?[1-9]\d{0,17})$"  # what str(int(text)) gives back unchanged


@dataclass(frozen=True)
class Events:
    """All events, in the order of the files until :meth:`sorted` puts them by user and time."""

    user: np.ndarray  # (E,) int32 code, -1 where the id is missing
    item: np.ndarray  # (E,) int32 code, -1 where the id is missing
    user_ids: np.ndarray | pl.Series  # (U,) ids by code, ascending
    item_ids: np.ndarray | pl.Series  # (N,)
    time: np.ndarray | None = None  # (E,) int64 milliseconds, MISSING_TIME where empty
    rating: np.ndarray | None = None  # (E,) float32, NaN where empty
    weight: np.ndarray | None = None  # (E,) float32
    part: np.ndarray | None = None  # (E,) int8
    nanoseconds: np.ndarray | None = None  # (E,) int32 within the millisecond of ``time``, where times are finer
    row: np.ndarray | None = None  # (E,) uint32 where each event stands in ``columns``
    columns: pl.DataFrame | None = None  # further columns of everything read; no step touches them

    def __len__(self) -> int:
        return len(self.user)

    def take(self, which: np.ndarray) -> Events:
        """The events a mask or an index array selects; ids and codes stay."""
        names = ("user", "item", "time", "rating", "weight", "part", "nanoseconds", "row")
        return replace(self, **{name: getattr(self, name)[which] for name in names if getattr(self, name) is not None})

    def counts(self) -> tuple[int, int, int]:
        """Rows, distinct users, distinct items (missing ids count as neither)."""
        return len(self), _distinct(self.user, len(self.user_ids)), _distinct(self.item, len(self.item_ids))

    def missing(self) -> dict[str, np.ndarray]:
        """Role -> (E,) mask of events without it, for user, item and time."""
        masks = {"user": self.user < 0, "item": self.item < 0}
        if self.time is not None:
            masks["time"] = self.time == MISSING_TIME
        return masks

    def sorted(self, by_time: bool, ties: str = "file") -> Events:
        """Grouped by user, then by part, then (``by_time``) oldest first; ties by one of :data:`TIES`."""
        keys = [self.user]
        if self.part is not None:
            keys.append(self.part)
        if by_time and self.time is not None:
            keys += [self.time] if self.nanoseconds is None else [self.time, self.nanoseconds]
            if ties == "hash":
                keys.append(_hash(self.user, self.item))
        if _in_order(keys):
            return self
        frame = pl.DataFrame({str(at): key for at, key in enumerate(keys)})
        order = frame.select(pl.arg_sort_by(frame.columns, maintain_order=True)).to_series().to_numpy()
        return self.take(order)


def encode_ids(values: pl.Series, as_int: str, role: str) -> tuple[np.ndarray, np.ndarray | pl.Series]:
    """Codes (E,) int32 and the sorted ids they stand for: int64 array, or String series.

    Args:
        values: Int64, or Categorical.
        as_int: for Categorical: "never", "auto" (ints if every id is a plain integer) or "always".

    Raises:
        DataError: "always", and an id is no integer; or more than 2^31 - 2 ids.
    """
    codes, ids = _encode_integers(values) if values.dtype.is_integer() else _encode_strings(values, as_int, role)
    if len(ids) > np.iinfo(np.int32).max - 1:
        raise DataError(f"{len(ids):,} distinct {role} ids: rows are 32-bit, so at most 2,147,483,646 can be held")
    return codes, ids


def take_ids(ids: np.ndarray | pl.Series, codes: np.ndarray) -> np.ndarray:
    """Raw ids of ``codes``: int64 array, or object array of ``str``."""
    if isinstance(ids, np.ndarray):
        return ids[codes]
    picked = np.empty(len(codes), dtype=object)
    picked[:] = ids.gather(pl.Series(codes.astype(np.uint32))).to_list()
    return picked


def compress(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes that occur (ascending), and each event's rank among them: ((n,) int64, (E,) int32)."""
    occurs = np.bincount(codes, minlength=size) > 0
    ranks = np.cumsum(occurs, dtype=np.int64).astype(np.int32) - 1
    return np.flatnonzero(occurs), ranks[codes]


def refuse_missing(counts: Mapping[str, int], where: str) -> DataError:
    """The error for events that lack what may not be missing: ``counts`` by role, of the events ``where`` says."""
    missing = counted_missing(counts)
    return DataError(f"of {where} {missing} (empty or null): .clean(drop_missing=True) drops and counts them")


def counted_missing(counts: Mapping[str, int]) -> str:
    """How many events lack what, in words."""
    return ", ".join(f"{count:,} without {role}" for role, count in counts.items())


def _encode_integers(values: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    present = values.is_not_null().to_numpy()
    numbers = values.fill_null(0).to_numpy()
    known = numbers if present.all() else numbers[present]
    codes = np.full(len(numbers), -1, dtype=np.int32)
    if not len(known):
        return codes, np.empty(0, dtype=np.int64)
    low, span = int(known.min()), int(known.max()) - int(known.min()) + 1
    if span <= 4 * len(known) + 1024:  # dense enough for a table
        seen = np.zeros(span, dtype=bool)
        seen[known - low] = True
        ids = np.flatnonzero(seen) + low
        ranks = np.cumsum(seen, dtype=np.int64).astype(np.int32) - 1
        found = ranks[known - low]
    else:
        ids, found = np.unique(known, return_inverse=True)
    codes[present] = found
    return codes, ids.astype(np.int64)


def _encode_strings(values: pl.Series, as_int: str, role: str) -> tuple[np.ndarray, np.ndarray | pl.Series]:
    distinct = values.unique().drop_nulls()
    physical = distinct.to_physical().to_numpy().astype(np.int64)
    text = distinct.cast(pl.String)
    ids: np.ndarray | pl.Series
    if as_int != "never" and len(text) and _are_integers(text, as_int, role):
        numbers = text.cast(pl.Int64).to_numpy()
        ids, rank = np.unique(numbers, return_inverse=True)  # "always" may read "07" and "7" as one id
    else:
        order = text.arg_sort().to_numpy()
        ids, rank = text.gather(pl.Series(order)), np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
    size = int(physical.max()) + 1 if len(physical) else 0
    table = np.full(size + 1, -1, dtype=np.int32)  # the last entry is for missing ids
    table[physical] = rank
    at = values.to_physical().cast(pl.Int64).fill_null(size).to_numpy()
    return table[at], ids


def _are_integers(text: pl.Series, as_int: str, role: str) -> bool:
    if as_int == "auto":
        return bool(text.str.contains(PLAIN_INTEGER).all())
    wrong = text.filter(text.cast(pl.Int64, strict=False).is_null())
    if len(wrong):
        raise DataError(
            f"ids='int', but {len(wrong):,} {role} ids are no integers, such as {wrong[0]!r}: use ids='str'"
        )
    return True


def _distinct(codes: np.ndarray, size: int) -> int:
    known = codes if not len(codes) or codes.min() >= 0 else codes[codes >= 0]
    return int(np.count_nonzero(np.bincount(known, minlength=size)))


def _in_order(keys: Sequence[np.ndarray]) -> bool:
    """True if the rows are already sorted by ``keys``, first key first."""
    tied: Any = True
    for key in keys:
        if bool(np.any(tied & (key[1:] < key[:-1]))):
            return False
        tied = tied & (key[1:] == key[:-1])
    return True


def _hash(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """A fixed mixing of user and item codes (splitmix64's finaliser), uint64."""
    mixed = user.astype(np.uint64) << np.uint64(32) | item.astype(np.uint64)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
