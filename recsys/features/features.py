"""Typed columns of items, users or events by name: kept with a split, read without pickle, shown with what is missing.

Legend: R rows. Columns of items have one more row than there are items, row 0 for padding; rows of users begin at 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError, closest
from recsys.features.column import KINDS, Column
from recsys.ids.vocabulary import Vocabulary
from recsys.storage.arrays import read_array, write_array
from recsys.storage.files import write_text
from recsys.storage.reading import read_json, reading

_REMEDY = "delete the folder and split the data again"


class Features(Mapping[str, Column]):
    """Typed columns by name, all of R rows: of items (row 0 for padding), of users, or of events.

    Raises:
        DataError: the columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)
        sizes = {len(column) for column in self.columns.values()}
        if len(sizes) > 1:
            found = ", ".join(f"{name}: {len(column):,}" for name, column in self.columns.items())
            raise DataError(f"columns must have as many rows as each other, found {found}")
        self.rows = sizes.pop() if sizes else 0

    @classmethod
    def of(cls, values: Mapping[str, Sequence[Any] | np.ndarray], kinds: Mapping[str, str]) -> Features:
        """Features of plain values by column, each of the kind that ``kinds`` names (texts if it names none)."""
        unknown = [name for name in kinds if name not in values]
        if unknown:
            raise DataError(f"kinds names the column {unknown[0]!r}, which is not there: {closest(unknown[0], values)}")
        return cls({name: Column.of(kinds.get(name, "text"), one) for name, one in values.items()})

    def __getitem__(self, name: str) -> Column:
        try:
            return self.columns[name]
        except KeyError:
            raise DataError(f"there is no column {name!r}: {closest(name, self.columns)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def get(self, name: str, default: Any = None) -> Any:
        """The column, or ``default`` where there is none of that name."""
        return self.columns.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"Features({self.rows:,} rows: {', '.join(f'{name} ({one.kind})' for name, one in self.items())})"

    def __str__(self) -> str:
        width = max(map(len, self.columns), default=0)
        return "\n".join(f"{name:<{width}}  {column}" for name, column in self.items())

    @property
    def kinds(self) -> dict[str, str]:
        """Column name -> kind."""
        return {name: column.kind for name, column in self.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names and contents of all columns."""
        told = [[name, column.digest] for name, column in self.items()]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """About how much the columns take, in memory or on disk."""
        names = [len(one.categories) * 24 for one in self.values() if one.categories is not None]
        arrays = [array.nbytes for one in self.values() for array in (one.values, one.offsets) if array is not None]
        return sum(arrays) + sum(names)

    def take(self, rows: np.ndarray) -> Features:
        """The features of some rows (n,), -1 for a row without values."""
        return Features({name: column.take(rows) for name, column in self.items()})

    def save(self, folder: str | Path, name: str) -> None:
        """Write ``name.json`` and the arrays of each column beside it into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = []
        for at, (title, column) in enumerate(self.items()):
            told.append({"name": title, "kind": column.kind, "whole": column.whole})
            write_array(folder / f"{name}-{at}.values.npy", column.values)
            if column.offsets is not None:
                write_array(folder / f"{name}-{at}.offsets.npy", column.offsets)
            if column.categories is not None:
                column.categories.save(folder, f"{name}-{at}.categories")
        write_text(folder / f"{name}.json", json.dumps({"rows": self.rows, "columns": told}))

    @classmethod
    def load(cls, folder: str | Path, name: str, remedy: str = _REMEDY) -> Features | None:
        """Open what :meth:`save` wrote, the arrays left on disk; None where there is nothing.

        Raises:
            DataError: a file is missing, truncated or does not belong to the others.
        """
        folder = Path(folder)
        path = folder / f"{name}.json"
        if not path.is_file():
            return None
        header = read_json(path, remedy)
        with reading(path, remedy):
            columns = {
                str(told["name"]): _load(folder, f"{name}-{at}", str(told["kind"]), bool(told["whole"]), remedy)
                for at, told in enumerate(header["columns"])
            }
            features = cls(columns)
            if len(columns) != len(header["columns"]) or features.rows != (header["rows"] if columns else 0):
                raise ValueError(f"{features.rows:,} rows of {len(columns)} columns, the header says otherwise")
            return features


class Texts(Mapping[str, np.ndarray]):
    """Every column of ``features`` written out, made when it is first asked for: (R,) object arrays of ``str``."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            self._made[name] = self.features.columns[name].strings()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.features

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


def _load(folder: Path, stem: str, kind: str, whole: bool, remedy: str) -> Column:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}")
    ragged, coded = kind in ("text", "list"), kind in ("category", "list")
    column = Column(
        kind,
        read_array(folder / f"{stem}.values.npy", remedy, mapped=True),
        read_array(folder / f"{stem}.offsets.npy", remedy, mapped=True, kinds="i") if ragged else None,
        Vocabulary.load(folder, f"{stem}.categories") if coded else None,
        whole,
    )
    column.check()
    return column
