"""The item table of a bundle as a server reads it: titles by row, search by title, rows that filters leave.

Legend: N items, rows 1..N; row 0 is padding.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import closest, printable

if TYPE_CHECKING:
    import polars as pl

KEPT = 2**23  # rows that are kept of the filters asked for last
OPERATORS = ("is", "is_not", "has", "has_not", "min", "max")
TITLES = ("title", "name", "movie_title")  # which column is shown, else the first


class Columns:
    """Columns of item text, entry 0 of each for padding.

    A column counts as one of numbers if most of its entries are. An item without an entry, or without a number where
    one is compared, meets no condition but ``is_not`` and ``has_not``.

    >>> table = Columns({"title": ["", "Fargo", "Heat"], "genres": ["", "Crime, Drama", "Crime Thriller"],
    ...                  "year": ["", "1996", "1995"]})
    >>> table.rows({"genres": {"has": ["crime"]}, "year": {"max": 1995}}).tolist()
    [2]
    >>> table.search("far", 5).tolist()
    [1]
    """

    def __init__(self, columns: Mapping[str, Sequence[str] | np.ndarray], popularity: np.ndarray | None = None) -> None:
        import polars as pl

        self._frame = pl.DataFrame({name: pl.Series(name, list(values), pl.String) for name, values in columns.items()})
        self._lower: pl.Series | None = None
        self._popularity = popularity
        self._numbers: dict[str, np.ndarray | None] = {}
        self._masks: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = Lock()
        self.title = next((name for name in TITLES if name in self._frame.columns), next(iter(columns), None))

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return self._frame.columns

    @cached_property
    def shown(self) -> np.ndarray:
        """(N + 1,) object: the title of each row, None where there is none."""
        texts = [None] * len(self._frame) if self.title is None else self._frame[self.title].to_list()
        found = np.empty(len(texts), object)
        found[:] = [one or None for one in texts]
        return found

    def titles(self, rows: np.ndarray) -> list[Any]:
        """The titles of ``rows``, of any shape; None for rows of items that came since."""
        return list(self.shown[np.where(rows < len(self.shown), rows, 0)].tolist())

    def entries(self, row: int) -> dict[str, str]:
        """What the table says of an item, column by column."""
        if row >= len(self._frame):
            return {}
        return {name: value for name, value in self._frame.row(row, named=True).items() if value}

    def rows(self, filters: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
        """(n,) rows of the items that meet all conditions on all columns, ascending.

        ``is`` and ``is_not`` take a list of whole entries, ``has`` and ``has_not`` one of words or phrases in an entry
        (capitals do not count), ``min`` and ``max`` a number, which is within.

        Raises:
            ValueError: a column or condition that is not there, numbers asked of a column of texts, no condition.
        """
        key = repr(sorted((name, sorted(one.items())) for name, one in filters.items()))
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        kept = np.ones(len(self._frame), bool)
        kept[:1] = False
        for name, conditions in filters.items():
            if name not in self._frame.columns:
                raise ValueError(f"the items have no column {printable(repr(name), 60)}; {self._instead(name)}")
            if not conditions:
                raise ValueError(f"the filter on {name!r} is empty: give it one of {', '.join(OPERATORS)}")
            for operator, wanted in conditions.items():
                kept &= self._mask(name, operator, wanted)
        found = np.flatnonzero(kept)
        with self._lock:
            self._masks[key] = found
            while len(self._masks) > 1 and sum(map(len, self._masks.values())) > KEPT:
                self._masks.popitem(last=False)
        return found

    def search(self, text: str, count: int) -> np.ndarray:
        """(n,) rows of at most ``count`` items whose title holds all words of ``text``, capitals not counting.

        Titles that begin with the text come first, then those in which each word begins a word, then the others;
        within each the more popular ones first.
        """
        words = text.lower().split()
        if self.title is None or not words or count < 1:
            return np.zeros(0, np.int64)
        if self._lower is None:
            self._lower = self._frame[self.title].fill_null("").str.to_lowercase()
        found = np.flatnonzero(self._lower.str.contains(words[0], literal=True).to_numpy())
        for word in words[1:]:  # each looks through what the one before left
            found = found[self._lower.gather(found).str.contains(word, literal=True).to_numpy()]
        found = found[found > 0]
        near = self._lower.gather(found)
        begins = near.str.starts_with(" ".join(words)).to_numpy()
        starts = np.ones(len(found), bool)
        for word in words:
            starts &= near.str.contains(rf"(?:^|[^\pL\pN]){re.escape(word)}").to_numpy()
        popular = np.zeros(len(found)) if self._popularity is None else self._popularity[found]
        return found[np.lexsort((found, -popular, ~starts, ~begins))[:count]]

    def extended(self, columns: Mapping[str, Sequence[str | None]], count: int) -> Columns:
        """The same with ``count`` further items behind these; columns that are not given stay empty.

        Raises:
            ValueError: a column that is not there.
        """
        for name in columns:
            if name not in self._frame.columns:
                raise ValueError(f"the items have no column {printable(repr(name), 60)}; {self._instead(name)}")
        more = {name: [one or "" for one in columns.get(name, [""] * count)] for name in self._frame.columns}
        popularity = None if self._popularity is None else np.append(self._popularity, np.zeros(count))
        return Columns({name: [*self._frame[name], *values] for name, values in more.items()}, popularity)

    def _instead(self, name: str) -> str:
        return closest(name, self._frame.columns) if self._frame.columns else "the bundle has no item text at all"

    def _mask(self, name: str, operator: str, wanted: Any) -> np.ndarray:
        import polars as pl

        column = self._frame[name].fill_null("")
        if operator in ("min", "max"):
            numbers = self._as_numbers(name)
            if numbers is None:
                raise ValueError(f"{name!r} holds texts, which have no {operator}: use is or has")
            return numbers >= wanted if operator == "min" else numbers <= wanted
        if operator in ("is", "is_not"):
            numbers = self._as_numbers(name)
            if numbers is None or not all(isinstance(one, (int, float)) for one in wanted):
                found = column.is_in(pl.Series([str(one) for one in wanted], dtype=pl.String).implode()).to_numpy()
            else:
                found = np.isin(numbers, np.asarray(list(wanted), float))
            return found if operator == "is" else ~found
        if operator in ("has", "has_not"):
            words = "|".join(re.escape(str(one)) for one in wanted)
            found = column.str.contains(rf"(?i)(?:^|[^\pL\pN])(?:{words})(?:[^\pL\pN]|$)").to_numpy()
            return (found & (column != "").to_numpy()) if operator == "has" else ~found
        raise ValueError(f"{printable(repr(operator), 40)} is no condition of a filter; {closest(operator, OPERATORS)}")

    def _as_numbers(self, name: str) -> np.ndarray | None:
        """(N + 1,) the column as numbers, NaN where it has none; None if it holds texts."""
        if name not in self._numbers:
            import polars as pl

            column = self._frame[name].fill_null("").str.strip_chars()
            read = column.cast(pl.Float64, strict=False)
            mostly = 2 * int(read.is_not_null().sum()) > int((column != "").sum())
            self._numbers[name] = read.fill_null(float("nan")).to_numpy() if mostly else None
        return self._numbers[name]
