"""Event logs on disk as one lazy table: user, item, and where named time, rating, weight and part.

Reading is described by a :class:`Source` and happens in one streaming pass when :meth:`Source.read` is called.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.data.columns import MILLISECONDS, ColumnMap, id_columns, number_columns, time_columns, to_milliseconds
from recsys.data.events import MISSING_TIME, Events, encode_ids
from recsys.data.formats import TextOptions, detect_format, find_files, open_table
from recsys.errors import DataError, DataWarning

_ROLES = ("user", "item", "time", "rating", "weight")
PARTS = ("train", "valid", "test")
_IDS = ("auto", "int", "str")


@dataclass(frozen=True)
class Source:
    """Where events are and how to read them."""

    files: tuple[Path, ...]
    parts: tuple[int, ...] | None = None  # per file 0 train, 1 valid, 2 test, if the data come split
    columns: Mapping[str, str | int] = field(default_factory=dict)  # role -> name; missing roles as the format knows
    format: str = "auto"
    text: TextOptions = TextOptions()  # noqa: RUF009 - frozen, so it can be shared
    ids: str = "auto"
    time_unit: str | None = None
    time_format: str | None = None

    def __post_init__(self) -> None:
        if self.ids not in _IDS:
            raise ValueError(f"ids must be one of {', '.join(_IDS)}, found {self.ids!r}")
        if self.time_unit is not None and self.time_unit not in MILLISECONDS:
            raise ValueError(f"time_unit must be one of {', '.join(MILLISECONDS)}, found {self.time_unit!r}")
        positional = all(isinstance(self.columns.get(role), int) for role in ("user", "item"))
        if not self.text.header and self.format in ("csv", "auto") and not positional:
            raise ValueError("a table without header needs positions: pass user=0, item=1 (or what they are)")

    @classmethod
    def find(
        cls,
        path: str | Path | Sequence[str | Path] | None,
        splits: Mapping[str, str | Path | Sequence[str | Path]] | None,
        **settings: Any,
    ) -> Source:
        """A source from paths, or from one path per part of data that come split.

        Raises:
            DataError: a file is missing. ValueError: neither or both given, or an unknown part.
        """
        if (path is None) == (splits is None):
            raise ValueError("pass either the path of the events, or splits={'train': ..., 'valid': ..., 'test': ...}")
        if splits is None:
            assert path is not None
            return cls(find_files(path), **settings)
        unknown = set(splits) - set(PARTS)
        if unknown or not splits:
            raise ValueError(f"splits must name some of {', '.join(PARTS)}, found {sorted(splits)}")
        found = {name: find_files(splits[name]) for name in PARTS if name in splits}
        labels = tuple(PARTS.index(name) for name, files in found.items() for _ in files)
        return cls(tuple(file for files in found.values() for file in files), labels, **settings)

    def describe(self) -> dict[str, Any]:
        """The settings that change what is read, without paths: part of the cache key."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("files", "text")}
        return {**settings, "columns": dict(self.columns), "text": vars(self.text), "files": len(self.files)}

    def read(self) -> tuple[Events, list[str]]:
        """All events, in the order of the files, with remarks on what had to be guessed.

        Raises:
            DataError: wrong separator, column or type, values that cannot be read, or no event at all.
        """
        categories = {role: pl.Categories.random() for role in ("user", "item")}
        try:
            opened = [self._open(file, categories) for file in self.files]
            self._check_types(opened)
            frame = pl.concat([one.frame for one in opened], how="vertical_relaxed").collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            reason, format = str(error).splitlines()[0][:300], self._format(self.files[0])
            raise DataError(
                f"{_listed(self.files)} cannot be read as {format}: {reason}. Check format, separator, header and quote"
            ) from error
        if not len(frame):
            raise DataError(f"{_listed(self.files)} holds no events")
        return self._events(frame, opened)

    def _format(self, file: Path) -> str:
        return detect_format(file) if self.format == "auto" else self.format

    def _open(self, file: Path, categories: dict[str, pl.Categories]) -> _Opened:
        format = self._format(file)
        wanted = [name for name in self.columns.values() if isinstance(name, str)]
        table = open_table(file, format, self.text, wanted)
        schema = table.frame.collect_schema()
        roles = {**vars(table.known), **self.columns}
        names = ColumnMap(**roles).resolve(schema.names(), file.name)
        columns: list[pl.Expr] = []
        for role in ("user", "item"):
            kind = "str" if format == "atomic" and self.ids == "auto" else self.ids
            columns += id_columns(role, names[role], schema[names[role]], kind, categories[role], file.name)
        unit = None
        if "time" in names:
            sample = _sample(table.frame, names["time"])
            parsed, unit = time_columns(names["time"], schema[names["time"]], sample, self.time_format, file.name)
            columns += parsed
        for role in ("rating", "weight"):
            if role in names:
                columns += number_columns(role, names[role], schema[names[role]], file.name)
        if self.parts is not None:
            columns.append(pl.lit(self.parts[self.files.index(file)], dtype=pl.Int8).alias("part"))
        return _Opened(file, table.frame.select(columns), table.frame, names, unit, table.untyped)

    def _check_types(self, opened: list[_Opened]) -> None:
        first = opened[0].frame.collect_schema()
        for other in opened[1:]:
            schema = other.frame.collect_schema()
            for role in ("user", "item"):
                if first[role] != schema[role]:
                    raise DataError(
                        f"{role} ids differ in type between files: {_kind(first[role])} in {opened[0].file.name}, "
                        f"{_kind(schema[role])} in {other.file.name}: pass ids='str' or ids='int'"
                    )
            if opened[0].unit != other.unit:
                raise DataError(
                    f"times are dates in one of {opened[0].file.name} and {other.file.name} and numbers in the other: "
                    "bring them to one form"
                )

    def _events(self, frame: pl.DataFrame, opened: list[_Opened]) -> tuple[Events, list[str]]:
        for role in _ROLES:
            if f"bad_{role}" in frame.columns and frame[f"bad_{role}"].any():
                _check_unreadable(role, frame[f"bad_{role}"], opened)
        codes, ids = {}, {}
        for role in ("user", "item"):
            as_int = {"int": "always", "auto": "auto" if role in opened[0].untyped else "never", "str": "never"}[
                self.ids
            ]
            codes[role], ids[role] = encode_ids(frame[role], as_int, role)
        time: np.ndarray | None = None
        remarks: list[str] = []
        if "time" in frame.columns:
            time, remarks = self._times(frame["time"], opened[0].unit)
        events = Events(
            user=codes["user"],
            item=codes["item"],
            user_ids=ids["user"],
            item_ids=ids["item"],
            time=time,
            rating=frame["rating"].fill_null(float("nan")).to_numpy() if "rating" in frame.columns else None,
            weight=_weights(frame["weight"]) if "weight" in frame.columns else None,
            part=frame["part"].to_numpy() if "part" in frame.columns else None,
        )
        return events, remarks

    def _times(self, values: pl.Series, fixed: str | None) -> tuple[np.ndarray, list[str]]:
        unit = fixed or self.time_unit
        present = values.is_not_null().to_numpy()
        times = np.full(len(values), MISSING_TIME, dtype=np.int64)
        times[present], used = to_milliseconds(values.drop_nulls().to_numpy(), unit)
        if unit is not None or not present.any():
            return times, []
        shown = times[present]
        first, last = (str(np.datetime64(int(end), "ms"))[:19] for end in (shown.min(), shown.max()))
        if used == "s" and np.abs(shown).max() < 10**11:
            warnings.warn(
                f"times run up to {values.max()!s}, too small for epoch times of today; read as seconds they end "
                f"in {last[:4]}: pass time_unit= (minutes, days, ...) or time_format= if they are something else",
                DataWarning,
                stacklevel=2,
            )
        return times, [f"time read as epoch {used!r}: {first} to {last}"]


