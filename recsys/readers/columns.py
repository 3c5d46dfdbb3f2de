"""What the columns of an event log mean: which is the user, the item, the time, and how to read them as numbers.

Every source ends as the same columns: ``user`` and ``item`` (Int64, or Categorical for strings), ``time`` (Int64, whole
units of the source) with ``fraction`` (Float64, the rest of it, where there can be one), ``rating`` and ``weight``
(Float32). A value that cannot be read becomes null and is marked in ``bad_<column>``, so that the caller can look
whether it is merely empty, or show it; ids that had blanks around them are marked in ``blank_<column>``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import polars as pl

from recsys.errors import DataError
from recsys.readers.blanks import BLANKS, stripped
from recsys.readers.times import MILLISECONDS as MILLISECONDS
from recsys.readers.times import detect_unit as detect_unit

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
    """Expressions of an id column: ``role`` (Int64, or Categorical with "" as null), ``bad_<role>``, ``blank_<role>``.

    Raises:
        DataError: the dtype cannot hold ids.
    """
    raw = pl.col(name)
    if dtype.is_integer() and ids != "str":
        return [raw.cast(pl.Int64).alias(role), _never(role), _never(role, "blank")]
    if dtype.is_float():  # integers with gaps come out of pandas as floats
        present = raw.is_not_null() & raw.is_not_nan()
        whole = pl.when(present & (raw == raw.round())).then(raw).cast(pl.Int64, strict=False)
        bad = (present & whole.is_null()).alias(f"bad_{role}")
        found = whole.cast(pl.String).cast(pl.Categorical(categories)) if ids == "str" else whole
        return [found.alias(role), bad, _never(role, "blank")]
    if not (dtype.is_integer() or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum))):
        raise DataError(f"{where}: column {name!r} is {dtype}; {role} ids must be ints or strings")
    given = raw.cast(pl.String)
    text = given.str.strip_chars(BLANKS)
    blank = (text.str.len_bytes() < given.str.len_bytes()).fill_null(False).alias(f"blank_{role}")
    text = pl.when(text != "").then(text)
    return [text.cast(pl.Categorical(categories)).alias(role), _never(role), blank]


def plain_names(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The table with no blanks around the names of its columns; as it is, where two would then be called the same."""
    names = frame.collect_schema().names()
    plain = [stripped(name) for name in names]
    return (
        frame if plain == names or len(set(plain)) < len(plain) else frame.rename(dict(zip(names, plain, strict=True)))
    )


def number_columns(role: str, name: str, dtype: pl.DataType, where: str) -> list[pl.Expr]:
    """Expressions ``role`` (Float32) and ``bad_<role>`` of a rating or weight column."""
    if not (dtype.is_numeric() or isinstance(dtype, (pl.String, pl.Boolean))):
        raise DataError(f"{where}: column {name!r} is {dtype}; {role} must be a number")
    raw = pl.col(name).str.strip_chars(BLANKS) if isinstance(dtype, pl.String) else pl.col(name)
    return _checked_cast(role, raw, pl.Float32())


def feature_columns(
    role: str, name: str, dtype: pl.DataType, kind: str, categories: pl.Categories, where: str
) -> list[pl.Expr]:
    """Expressions of a further column under ``role``: of numbers as :func:`number_columns`, of written categories
    Categorical, and what else there is as it is."""
    if kind == "number":
        return number_columns(role, name, dtype, where)
    raw = pl.col(name)
    if kind == "category" and isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        text = raw.cast(pl.String).str.strip_chars(BLANKS)
        raw = pl.when(text != "").then(text).cast(pl.Categorical(categories))
    return [raw.alias(role)]


def time_columns(
    name: str, dtype: pl.DataType, sample: pl.Series, time_format: str | None, where: str
) -> tuple[list[pl.Expr], str | None]:
    """Expressions ``time``, ``bad_time`` and, where the source can be finer than its unit, ``fraction``; and the unit
    if the column's type fixes it (None: numbers, unit unknown).

    Args:
        sample: some raw values, to tell numbers and the forms of dates apart.

    Raises:
        DataError: the sample is neither numbers nor dates in a known form.
    """
    raw = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        return [*_of_datetime(raw, dtype.time_unit), _never("time")], "us"
    if isinstance(dtype, pl.Date):
        return [raw.cast(pl.Datetime("us")).to_physical().alias("time"), _never("time")], "us"
    if dtype.is_integer():
        return [raw.cast(pl.Int64).alias("time"), _never("time")], None
    if dtype.is_float():
        return [*_of_float(pl.when(raw.is_finite()).then(raw).cast(pl.Float64)), _never("time")], None
    if isinstance(dtype, pl.Decimal):
        whole = raw.floor()
        rest = (raw - whole).cast(pl.Float64).alias("fraction")
        return [whole.cast(pl.Int64).alias("time"), rest, _never("time")], None
    if not isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{where}: time column {name!r} is {dtype}; it must hold numbers, dates or strings")
    text = raw.cast(pl.String).str.strip_chars(BLANKS)
    sample = sample.cast(pl.String).drop_nulls().str.strip_chars(BLANKS)
    sample = sample.filter(sample != "")
    if time_format is None and len(sample) and sample.str.contains(_NUMBER).mean() > 0.5:  # type: ignore[operator]
        parsed, unit = _of_digits(text), None
    else:
        parsed, unit = _of_dates(text, time_format or _date_form(sample, name, where)), "us"
    return [*parsed, (raw.is_not_null() & parsed[0].is_null()).alias("bad_time")], unit


