"""What the columns of an event log mean: which is the user, the item, the time, and how to read them as numbers.

Every source ends as the same five columns: ``user`` and ``item`` (Int64, or Categorical for strings), ``time`` (Int64
or Float64 in the source's own unit), ``rating`` and ``weight`` (Float32). A value that cannot be read becomes null and
is marked in ``bad_<column>``, so that the caller can look whether it is merely empty, or show it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import polars as pl

from recsys.errors import DataError

MILLISECONDS = {  # one unit in milliseconds, as numerator and denominator
    "ns": (1, 1_000_000),
    "us": (1, 1_000),
    "ms": (1, 1),
    "s": (1_000, 1),
    "minutes": (60_000, 1),
    "hours": (3_600_000, 1),
    "days": (86_400_000, 1),
}
DAY = 86_400_000
_ISO = (
    "%Y-%m-%d",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f UTC",
    "%Y-%m-%dT%H:%M:%S%.fZ",
    "%Y-%m-%d %H:%M:%S%.fZ",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S%.f",
)
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_LAST_MILLISECOND = 253_402_300_800_000  # the year 10000


@dataclass(frozen=True)
class ColumnMap:
    """Names (or positions from 0) of the columns that matter; None where there is none."""

    user: str | int
    item: str | int
    time: str | int | None = None
    rating: str | int | None = None
    weight: str | int | None = None

    def resolve(self, names: Sequence[str], where: str) -> dict[str, str]:
        """Role -> name of an existing column, for every role that is given.

        Raises:
            DataError: no such column (the nearest name is offered), or two roles share one.
        """
        roles = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        found = {role: find_column(column, names, role, where) for role, column in roles.items()}
        if found["user"] == found["item"]:
            raise DataError(f"{where}: user and item are both read from column {found['user']!r}: name two columns")
        return found


def find_column(column: str | int, names: Sequence[str], role: str, where: str) -> str:
    """The name of ``column``, given by name or position.

    Raises:
        DataError: it is not there; the message names the closest one.
    """
    if isinstance(column, int):
        if not 0 <= column < len(names):
            raise DataError(f"{where} has {len(names)} columns, so {role}={column} does not exist: count from 0")
        return names[column]
    if column in names:
        return column
    raise DataError(
        f"{where} has no column {column!r} (asked for as {role}{suggest(column, names)}); it has: "
        f"{', '.join(names[:20])}. Pass {role}=<one of these>"
    )


def suggest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``names``, empty if none is close."""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    inside = [known for lower, known in by_lower.items() if name.lower() in lower or lower in name.lower()]
    found = [by_lower[close[0]]] if close else inside[:1]
    return f"; did you mean {found[0]!r}?" if found else ""


def id_columns(
    role: str, name: str, dtype: pl.DataType, ids: str, categories: pl.Categories, where: str
) -> list[pl.Expr]:
    """Expressions ``role`` (Int64, or Categorical with "" as null) and ``bad_<role>`` of an id column.

    Raises:
        DataError: the dtype cannot hold ids.
    """
    raw = pl.col(name)
    if dtype.is_integer() and ids != "str":
        return [raw.cast(pl.Int64).alias(role), _never(role)]
    if dtype.is_float():  # integers with gaps come out of pandas as floats
        present = raw.is_not_null() & raw.is_not_nan()
        whole = pl.when(present & (raw == raw.round())).then(raw).cast(pl.Int64, strict=False)
        bad = (present & whole.is_null()).alias(f"bad_{role}")
        return [(whole.cast(pl.String).cast(pl.Categorical(categories)) if ids == "str" else whole).alias(role), bad]
    if not (dtype.is_integer() or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))):
        raise DataError(f"{where}: column {name!r} is {dtype}; {role} ids must be ints or strings")
    text = raw.cast(pl.String)
    text = pl.when(text != "").then(text)
    return [text.cast(pl.Categorical(categories)).alias(role), _never(role)]


def number_columns(role: str, name: str, dtype: pl.DataType, where: str) -> list[pl.Expr]:
    """Expressions ``role`` (Float32) and ``bad_<role>`` of a rating or weight column."""
    if not (dtype.is_numeric() or isinstance(dtype, (pl.String, pl.Boolean))):
        raise DataError(f"{where}: column {name!r} is {dtype}; {role} must be a number")
    return _checked_cast(role, pl.col(name), pl.Float32())


