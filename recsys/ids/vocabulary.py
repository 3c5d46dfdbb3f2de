"""Raw ids and the rows that stand for them, both ways; stored without pickle.

An id is an int or a string, never both in one vocabulary: ``50`` and ``"50"`` are different ids.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.storage.arrays import read_array, write_array
from recsys.storage.files import write_text
from recsys.storage.reading import read_json, reading

_REMEDY = "build it again, or copy its folder again"

_HASHED = 1 << 16  # strings hashed at a time


class Vocabulary:
    """Raw id <-> row: ``ids[i]`` owns row ``first + i`` (items start at 1, row 0 is padding; users start at 0).

    An id that was removed keeps its row, is not found any more, and may come again behind the others: so an index
    that cannot give up a row lives with it.

    Args:
        ids: unique ids, all ints or all ``str``, as an array or a list.
        first: row of the first id.
        alive: (n,) bool, which ids still count (default: all); ids that do not may repeat.

    Raises:
        DataError: an id occurs twice, is missing, or is neither an int nor a string.

    >>> items = Vocabulary(np.array(["apple", "pear"], dtype=object), first=1)
    >>> items.rows(["pear", "plum"]).tolist(), items.raw(np.array([2, 1])).tolist()
    ([2, -1], ['pear', 'apple'])
    """

    def __init__(self, ids: Sequence[Any] | np.ndarray, first: int, alive: np.ndarray | None = None) -> None:
        self._ids: np.ndarray | None = _checked(ids if isinstance(ids, np.ndarray) else _as_array(ids), alive)
        self._alive = alive if alive is None or not alive.all() else None
        self._blob: tuple[np.ndarray, np.ndarray] | None = None  # utf-8 bytes and offsets, for strings on disk
        self.first = int(first)
        self.kind = "str" if self._ids.dtype == object else "int"
        self._size = len(self._ids)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        shown = self.raw(np.arange(self.first, self.first + min(3, len(self)))).tolist()
        return f"Vocabulary({len(self):,} {self.kind} ids from row {self.first}: {shown}...)"

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64, or object array of ``str``: all ids, by row. Strings on disk are decoded at first use."""
        if self._ids is None:
            assert self._blob is not None
            self._ids = _decode(*self._blob)
        return self._ids

    @property
    def alive(self) -> np.ndarray:
        """(n,) bool: which ids are found; False where one was removed."""
        return np.ones(len(self), bool) if self._alive is None else self._alive

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the kind of the ids and all of them in row order: who has the same one means the same rows."""
        found = hashlib.sha256(f"{self.kind} {self.first} {len(self)} ".encode())
        if self._alive is not None:
            found.update(np.packbits(self._alive).data)
        if self.kind == "int":
            found.update(np.ascontiguousarray(self.ids, dtype=np.int64).data)
            return found.hexdigest()
        for start in range(0, len(self), _HASHED):
            part = self.ids[start : start + _HASHED].tolist()
            found.update("\x1f".join(f"{len(text)}:{text}" for text in part).encode("utf-8", "surrogatepass"))
        return found.hexdigest()

    def rows(self, raw: Sequence[Any] | np.ndarray) -> np.ndarray:
        """The rows of raw ids: int64 in the shape of ``raw``, -1 where the id is unknown or was removed.

        Raises:
            DataError: no id is known, but some would be if ints were strings or strings ints.
        """
        raw = raw if isinstance(raw, np.ndarray) else _as_array(raw)
        found = self._lookup(raw.reshape(-1))
        if len(found) and found.max() < 0:
            self._refuse_other_type(raw.reshape(-1))
        return found.reshape(raw.shape)

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """The raw ids of ``rows``: int64 or object array of the same shape.

        Raises:
            ValueError: a row lies outside ``first .. first + len - 1``; row 0 of items is padding and has no id.
        """
        index = np.asarray(rows, dtype=np.int64) - self.first
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            wrong = int(np.asarray(rows)[(index < 0) | (index >= len(self))].flat[0])
            hint = " (row 0 is padding)" if wrong == 0 and self.first == 1 else ""
            raise ValueError(f"row {wrong} has no id{hint}: rows run from {self.first} to {self.first + len(self) - 1}")
        if self._ids is not None or self._blob is None:
            return self.ids[index]
        blob, offsets = self._blob
        with reading(getattr(blob, "filename", None) or "strings", _REMEDY):
            picked = [bytes(blob[offsets[i] : offsets[i + 1]]).decode() for i in index.reshape(-1)]
        return _objects(picked).reshape(index.shape)

    def extended(self, raw: Sequence[Any] | np.ndarray) -> Vocabulary:
        """The same with further ids behind these.

        Raises:
            DataError: an id is in it already, occurs twice, or is of another type.
        """
        new = raw if isinstance(raw, np.ndarray) else _as_array(raw)
        if new.dtype.kind == "U":
            new = new.astype(object)
        if (new.dtype == object) != (self.kind == "str") or new.ndim != 1 or not len(new):
            raise DataError(
                f"a list of {self.kind} ids is expected, as the ids of the catalogue are; found {raw!r:.80}"
            )
        there = self.rows(new) >= 0
        if there.any():
            raise DataError(
                f"{int(there.sum()):,} of {len(new):,} ids are in the catalogue already, such as {new[there][0]!r}: "
                "remove them first, or leave them out"
            )
        alive = None if self._alive is None else np.append(self._alive, np.ones(len(new), bool))
        return self._of(np.concatenate([self.ids, _checked(new)]), alive)

    def without(self, rows: np.ndarray) -> Vocabulary:
        """The same with the ids of ``rows`` removed; the others keep their rows."""
        alive = self.alive.copy()
        alive[np.asarray(rows, np.int64) - self.first] = False
        return self._of(self.ids, alive)

    def kept(self) -> Vocabulary:
        """The ids that were not removed, in new rows without gaps."""
        return self._of(self.ids[self.alive], None)

    def _of(self, ids: np.ndarray, alive: np.ndarray | None) -> Vocabulary:
        """One of ids that are known to be good."""
        made = type(self).__new__(type(self))
        made.kind, made.first, made._size, made._ids, made._blob = self.kind, self.first, len(ids), ids, None
        made._alive = None if alive is None or alive.all() else alive
        return made

    def save(self, folder: str | Path, name: str) -> None:
        """Write ``name.json`` and the ids as plain arrays into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.kind == "int":
            write_array(folder / f"{name}.npy", self.ids)
        else:
            save_strings(folder, name, self.ids)
        header = {"kind": self.kind, "first": self.first, "count": len(self)}
        if self._alive is not None:
            write_array(folder / f"{name}.alive.npy", self._alive)
            header["removed"] = int((~self._alive).sum())
        write_text(folder / f"{name}.json", json.dumps(header))

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Vocabulary:
        """Read what :meth:`save` wrote; ids stay on disk until asked for.

        Raises:
            DataError: a file is missing, truncated or does not belong to the others.
        """
        folder = Path(folder)
        header = read_json(folder / f"{name}.json", _REMEDY)
        with reading(folder / f"{name}.json", _REMEDY):
            kind, first, count = header["kind"], int(header["first"]), int(header["count"])
            removed = int(header.get("removed", 0))
            if kind not in ("int", "str") or first not in (0, 1) or count < 0:
                raise ValueError(f"kind {kind!r}, first row {first}, {count} ids")
        loaded = cls.__new__(cls)
        loaded.kind, loaded.first, loaded._size, loaded._ids, loaded._blob = kind, first, count, None, None
        loaded._alive = None
        if kind == "int":
            loaded._ids = read_array(folder / f"{name}.npy", _REMEDY, mapped=True, kinds="i").astype(
                np.int64, copy=False
            )
            size = len(loaded._ids)
        else:
            loaded._blob = _read_blob(folder, name)
            size = len(loaded._blob[1]) - 1
        if size != count:
            raise DataError(
                f"vocabulary {name!r} in {folder} holds {size:,} ids, its header says {count:,}: build it again"
            )
        if removed:
            loaded._alive = read_array(folder / f"{name}.alive.npy", _REMEDY, kinds="b")
            if loaded._alive.shape != (count,) or int((~loaded._alive).sum()) != removed:
                raise DataError(
                    f"vocabulary {name!r} in {folder} marks other ids as removed than its header: {_REMEDY}"
                )
        return loaded

    def _lookup(self, flat: np.ndarray) -> np.ndarray:
        if self.kind == "str":
            get = self._by_string.get
            try:
                return np.fromiter(map(get, flat.tolist(), itertools.repeat(-1)), dtype=np.int64, count=len(flat))
            except TypeError as error:
                raise DataError(f"ids must be ints or strings ({error}): is there a list too many?") from error
        keys, known = _as_integers(flat)
        order, ordered = self._by_integer
        if not len(ordered):
            return np.full(len(flat), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
        return np.where(known & (ordered[at] == keys), order[at] + self.first, -1)

    @cached_property
    def _by_string(self) -> dict[Any, int]:
        if self._alive is None:
            return {key: row for row, key in enumerate(self.ids.tolist(), self.first)}
        rows = np.flatnonzero(self._alive)
        return dict(zip(self.ids[rows].tolist(), (rows + self.first).tolist(), strict=True))

    @cached_property
    def _by_integer(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(self.alive)
        ids = self.ids if self._alive is None else self.ids[rows]
        if len(ids) < 2 or bool((ids[1:] > ids[:-1]).all()):
            return rows, ids
        order = np.argsort(ids, kind="stable")
        return rows[order], ids[order]

    def _refuse_other_type(self, flat: np.ndarray) -> None:
        sample = flat[:1000].tolist()
        other: list[Any] = []
        if self.kind == "str":
            other = [
                str(int(key)) for key in sample if isinstance(key, int) or (isinstance(key, float) and key.is_integer())
            ]
        else:
            other = [int(key) for key in sample if isinstance(key, str) and key.strip().lstrip("-").isdecimal()]
            other = [key for key in other if abs(key) < 2**63]
        if other and self._lookup(_as_array(other)).max() >= 0:
            given = type(sample[0]).__name__
            raise DataError(
                f"none of the ids is known: they are {given} ({sample[0]!r}), the data has {self.kind} ids "
                f"({self.raw(np.array([self.first])).tolist()[0]!r}): convert them to {self.kind}"
            )


def save_strings(folder: str | Path, name: str, strings: np.ndarray) -> None:
    """Write an array of ``str`` as ``name.blob.npy`` (utf-8 bytes) and ``name.offsets.npy``."""
    encoded = [text.encode() for text in strings.tolist()]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
    write_array(Path(folder) / f"{name}.blob.npy", np.frombuffer(b"".join(encoded), dtype=np.uint8))
    write_array(Path(folder) / f"{name}.offsets.npy", offsets)


def load_strings(folder: str | Path, name: str) -> np.ndarray:
    """Read what :func:`save_strings` wrote: an object array of ``str``.

    Raises:
        DataError: a file is missing or truncated.
    """
    return _decode(*_read_blob(Path(folder), name))


def _checked(ids: np.ndarray, alive: np.ndarray | None = None) -> np.ndarray:
    """Ids as they are kept, int64 or ``str``, of which those ``alive`` are unique."""
    if ids.ndim != 1:
        raise DataError(f"ids must be one-dimensional, found shape {ids.shape}")
    if alive is not None and alive.shape != ids.shape:
        raise DataError(f"{len(alive):,} marks were given for {len(ids):,} ids")
    if np.issubdtype(ids.dtype, np.integer):
        if ids.dtype == np.uint64 and len(ids) and ids.max() > np.iinfo(np.int64).max:
            raise DataError(f"the id {ids.max()} does not fit into 64 signed bits: use string ids")
        ids = ids.astype(np.int64)
        living = ids if alive is None else ids[alive]
        if len(living) > 1 and not bool((living[1:] > living[:-1]).all()):
            _unique(living, len(np.unique(living)))
        return ids
    ids = ids.astype(object)
    wrong = next((key for key in ids.tolist() if type(key) is not str), "")
    if wrong != "":
        raise DataError(f"ids must be all ints or all strings, found {wrong!r} of type {type(wrong).__name__}")
    living = ids if alive is None else ids[alive]
    _unique(living, len(set(living.tolist())))
    return ids


def _unique(ids: np.ndarray, different: int) -> None:
    if different < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        more = f"{len(ids) - different:,} of {len(ids):,} ids repeat, such as {values[counts.argmax()]!r}"
        raise DataError(f"ids must be unique, and {more}: give each once")


def _as_array(raw: Sequence[Any]) -> np.ndarray:
    """A flat sequence of ids as an array that keeps ints ints and strings strings."""
    if isinstance(raw, (str, bytes)):
        raise TypeError(f"a list of ids is expected, and {raw!r} is one id: pass [{raw!r}]")
    values = list(raw)
    if set(map(type, values)) <= {str}:
        return _objects(values)
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    if values and all(type(value) is int and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    return _objects(values)


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _as_integers(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids as int64 with a mask of those that are integers at all."""
    if flat.dtype == np.uint64:
        return flat.astype(np.int64), flat <= np.iinfo(np.int64).max
    if np.issubdtype(flat.dtype, np.integer):
        return flat.astype(np.int64), np.ones(len(flat), dtype=bool)
    if np.issubdtype(flat.dtype, np.floating):
        known = np.isfinite(flat) & (np.abs(flat) < 2**63)
        known &= np.where(known, flat, 0.5) == np.floor(np.where(known, flat, 0))
        return np.where(known, flat, 0).astype(np.int64), known
    values = [value if _is_integer(value) else None for value in flat.tolist()]
    known = np.array([value is not None for value in values], dtype=bool)
    return np.array([0 if value is None else int(value) for value in values], dtype=np.int64), known


def _is_integer(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):  # no id, though Python counts with it
        return False
    whole = isinstance(value, (int, np.integer)) or (isinstance(value, float) and value.is_integer())
    return whole and -(2**63) <= value < 2**63


def _decode(blob: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    data, edges = blob.tobytes(), offsets.tolist()
    with reading(getattr(blob, "filename", None) or "strings", _REMEDY):
        return _objects([data[start:stop].decode() for start, stop in itertools.pairwise(edges)])


def _read_blob(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.offsets.npy"
    offsets = read_array(path, _REMEDY, kinds="i")
    blob = read_array(folder / f"{name}.blob.npy", _REMEDY, mapped=True, kinds="u")
    with reading(path, _REMEDY):
        if not len(offsets) or blob.dtype != np.uint8 or offsets[0] or offsets[-1] != len(blob):
            raise ValueError(f"{len(blob):,} bytes for other offsets")
        if (offsets[1:] < offsets[:-1]).any():
            raise ValueError("the offsets decrease")
    return blob, offsets
