"""Event logs, on disk or in frames, as one lazy table: user, item, and where named time, rating, weight and part.

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

from recsys.errors import DataError, DataWarning
from recsys.readers.columns import (
    ColumnMap,
    feature_columns,
    find_column,
    id_columns,
    number_columns,
    plain_names,
    time_columns,
)
from recsys.readers.events import MISSING_TIME, Events, encode_ids, refuse_missing
from recsys.readers.formats import TextOptions, detect_format, find_sources, open_table
from recsys.readers.frames import Frame
from recsys.readers.times import MILLISECONDS, moment, read_times, unset, unset_text

_ROLES = ("user", "item", "time", "rating", "weight")
FEATURE = "column "  # before the name of a further column, as a role
PARTS = ("train", "valid", "test")
FEATURE_KINDS = ("category", "number", "list")
_IDS = ("auto", "int", "str")
_LARGE = 1 << 26  # bytes; of a larger file the beginning is looked at before all of it is read
_BEGINNING = 200_000  # rows


@dataclass(frozen=True)
class Source:
    """Where events are and how to read them."""

    files: tuple[Path | Frame, ...]
    parts: tuple[int, ...] | None = None  # per file 0 train, 1 valid, 2 test, if the data come split
    columns: Mapping[str, str | int] = field(default_factory=dict)  # role -> name; missing roles as the format knows
    format: str = "auto"
    text: TextOptions = TextOptions()  # noqa: RUF009 - frozen, so it can be shared
    ids: str = "auto"
    time_unit: str | None = None
    time_format: str | None = None
    features: Mapping[str, str] = field(default_factory=dict)  # further columns that are kept -> kind
    list_separator: str | None = None  # of columns of the kind "list" that are text

    def __post_init__(self) -> None:
        for name, kind in self.features.items():
            if kind not in FEATURE_KINDS:
                hint = ": texts of events are not kept, categories are" if kind == "text" else ""
                raise ValueError(
                    f"the kind of the event column {name!r} must be one of {', '.join(FEATURE_KINDS)}, found "
                    f"{kind!r}{hint}"
                )
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
        path: Any,
        splits: Mapping[str, Any] | None,
        **settings: Any,
    ) -> Source:
        """A source from paths or frames, or from one (or several) per part of data that come split.

        Raises:
            DataError: a file is missing. ValueError: neither or both given, or an unknown part.
        """
        if (path is None) == (splits is None):
            raise ValueError("pass either the path of the events, or splits={'train': ..., 'valid': ..., 'test': ...}")
        if splits is None:
            return cls(find_sources(path), **settings)
        unknown = set(splits) - set(PARTS)
        if unknown or not splits:
            raise ValueError(f"splits must name some of {', '.join(PARTS)}, found {sorted(splits)}")
        found = {name: find_sources(splits[name]) for name in PARTS if name in splits}
        labels = tuple(PARTS.index(name) for name, files in found.items() for _ in files)
        return cls(tuple(file for files in found.values() for file in files), labels, **settings)

    def describe(self) -> dict[str, Any]:
        """The settings that change which events are read, without paths: part of the cache key."""
        apart = ("files", "text", "features", "list_separator")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return {**settings, "columns": dict(self.columns), "text": vars(self.text), "files": len(self.files)}

    def hashes(self) -> list[dict[str, Any]]:
        """Size and SHA-256 of each file, and of the columns of frames that are read."""
        return [self._read_of(file) if isinstance(file, Frame) else hash_files([file])[0] for file in self.files]

    def _read_of(self, frame: Frame) -> dict[str, Any]:
        table = open_table(frame, "frame", self.text)
        roles = ColumnMap(**{**vars(table.known), **self.columns})
        names = roles.resolve(table.frame.collect_schema().names(), frame.name)
        return Frame(table.frame).digest(list(dict.fromkeys(names.values())))

    def feature_hashes(self) -> list[Any]:
        """The further columns and how they are read, with their SHA-256 of frames (of files :meth:`hashes` has all)."""
        found: list[Any] = [dict(self.features), self.list_separator]
        for file in self.files:
            if isinstance(file, Frame) and self.features:
                table = plain_names(file.table)
                names = table.collect_schema().names()
                columns = [find_column(name, names, "event_columns", file.name) for name in self.features]
                found.append(Frame(table).digest(columns))
        return found

    def read(self, allow_missing: bool = True, unset_times: Sequence[Any] = ()) -> tuple[Events, list[str]]:
        """All events, in the order of the files, with remarks on what had to be guessed.

        Args:
            allow_missing: events may lack a user, an item or a time; otherwise that is told as early as it is seen.
            unset_times: times that stand for none, in the unit of the source or as ISO text.

        Raises:
            DataError: wrong separator, column or type, values that cannot be read, or no event at all.
        """
        coded = ("user", "item", *(f"{FEATURE}{name}" for name in self.features))
        categories = {role: pl.Categories.random() for role in coded}
        try:
            opened = [self._open(at, categories) for at in range(len(self.files))]
            self._check_types(opened)
            _check_beginning(opened, allow_missing)
            fine = any(one.fine for one in opened)
            frames = [one.frame.with_columns(fraction=0.0) if fine > one.fine else one.frame for one in opened]
            frame = pl.concat(frames, how="diagonal_relaxed" if fine else "vertical_relaxed").collect(
                engine="streaming"
            )
        except pl.exceptions.PolarsError as error:
            reason, format = str(error).splitlines()[0][:300], self._format(self.files[0])
            raise DataError(
                f"{_listed(self.files)} cannot be read as {format}: {reason}. Check format, separator, header and quote"
            ) from error
        if not len(frame):
            raise DataError(f"{_listed(self.files)} holds no events")
        if not allow_missing:
            _refuse_missing(frame, len(frame))
        return self._events(frame, opened, unset_times)

    def _format(self, file: Path | Frame) -> str:
        if isinstance(file, Frame):
            return "frame"
        return detect_format(file) if self.format == "auto" else self.format

    def _open(self, at: int, categories: dict[str, pl.Categories]) -> _Opened:
        file = self.files[at]
        format = self._format(file)
        wanted = [name for name in (*self.columns.values(), *self.features) if isinstance(name, str)]
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
        for name, kind in self.features.items():
            role, found = f"{FEATURE}{name}", find_column(name, schema.names(), "event_columns", file.name)
            names[role] = found
            columns += feature_columns(role, found, schema[found], kind, categories[role], file.name)
        if self.parts is not None:
            columns.append(pl.lit(self.parts[at], dtype=pl.Int8).alias("part"))
        frame = table.frame.select(columns)
        fine = any(expression.meta.output_name() == "fraction" for expression in columns)
        return _Opened(file, frame, table.frame, names, unit, table.untyped, fine)

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

    def _events(
        self, frame: pl.DataFrame, opened: list[_Opened], unset_times: Sequence[Any]
    ) -> tuple[Events, list[str]]:
        _check_readable(frame, opened)
        codes, ids = {}, {}
        for role in ("user", "item"):
            as_int = {"int": "always", "auto": "auto" if role in opened[0].untyped else "never", "str": "never"}[
                self.ids
            ]
            codes[role], ids[role] = encode_ids(frame[role], as_int, role)
        time, nanoseconds = None, None
        remarks = _blanks(frame)
        if "time" in frame.columns:
            fractions = frame["fraction"] if "fraction" in frame.columns else None
            time, nanoseconds, told = self._times(frame["time"], fractions, opened[0].unit, unset_times)
            remarks += told
        further = [name for name in frame.columns if name.startswith(FEATURE)]
        events = Events(
            user=codes["user"],
            item=codes["item"],
            user_ids=ids["user"],
            item_ids=ids["item"],
            time=time,
            rating=frame["rating"].fill_null(float("nan")).to_numpy() if "rating" in frame.columns else None,
            weight=_weights(frame["weight"]) if "weight" in frame.columns else None,
            part=frame["part"].to_numpy() if "part" in frame.columns else None,
            nanoseconds=nanoseconds,
            row=np.arange(len(frame), dtype=np.uint32 if len(frame) < 2**32 else np.uint64) if further else None,
            columns=frame.select(pl.col(name).alias(name.removeprefix(FEATURE)) for name in further)
            if further
            else None,
        )
        return events, remarks

    def _times(
        self, whole: pl.Series, fractions: pl.Series | None, fixed: str | None, unset_times: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
        unit = fixed or self.time_unit
        present = whole.is_not_null().to_numpy()
        rest = None if fractions is None else fractions.fill_null(0.0).to_numpy()
        if rest is not None:
            rest = rest[present] if rest.any() else None
        milliseconds, finer, used = read_times(whole.drop_nulls().to_numpy(), rest, unit)
        times = np.full(len(whole), MISSING_TIME, dtype=np.int64)
        times[present] = milliseconds
        nanoseconds: np.ndarray | None = None
        if finer is not None:
            nanoseconds = np.zeros(len(whole), dtype=np.int32)
            nanoseconds[present] = finer
        remarks = []
        for value in unset_times:  # of dates a number counts seconds, as where it became a date
            at, within = moment(value, "s" if fixed else used)
            times[(times == at) & (within == (0 if nanoseconds is None else nanoseconds))] = MISSING_TIME
        known = times[times != MISSING_TIME]
        if not len(known):
            return times, nanoseconds, []
        if found := unset(known):
            remarks.append(unset_text(found))
        if unit is not None:
            return times, nanoseconds, remarks
        first, last = (str(np.datetime64(int(end), "ms"))[:19] for end in (known.min(), known.max()))
        if used == "s" and np.abs(known).max() < 10**11:
            warnings.warn(
                f"times run up to {whole.max()!s}, too small for epoch times of today; read as seconds they end "
                f"in {last[:4]}: pass time_unit= (minutes, days, ...) or time_format= if they are something else",
                DataWarning,
                stacklevel=2,
            )
        return times, nanoseconds, [f"time read as epoch {used!r}: {first} to {last}", *remarks]


@dataclass(frozen=True)
class _Opened:
    """One file, ready to be collected."""

    file: Path | Frame
    frame: pl.LazyFrame  # the columns of _ROLES and their bad_ marks
    table: pl.LazyFrame  # as in the file
    names: dict[str, str]  # role -> column of table
    unit: str | None  # of time, if its type fixes it
    untyped: frozenset[str]
    fine: bool  # whether times may have a fraction


def hash_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Size and SHA-256 of each file, read in pieces."""
    found = []
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append({"bytes": file.stat().st_size, "sha256": digest})
    return found