def time_columns(
    name: str, dtype: pl.DataType, sample: pl.Series, time_format: str | None, where: str
) -> tuple[list[pl.Expr], str | None]:
    """Expressions ``time`` and ``bad_time``, and the unit if the column's type fixes it (None: numbers, unit unknown).

    Args:
        sample: some raw values, to tell numbers and the forms of dates apart.

    Raises:
        DataError: the sample is neither numbers nor dates in a known form.
    """
    raw = pl.col(name)
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return [raw.dt.epoch("ms").alias("time"), _never("time")], "ms"
    if dtype.is_integer():
        return [raw.cast(pl.Int64).alias("time"), _never("time")], None
    if dtype.is_float():
        return [pl.when(raw.is_finite()).then(raw).cast(pl.Float64).alias("time"), _never("time")], None
    if not isinstance(dtype, pl.String):
        raise DataError(f"{where}: time column {name!r} is {dtype}; it must hold numbers, dates or strings")
    sample = sample.cast(pl.String).drop_nulls()
    sample = sample.filter(sample != "")
    if time_format is None and len(sample) and sample.str.contains(_NUMBER).mean() > 0.5:  # type: ignore[operator]
        return _checked_cast("time", raw.str.strip_chars(), pl.Float64()), None
    form = time_format or _date_form(sample, name, where)
    parsed = _parse_dates(raw, form)
    return [parsed.alias("time"), (raw.is_not_null() & parsed.is_null()).alias("bad_time")], "ms"


def to_milliseconds(values: np.ndarray, unit: str | None) -> tuple[np.ndarray, str]:
    """Times in ``unit`` as int64 milliseconds since the epoch, with the unit; None detects it by magnitude.

    Raises:
        DataError: the numbers mix units or lie beyond the year 9999.

    >>> to_milliseconds(np.array([881250949, 881250950]), None)
    (array([881250949000, 881250950000]), 's')
    """
    if not len(values):
        return values.astype(np.int64), unit or "ms"
    unit = unit or detect_unit(values)
    times, over = MILLISECONDS[unit]
    largest = float(np.abs(values).max()) * times / over
    if largest > _LAST_MILLISECOND:
        raise DataError(f"time {values.max()} read in {unit!r} lies beyond the year 9999: pass another time_unit")
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64) * times // over, unit
    return np.rint(values * (times / over)).astype(np.int64), unit


def detect_unit(values: np.ndarray) -> Literal["s", "ms", "us", "ns"]:
    """The unit in which epoch times of this magnitude fall into 1973..5138."""
    lowest, highest = float(values.min()), float(np.abs(values).max())
    unit = _unit_of(highest)
    if lowest > 1e8 and _unit_of(lowest) != unit:
        raise DataError(
            f"times mix units: {values.min()} looks like {_unit_of(lowest)!r}, {values.max()} like {unit!r}; "
            "bring them to one unit, or pass time_unit if this is one"
        )
    return unit


def _unit_of(value: float) -> Literal["s", "ms", "us", "ns"]:
    return "s" if value < 1e11 else "ms" if value < 1e14 else "us" if value < 1e17 else "ns"


def _never(role: str) -> pl.Expr:
    return pl.lit(False).alias(f"bad_{role}")


def _checked_cast(role: str, raw: pl.Expr, dtype: pl.DataType) -> list[pl.Expr]:
    number = raw.cast(dtype, strict=False)
    number = pl.when(number.is_not_nan()).then(number)
    return [number.alias(role), (raw.is_not_null() & number.is_null()).alias(f"bad_{role}")]


def _parse_dates(raw: pl.Expr, form: str) -> pl.Expr:
    if any(code in form for code in ("%H", "%I", "%T", "%s", "%+", "%c", "%R")):
        return raw.str.to_datetime(form, strict=False, time_unit="ms").dt.epoch("ms")
    return raw.str.to_date(form, strict=False).dt.epoch("ms")


def _date_form(sample: pl.Series, name: str, where: str) -> str:
    """The ISO form that most of the sample follows (what does not is then shown as unparsable)."""
    best, share = "", 0.0
    for form in _ISO:
        parsed = sample.to_frame("raw").select(_parse_dates(pl.col("raw"), form).is_not_null().mean()).item() or 0.0
        if parsed > share:
            best, share = form, parsed
    if share <= 0.5:
        shown = ", ".join(repr(value) for value in sample.head(3))
        raise DataError(
            f"{where}: time column {name!r} holds {shown or 'no value'}, neither epoch numbers nor ISO dates: pass "
            "time_format= (strptime codes, such as '%m %d, %Y')"
        )
    return best