def _never(role: str, mark: str = "bad") -> pl.Expr:
    return pl.lit(False).alias(f"{mark}_{role}")


def _checked_cast(role: str, raw: pl.Expr, dtype: pl.DataType) -> list[pl.Expr]:
    number = raw.cast(dtype, strict=False)
    number = pl.when(number.is_not_nan()).then(number)
    return [number.alias(role), (raw.is_not_null() & number.is_null()).alias(f"bad_{role}")]


def _of_datetime(moment: pl.Expr, unit: str) -> list[pl.Expr]:
    """``time`` in whole microseconds and, of nanoseconds, ``fraction``."""
    counted = moment.to_physical()
    if unit == "ns":
        return [(counted // 1000).alias("time"), ((counted % 1000) / 1000).alias("fraction")]
    return [(counted * (1000 if unit == "ms" else 1)).alias("time")]


def _of_float(number: pl.Expr) -> list[pl.Expr]:
    """``time`` and ``fraction`` of floats: the fraction is the shortest decimal (3 or 6 digits) that the float stands
    for, so that 1396860669.277 is .277 and no two floats become one time."""
    whole = number.floor()
    rest = number - whole
    for digits in (6, 3):
        shorter = (rest.clip(0, 1) * 10**digits).round() / 10**digits
        rest = pl.when(whole + shorter == number).then(shorter).otherwise(rest)
    return [whole.cast(pl.Int64, strict=False).alias("time"), rest.alias("fraction")]


def _of_digits(text: pl.Expr) -> list[pl.Expr]:
    """``time`` and ``fraction`` of written numbers, by their digits: a float would lose those behind the sixteenth."""
    integer = text.cast(pl.Int64, strict=False)
    other = pl.when(integer.is_null()).then(text)  # what follows costs little where it is null
    parts = other.str.splitn(".", 2)
    digits = parts.struct.field("field_1").fill_null("")
    rest = (pl.lit("0.") + digits).cast(pl.Float64, strict=False)
    whole = parts.struct.field("field_0").str.replace(r"^([+-]?)$", "${1}0").cast(pl.Int64, strict=False)  # of ".5"
    known = whole.is_not_null() & digits.str.contains(r"^\d*$") & other.str.contains(r"\d")
    below = other.str.starts_with("-") & (rest > 0)  # -1.5 is -2 and .5 above it
    floats = other.cast(pl.Float64, strict=False)
    time, fraction = _of_float(pl.when(floats.is_finite() & ~known).then(floats))
    return [
        pl.coalesce(integer, pl.when(known).then(whole - below.cast(pl.Int64)).otherwise(time)).alias("time"),
        pl.when(known).then(pl.when(below).then(1 - rest).otherwise(rest)).otherwise(fraction).alias("fraction"),
    ]


def _of_dates(text: pl.Expr, form: str) -> list[pl.Expr]:
    """``time`` and ``fraction`` of written dates; microseconds do not end in the year 2262 as nanoseconds do."""
    timed = any(code in form for code in ("%H", "%I", "%T", "%s", "%+", "%c", "%R", "%k", "%l"))
    time = _parse_dates(text, form).alias("time")
    if not timed or not any(code in form for code in ("f", "%+")):
        return [time]
    finer = text.str.extract(r"[.,]\d{6}(\d{1,3})").str.pad_end(3, "0").cast(pl.Float64, strict=False)
    return [time, (finer.fill_null(0) / 1000).alias("fraction")]


def _parse_dates(text: pl.Expr, form: str) -> pl.Expr:
    """(E,) Int64 microseconds since the epoch."""
    if any(code in form for code in ("%H", "%I", "%T", "%s", "%+", "%c", "%R", "%k", "%l")):
        if ",%f" in form:
            text, form = text.str.replace(r",(\d)", ".$1"), form.replace(",%f", "%.f")
        form = form.replace(".%f", "%.f")  # in Python %f is a fraction; polars takes it for a count of nanoseconds
        return text.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")
    return text.str.to_date(form, strict=False).cast(pl.Datetime("us")).dt.epoch("us")


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