def _check_readable(frame: pl.DataFrame, opened: list[_Opened]) -> None:
    for role in opened[0].names:
        if f"bad_{role}" in frame.columns and frame[f"bad_{role}"].any():
            _check_unreadable(role, frame[f"bad_{role}"], opened)


def _check_unreadable(role: str, bad: pl.Series, opened: list[_Opened]) -> None:
    """Raise DataError with a sample of the values that could not be read, unless they are all empty."""
    raw = pl.concat([one.table.select(pl.col(one.names[role]).cast(pl.String).alias(role)) for one in opened])
    rows = bad.arg_true()
    values = raw.head(len(bad)).collect()[role].gather(rows)
    wrong = ~values.str.strip_chars().str.to_lowercase().is_in(["", "nan"])
    if not wrong.any():
        return
    pairs = zip(values.filter(wrong).head(3), rows.filter(wrong).head(3), strict=True)
    shown = ", ".join(f"{value!r} (event {row + 1})" for value, row in pairs)
    advice = {"time": "pass time_format= or time_unit=, or repair these rows"}.get(role, "repair or drop these rows")
    advice += ', or call it a "category"' if role.startswith(FEATURE) else ""
    wanted = {"time": "times", "user": "whole numbers", "item": "whole numbers"}.get(role, "numbers")
    raise DataError(
        f"{int(wrong.sum()):,} of {len(bad):,} values of {role} are not {wanted}, such as {shown}: {advice}"
    )


