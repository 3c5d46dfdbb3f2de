"""Raw item ids and the slots they live in: what an index needs to answer in the ids of its user.

Ids are all int or all str. A slot is a position in an array that may hold dead entries (items removed from a graph that
cannot forget them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError, UnknownItemError
from recsys.storage.arrays import read_array, write_array
from recsys.storage.files import replace
from recsys.storage.reading import reading

REMEDY = "write the index again"


class Slots:
    """``ids[slot]`` is the raw id of a slot, ``alive[slot]`` whether it still counts."""

    def __init__(self, ids: Sequence[Any] | np.ndarray, alive: np.ndarray | None = None) -> None:
        self.ids = ids if isinstance(ids, np.ndarray) and alive is not None else _unique(as_ids(ids))
        self.alive = np.ones(len(self.ids), bool) if alive is None else alive
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # living slots by id, and their ids
        self._slot_of: dict[Any, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> str:
        """ "int" or "str"."""
        return "int" if self.ids.dtype == np.int64 else "str"

    def find(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """(n,) int64 slots of raw ids, -1 for what is not held.

        Raises:
            DataError: ids of the other type.
        """
        if len(ids) == 0:
            return np.zeros(0, np.int64)
        wanted = as_ids(ids, self.kind)
        if self.kind == "int":
            if self._sorted is None:
                living = np.flatnonzero(self.alive)
                order = living[np.argsort(self.ids[living], kind="stable")]
                self._sorted = order, self.ids[order]
            order, names = self._sorted
            if len(order) == 0:
                return np.full(len(wanted), -1)
            at = np.minimum(np.searchsorted(names, wanted), len(order) - 1)
            return np.where(names[at] == wanted, order[at], -1)
        if self._slot_of is None:
            living = np.flatnonzero(self.alive)
            self._slot_of = dict(zip(self.ids[living].tolist(), living.tolist(), strict=True))
        return np.fromiter((self._slot_of.get(one, -1) for one in wanted.tolist()), np.int64, len(wanted))

    def known(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """:meth:`find`, all of which must be held (DataError with a sample otherwise)."""
        slots = self.find(ids)
        if (slots < 0).any():
            unknown = [one for one, slot in zip(ids, slots, strict=True) if slot < 0]
            raise UnknownItemError(f"{len(unknown)} ids are not in the index, such as {unknown[:3]}")
        return slots

    def raw(self, slots: np.ndarray) -> np.ndarray:
        """Raw ids of slots of any shape; -1 (int ids) or None (str ids) for slot -1."""
        found = np.full(slots.shape, -1 if self.kind == "int" else None, dtype=self.ids.dtype)
        found[slots >= 0] = self.ids[slots[slots >= 0]]
        return found

    def extended(self, ids: Sequence[Any] | np.ndarray) -> Slots:
        """Slots with further ids behind these; an id held already is a DataError."""
        names = _unique(as_ids(ids, self.kind))
        held = names[self.find(names) >= 0]
        if len(held):
            raise DataError(f"{len(held)} ids are in the index already, such as {held[0]!r}: remove them first")
        return Slots(np.concatenate([self.ids, names]), np.concatenate([self.alive, np.ones(len(names), bool)]))

    def save(self, folder: Path) -> None:
        """Write ids and tombstones into ``folder``: plain arrays, no pickle."""
        write_array(folder / "alive.npy", self.alive)
        if self.kind == "int":
            write_array(folder / "ids.npy", self.ids)
            return
        encoded = [one.encode("utf-8") for one in self.ids.tolist()]
        write_array(folder / "ids_ends.npy", np.cumsum([len(one) for one in encoded], dtype=np.int64))
        replace(folder / "ids.utf8", lambda partial: partial.write_bytes(b"".join(encoded)))

    @classmethod
    def load(cls, folder: Path) -> Slots:
        """What :meth:`save` wrote.

        Raises:
            DataError: a file is missing or damaged, or they do not belong together.
        """
        alive = read_array(folder / "alive.npy", REMEDY, kinds="b")
        if (folder / "ids.npy").is_file():
            ids = read_array(folder / "ids.npy", REMEDY, kinds="i").astype(np.int64)
        else:
            ends = read_array(folder / "ids_ends.npy", REMEDY, kinds="i")
            with reading(folder / "ids.utf8", REMEDY):
                blob = (folder / "ids.utf8").read_bytes()
                starts = np.concatenate([[0], ends])[: len(ends)]
                if (ends < starts).any() or (len(ends) and int(ends[-1]) != len(blob)):
                    raise ValueError("its ends are those of other ids")
                pairs = zip(starts.tolist(), ends.tolist(), strict=True)
                ids = np.empty(len(ends), object)
                ids[:] = [blob[first:last].decode("utf-8") for first, last in pairs]
        if len(ids) != len(alive):
            raise DataError(f"{folder} holds {len(ids):,} ids and marks for {len(alive):,}: {REMEDY}")
        with reading(folder, REMEDY):
            _unique(ids[alive])
        return cls(ids, alive)


def as_ids(ids: Sequence[Any] | np.ndarray, kind: str | None = None) -> np.ndarray:
    """Raw ids as a one-dimensional int64 array or as an object array of str.

    Raises:
        DataError: other types, a mixture, or not the expected ``kind``.
    """
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"a list of ids is expected, and {ids!r} is one id: pass [{ids!r}]")
    array = ids if isinstance(ids, np.ndarray) else np.asarray(ids) if _all_ints(ids) else np.array(list(ids), object)
    if array.ndim != 1 or array.dtype.kind not in "iuUO":
        raise DataError(f"ids must be one-dimensional and int or str, found {array.dtype} {array.shape}")
    if array.dtype.kind in "iu":
        if kind == "str":
            raise DataError(f"these ids are str, and the int {array[:1].tolist()} was given: pass ids as in the data")
        if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"the id {array.max()} does not fit into 64 signed bits: use string ids")
        return array.astype(np.int64)
    odd = [one for one in array.tolist() if not isinstance(one, str)]
    if odd:
        raise DataError(f"ids must be all int or all str, found {odd[0]!r} of type {type(odd[0]).__name__}")
    if kind == "int" and len(array):
        raise DataError(f"these ids are int, and the str {array[0]!r} was given: pass ids as in the data")
    return array.astype(object)


def _all_ints(ids: Sequence[Any]) -> bool:
    return all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in ids)


def _unique(ids: np.ndarray) -> np.ndarray:
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise DataError(
            f"{len(ids) - len(values)} ids repeat, such as {values[counts.argmax()]!r}: give each item once"
        )
    return ids
