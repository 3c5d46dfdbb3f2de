"""Columns of tables, as files and frames hold them, to typed columns; what does not fit a kind is shown.

Legend: R rows of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.features.column import KINDS, Column
from recsys.features.features import Features
from recsys.ids.vocabulary import Vocabulary
from recsys.readers.blanks import BLANKS
from recsys.readers.columns import find_column
from recsys.readers.events import encode_ids, take_ids

EXACT = 2**24  # whole numbers up to this are themselves in 32-bit floats; larger ones are codes rather than amounts
_OTHER = (",", ";", "|")  # what may separate the values of a list, to give a hint


def kind_of(values: pl.Series) -> str:
    """The kind of a column that nobody named: numbers and lists of strings are told by their type, the rest is text."""
    dtype = values.dtype
    if isinstance(dtype, (pl.Boolean, pl.Categorical, pl.Enum)):
        return "category"
    if isinstance(dtype, (pl.List, pl.Array)) and isinstance(dtype.inner, (pl.String, pl.Categorical, pl.Enum)):
        return "list"
    if dtype.is_integer():
        return "number" if not len(values) or abs(int(values.abs().max() or 0)) <= EXACT else "text"  # type: ignore[arg-type]
    return "number" if dtype.is_float() or isinstance(dtype, pl.Decimal) else "text"


def column_of(values: pl.Series, kind: str, where: str, separator: str | None = None) -> Column:
    """A column of a table as one of the kinds.

    Args:
        where: what the table is called in errors.
        separator: between the values of a list that is written as text (default: "|").

    Raises:
        DataError: values are not of the kind; the message counts and shows them.
    """
    if kind == "text":
        return _texts(values.to_frame().select(as_text(values.name, values.dtype)).to_series())
    if kind == "number":
        return _numbers(values, where)
    if kind == "category":
        return _coded(_names(values, where))
    if kind == "list":
        return _lists(values, where, separator)
    raise DataError(f"the kind of a column must be one of {', '.join(KINDS)}, found {kind!r}")


def features_of(table: pl.DataFrame, kinds: Mapping[str, str], where: str, separator: str | None = None) -> Features:
    """Every column of a table as the kind that ``kinds`` names, else as :func:`kind_of` finds."""
    return Features({one.name: column_of(one, kinds.get(one.name) or kind_of(one), where, separator) for one in table})


def checked_kinds(
    kinds: Mapping[str, str] | None, names: Sequence[str] | None = None, where: str = ""
) -> dict[str, str]:
    """``kinds`` by column; with ``names``, those of the table, every one of them must be there.

    Raises:
        ValueError: a kind is none of the four.
        DataError: a column is not there; the message names the closest one.
    """
    for name, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise ValueError(f"the kind of column {name!r} must be one of {', '.join(KINDS)}, found {kind!r}")
    if names is None:
        return dict(kinds or {})
    return {find_column(name, names, "kinds", where): kind for name, kind in (kinds or {}).items()}


def notes_of(features: Features, what: str, named: Mapping[str, str]) -> list[str]:
    """A line on each column of ``what`` (such as "item") that is no text or that ``named`` gives a kind."""
    return [f"{what} column {name}: {one}" for name, one in features.items() if one.kind != "text" or name in named]


def as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column written out: lists joined with ", ", numbers as they are, "" for what is missing."""
    column = pl.col(name)
    if isinstance(dtype, (pl.List, pl.Array)):
        if isinstance(dtype.inner, (pl.List, pl.Array, pl.Struct)):
            column = column.cast(pl.List(pl.List(pl.String))).list.eval(pl.element().list.join(", "))
        return column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True).fill_null("")
    if isinstance(dtype, pl.Struct):
        return column.struct.json_encode().fill_null("")
    return column.cast(pl.String).fill_null("")


def _texts(values: pl.Series) -> Column:
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values.str.len_bytes().to_numpy(), out=offsets[1:])
    blob = str(values.str.join("").item() or "").encode() if len(values) else b""
    return Column("text", np.frombuffer(blob, np.uint8), offsets)