def _check_beginning(opened: list[_Opened], allow_missing: bool) -> None:
    """Refuse what is wrong in the first rows of a large file already, before the whole is read."""
    for one in opened:
        if isinstance(one.file, Path) and one.file.stat().st_size > _LARGE:
            beginning = one.frame.head(_BEGINNING).collect(engine="streaming")
            _check_readable(beginning, [one])
            if not allow_missing:
                _refuse_missing(beginning, len(beginning), f"the first {len(beginning):,} events of {one.file.name}")


def _refuse_missing(frame: pl.DataFrame, size: int, where: str = "") -> None:
    """Raise DataError if an id or a time is missing that is not unreadable, which is said with a sample later."""
    lacks: dict[str, int] = {}
    for role in ("user", "item", "time"):
        if role in frame.columns and frame[role].null_count() and not frame[f"bad_{role}"].any():
            lacks[role] = frame[role].null_count()
    if lacks:
        raise refuse_missing(lacks, where or f"{size:,} events")


def _blanks(frame: pl.DataFrame) -> list[str]:
    """Remarks on ids that had blanks around them."""
    counts = {role: int(frame[f"blank_{role}"].sum()) for role in ("user", "item")}
    return [
        f"{count:,} {role} ids had blanks around them, which were taken off" for role, count in counts.items() if count
    ]


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


def _listed(files: Sequence[Path | Frame]) -> str:
    first = files[0]
    return (f"the table {first.name}" if isinstance(first, Frame) else str(first)) + (
        f" and {len(files) - 1} more" if len(files) > 1 else ""
    )
