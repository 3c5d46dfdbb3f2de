"""One typed column of items, users or events: a text, a category, a number or a list of categories per row.

Legend: R rows, C categories, K longest list of some rows.
A column is one or two flat arrays, so it can lie in a memory-mapped file and is written without pickle:

- ``text``: UTF-8 bytes (n,) uint8, row i owns ``values[offsets[i]:offsets[i + 1]]``;
- ``category``: (R,) int32 codes, 0 where it is missing, c for the c-th of the column's categories;
- ``number``: (R,) float32, NaN where it is missing;
- ``list``: (n,) int32 codes 1..C, row i owns ``values[offsets[i]:offsets[i + 1]]``, nothing where it is missing.

Categories are strings in ascending order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from recsys.errors import DataError, printable
from recsys.ids.ranges import spread
from recsys.ids.vocabulary import Vocabulary
from recsys.readers.blanks import stripped
from recsys.storage.reading import reading

KINDS = ("text", "category", "number", "list")
_DTYPES = {"text": "uint8", "category": "int32", "number": "float32", "list": "int32"}
_HASHED = 1 << 22  # entries hashed or checked at a time


@dataclass(frozen=True, eq=False)
class Column:
    """One typed column of R rows; the module says what ``values`` holds for each kind.

    Raises:
        DataError: the arrays do not fit the kind or each other.
    """

    kind: str
    values: np.ndarray
    offsets: np.ndarray | None = None  # (R+1,) int64, of texts and lists
    categories: Vocabulary | None = None  # of categories and lists: code c stands for the c-th, from 1
    whole: bool = False  # of numbers: they are written without a fraction

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"the kind of a column must be one of {', '.join(KINDS)}, found {self.kind!r}")
        if self.values.ndim != 1 or self.values.dtype != _DTYPES[self.kind]:
            raise DataError(
                f"a {self.kind} column holds a one-dimensional {_DTYPES[self.kind]} array, found "
                f"{self.values.dtype} {self.values.shape}"
            )
        if (self.offsets is not None) != (self.kind in ("text", "list")):
            raise DataError(f"offsets belong to texts and lists, and to no {self.kind} column")
        if (self.categories is not None) != (self.kind in ("category", "list")):
            raise DataError(f"categories belong to category and list columns, and to no {self.kind} column")
        offsets = self.offsets
        if offsets is not None and (not len(offsets) or offsets[0] or offsets[-1] != len(self.values)):
            raise DataError(f"offsets of a column must run from 0 to the number of its values, {len(self.values):,}")

    @classmethod
    def of(cls, kind: str, values: Sequence[Any] | np.ndarray) -> Column:
        """A column of plain values, one a row; None, NaN and "" are missing (of texts: "").

        Raises:
            DataError: a value is not of this kind; the message shows it.
        """
        if kind not in KINDS:
            raise DataError(f"the kind of a column must be one of {', '.join(KINDS)}, found {kind!r}")
        rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
        if kind == "number":
            whole = all(isinstance(one, int) or _is_missing(one) for one in rows)
            return cls(kind, _numbers(rows), whole=whole)
        if kind == "text":
            return _of_texts([one if isinstance(one, str) else "" if _is_missing(one) else str(one) for one in rows])
        names = [one for row in rows for one in _names_of(row)] if kind == "list" else list(map(category_name, rows))
        distinct = sorted(set(names) - {""})
        bare = cls(kind, np.zeros(0, np.int32), *_no_rows(kind), Vocabulary(_objects(distinct), 1))
        return bare.encode(rows)[0]

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def __str__(self) -> str:
        known = len(self) - self.num_missing
        told = [self.kind]
        if self.categories is not None:
            told.append(f"{len(self.categories):,} categories")
            if len(self.categories):
                some = self.categories.raw(np.arange(1, min(3, len(self.categories)) + 1)).tolist()
                told.append(f"such as {', '.join(printable(repr(one), 30) for one in some)}")
        elif self.kind == "number" and known:
            told.append(f"{np.nanmin(self.values):g} to {np.nanmax(self.values):g}")
        missing = f"{self.num_missing / max(len(self), 1):.1%} missing"
        return ", ".join([*told, missing])

    @property
    def num_categories(self) -> int:
        """C, 0 for texts and numbers."""
        return 0 if self.categories is None else len(self.categories)

    @property
    def missing(self) -> np.ndarray:
        """(R,) bool: True at rows without a value."""
        if self.offsets is not None:
            empty: np.ndarray = self.offsets[1:] == self.offsets[:-1]
            return empty
        return np.isnan(self.values) if self.kind == "number" else self.values == 0

    @cached_property
    def num_missing(self) -> int:
        """How many rows have no value."""
        return int(np.count_nonzero(self.missing))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the column."""
        found = hashlib.sha256(f"{self.kind} {self.whole} {len(self)} ".encode())
        for array in (self.values, self.offsets):
            for start in range(0, 0 if array is None else len(array), _HASHED):
                found.update(np.ascontiguousarray(array[start : start + _HASHED]).data)  # type: ignore[index]
        found.update(("" if self.categories is None else self.categories.digest).encode())
        return found.hexdigest()

    def encode(self, values: Sequence[Any] | np.ndarray) -> tuple[Column, list[str]]:
        """New rows as a column of the same kind and categories, and the categories in them that are not among these,
        as often as they occur.

        Categories that this column does not have count as missing. For texts and numbers as :meth:`of`.

        Raises:
            DataError: a value is not of this kind.
        """
        if self.categories is None:
            return Column.of(self.kind, values), []
        rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
        lists = [_names_of(row) for row in rows] if self.kind == "list" else [[category_name(row)] for row in rows]
        flat = [name for row in lists for name in row]
        codes = np.fromiter((self._codes.get(name, -1) for name in flat), np.int32, len(flat))
        unknown = [name for name, code in zip(flat, codes.tolist(), strict=True) if code < 0 and name]
        if self.kind == "category":
            return Column("category", np.maximum(codes, 0), categories=self.categories), unknown
        owner = np.repeat(np.arange(len(lists)), [len(row) for row in lists])[codes > 0]
        offsets = _offsets(np.bincount(owner, minlength=len(lists)))
        return Column("list", codes[codes > 0], offsets, self.categories), unknown

    def take(self, rows: np.ndarray) -> Column:
        """The column of some rows (n,), -1 for a row without a value."""
        rows = np.asarray(rows, dtype=np.int64)
        at, absent = np.maximum(rows, 0), rows < 0
        if self.offsets is None:
            values = self.values[at] if len(self) else np.zeros(len(rows), self.values.dtype)
            values[absent] = np.nan if self.kind == "number" else 0
            return Column(self.kind, values, None, self.categories, self.whole)
        start = self.offsets[at] if len(self) else at
        stop = np.where(absent, start, self.offsets[np.minimum(at + 1, len(self))])
        _, index = spread(start, stop)
        return Column(self.kind, self.values[index], _offsets(stop - start), self.categories)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Values at ``rows`` (n,), -1 for none: (n,) int32 codes, (n,) float32 numbers, or of lists (n, K) int32 codes
        with 0 behind shorter ones, K at least 1.

        Raises:
            DataError: texts are no numbers.
        """
        if self.kind == "text":
            raise DataError("texts cannot be read as numbers: name the kind of the column, or use a table of texts")
        picked = self.take(rows)
        if picked.offsets is None:
            return picked.values
        lengths = np.diff(picked.offsets)
        laid = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), np.int32)
        laid[np.arange(laid.shape[1]) < lengths[:, None]] = picked.values
        return laid

    def strings(self) -> np.ndarray:
        """(R,) object array of ``str``: lists joined with ", ", numbers written out, "" for what is missing."""
        if self.kind == "text":
            assert self.offsets is not None
            data, edges = self.values.tobytes(), self.offsets.tolist()
            with reading(getattr(self.values, "filename", None) or "texts", "prepare the data again"):
                return _objects([data[a:b].decode() for a, b in pairwise(edges)])
        if self.kind == "number":
            write = (lambda one: str(int(one))) if self.whole else str
            return _objects(["" if one != one else write(one) for one in self.values])
        assert self.categories is not None
        names = np.concatenate([_objects([""]), self.categories.ids])[self.values]
        if self.offsets is None:
            return names
        flat, edges = names.tolist(), self.offsets.tolist()
        return _objects([", ".join(flat[a:b]) for a, b in pairwise(edges)])

    def plain(self) -> list[Any]:
        """A plain value per row: a string, a float or a list of strings; None for what is missing (of texts "")."""
        if self.kind == "text":
            return list(self.strings().tolist())
        if self.kind == "number":
            return [None if one != one else one for one in self.values.tolist()]
        assert self.categories is not None
        names = np.concatenate([np.array([None], object), self.categories.ids])[self.values].tolist()
        return list(names) if self.offsets is None else [names[a:b] for a, b in pairwise(self.offsets.tolist())]

    def check(self) -> None:
        """Raise DataError if a code is none of the categories, a number is infinite, or offsets run backwards."""
        edges = () if self.offsets is None else self.offsets
        for start in range(0, len(edges), _HASHED):
            if bool((np.diff(edges[start : start + _HASHED + 1]) < 0).any()):
                raise DataError(f"the offsets of a {self.kind} column decrease")
        for start in range(0, len(self.values), _HASHED):
            part = self.values[start : start + _HASHED]
            if self.kind == "number" and bool(np.isinf(part).any()):
                raise DataError("a number is infinite")
            if self.categories is None:
                continue
            least, most = int(part.min()), int(part.max())
            if least < (self.kind == "list") or most > len(self.categories):
                raise DataError(f"codes lie in {least}..{most}, and there are {len(self.categories):,} categories")

    @cached_property
    def _codes(self) -> dict[str, int]:
        assert self.categories is not None
        return {name: code for code, name in enumerate(self.categories.ids.tolist(), 1)}


def category_name(value: Any) -> str:
    """A raw value as the name of a category, "" for a missing one.

    >>> category_name(3.0), category_name(" Rock "), category_name(True), category_name(None)
    ('3', 'Rock', 'true', '')
    """
    if _is_missing(value):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple, set, dict, np.ndarray)):
        raise DataError(f'a category is one value, found {value!r:.60}: the kind of several values a row is "list"')
    return stripped(str(value))


def _names_of(row: Any) -> list[str]:
    if _is_missing(row):
        return []
    if isinstance(row, (str, bytes)) or not hasattr(row, "__iter__"):
        raise DataError(
            f'a list of categories is expected in each row, found {row!r:.60}: split it first, or call it a "category"'
        )
    return [name for name in map(category_name, row) if name]


def _numbers(rows: list[Any]) -> np.ndarray:
    values = [float("nan") if _is_missing(one) else one for one in rows]
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.array([_number(one) for one in values], dtype=np.float64)
    if found.ndim != 1:
        raise DataError(f"a number is expected in each row, found {rows[0]!r:.60}")
    if bool((np.abs(found) > np.finfo(np.float32).max).any()):
        wrong = rows[int((np.abs(found) > np.finfo(np.float32).max).argmax())]
        raise DataError(f"numbers must be finite (32 bits), found {wrong!r:.60}: repair it, or leave it empty")
    return found.astype(np.float32)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(
            f'a number is expected in each row, found {value!r:.60}: repair it, leave it empty, or call it a "category"'
        ) from None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not stripped(value)
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def _of_texts(texts: list[str]) -> Column:
    encoded = [text.encode("utf-8", "replace") for text in texts]
    offsets = _offsets(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return Column("text", np.frombuffer(b"".join(encoded), np.uint8), offsets)


def _no_rows(kind: str) -> tuple[np.ndarray | None]:
    return (np.zeros(1, np.int64) if kind == "list" else None,)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