@dataclass(frozen=True)
class _Opened:
    """One file, ready to be collected."""

    file: Path
    frame: pl.LazyFrame  # the columns of _ROLES and their bad_ marks
    table: pl.LazyFrame  # as in the file
    names: dict[str, str]  # role -> column of table
    unit: str | None  # of time, if its type fixes it
    untyped: frozenset[str]


def hash_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Size and SHA-256 of each file, read in pieces."""
    found = []
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append({"bytes": file.stat().st_size, "sha256": digest})
    return found


def _check_unreadable(role: str, bad: pl.Series, opened: list[_Opened]) -> None:
    """Raise DataError with a sample of the values that could not be read, unless they are all empty."""
    raw = pl.concat([one.table.select(pl.col(one.names[role]).cast(pl.String).alias(role)) for one in opened])
    rows = bad.arg_true()
    values = raw.collect()[role].gather(rows)
    wrong = ~values.str.strip_chars().str.to_lowercase().is_in(["", "nan"])
    if not wrong.any():
        return
    pairs = zip(values.filter(wrong).head(3), rows.filter(wrong).head(3), strict=True)
    shown = ", ".join(f"{value!r} (event {row + 1})" for value, row in pairs)
    advice = {"time": "pass time_format= or time_unit=, or repair these rows"}.get(role, "repair or drop these rows")
    wanted = {"time": "times", "user": "whole numbers", "item": "whole numbers"}.get(role, "numbers")
    raise DataError(f"{int(wrong.sum()):,} of {len(bad):,} values of {role} are no {wanted}, such as {shown}: {advice}")


def _weights(values: pl.Series) -> np.ndarray:
    if values.null_count():
        raise DataError(f"weight is missing in {values.null_count():,} of {len(values):,} events: fill it first")
    weights = values.to_numpy()
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum()):,} of {len(weights):,} weights are negative or infinite, such as "
            f"{weights[wrong.argmax()]:g}: a weight says how much an event counts, so it is at least 0"
        )
    return weights


def _sample(table: pl.LazyFrame, name: str) -> pl.Series:
    column = pl.col(name)
    present = column.is_not_null()
    if table.collect_schema()[name] == pl.String:  # the first thousand that say something, wherever they begin
        present = column.str.strip_chars() != ""
    return table.select(column).filter(present).head(1000).collect().to_series()


def _kind(dtype: pl.DataType) -> str:
    return "int" if dtype.is_integer() else "str"


def _listed(files: Sequence[Path]) -> str:
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