def _numbers(values: pl.Series, where: str) -> Column:
    dtype = values.dtype
    if isinstance(dtype, pl.Null):
        return Column("number", np.full(len(values), np.nan, np.float32))
    if not (dtype.is_numeric() or isinstance(dtype, (pl.Boolean, pl.String))):
        raise DataError(f"{where}: column {values.name!r} is {dtype}, which is not a number: call it another kind")
    raw = _filled(values) if isinstance(dtype, pl.String) else values
    found = raw.cast(pl.Float64, strict=False)
    most = float(np.finfo(np.float32).max)
    wrong = raw.is_not_null() & (found.is_null() | (found.is_not_nan() & (found.abs() > most)))
    if isinstance(dtype, pl.String):
        wrong &= raw.str.to_lowercase() != "nan"
    if wrong.any():
        shown = ", ".join(
            f"{value!r} (row {row + 1})"
            for value, row in zip(raw.filter(wrong).head(3), wrong.arg_true().head(3), strict=True)
        )
        raise DataError(
            f"{where}: {int(wrong.sum()):,} of {len(values):,} values of column {values.name!r} are not finite "
            f'numbers, such as {shown}: repair or empty them, or call the column a "category" or "text"'
        )
    whole = dtype.is_integer() or isinstance(dtype, pl.Boolean)
    return Column("number", found.fill_null(float("nan")).to_numpy().astype(np.float32), whole=whole)


def _names(values: pl.Series, where: str) -> pl.Series:
    """Categories as strings, null where there is none."""
    dtype = values.dtype
    if dtype.is_nested() or isinstance(dtype, (pl.Object, pl.Binary)):
        hint = ': its kind is "list"' if isinstance(dtype, (pl.List, pl.Array)) else ""
        raise DataError(f"{where}: column {values.name!r} is {dtype}, and a category is one value{hint}")
    if dtype.is_float():
        known = values.drop_nulls().drop_nans()
        values = values.fill_nan(None)
        if bool((known == known.round()).all()):
            values = values.cast(pl.Int64)
    return values if isinstance(dtype, pl.Categorical) else _filled(values.cast(pl.String))


def _filled(text: pl.Series) -> pl.Series:
    """Text without the blanks around it, null where nothing is left."""
    text = text.str.strip_chars(BLANKS)
    return text.set(text == "", None)


def _coded(names: pl.Series) -> Column:
    codes, ids = encode_ids(_categorical(names), "never", names.name)
    return Column("category", codes + np.int32(1), categories=_categories(ids))


def _categorical(names: pl.Series) -> pl.Series:
    return names if isinstance(names.dtype, pl.Categorical) else names.cast(pl.Categorical(pl.Categories.random()))


def _categories(ids: Any) -> Vocabulary:
    return Vocabulary(take_ids(ids, np.arange(len(ids))), first=1)


def _lists(values: pl.Series, where: str, separator: str | None) -> Column:
    if isinstance(values.dtype, pl.String):
        values = _split(values, where, "|" if separator is None else separator)
    elif not isinstance(values.dtype, (pl.List, pl.Array)):
        raise DataError(f'{where}: column {values.name!r} is {values.dtype}, not a list: its kind may be "category"')
    rows = values.arr.to_list() if isinstance(values.dtype, pl.Array) else values
    sizes = rows.list.len().fill_null(0).to_numpy()
    names = _names(rows.explode(empty_as_null=False, keep_nulls=False), where)
    if not isinstance(names.dtype, pl.Categorical):
        names = _filled(names)
    codes, ids = encode_ids(_categorical(names), "never", values.name)
    owner = np.repeat(np.arange(len(rows)), sizes)[codes >= 0]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(rows)), out=offsets[1:])
    return Column("list", codes[codes >= 0] + np.int32(1), offsets, _categories(ids))


def _split(values: pl.Series, where: str, separator: str) -> pl.Series:
    """Lists written as text, apart."""
    if not values.str.contains(separator, literal=True).any():
        other = next((mark for mark in _OTHER if values.str.contains(mark, literal=True).any()), None)
        if other is not None:
            sample = values.filter(values.str.contains(other, literal=True).fill_null(False))[0]
            raise DataError(
                f"{where}: no value of column {values.name!r} has a {separator!r} in it, and some have {other!r}, such "
                f"as {sample[:80]!r}: pass list_separator={other!r}"
            )
    return values.str.split(separator)
