"""RecBole's atomic files, read and written without RecBole: tab separated, typed header such as ``user_id:token``.

The four types: ``token`` (one string), ``token_seq`` (strings separated by blanks), ``float``, ``float_seq``.
Reference: the atomic file format of https://recbole.io/atomic_files.html
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")
SUFFIXES = (".inter", ".item", ".user", ".net", ".kg", ".link")


def read_header(path: str | Path) -> dict[str, str]:
    """Column name -> type of an atomic file, in order.

    Raises:
        DataError: the file is missing or its first line is no typed header.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        fields = stream.readline().rstrip("\r\n").split("\t")
    header = {}
    for field in fields:
        name, colon, kind = field.rpartition(":")
        if not colon or kind not in TYPES:
            raise DataError(
                f"{path.name} has no typed header: expected tab-separated name:type with type one of "
                f"{', '.join(TYPES)}, found {field[:60]!r}; read it with format='csv' if it is an ordinary table"
            )
        if name in header:
            raise DataError(f"{path.name} names the column {name!r} twice")
        header[name] = kind
    return header


def scan_atomic_text(path: str | Path) -> pl.LazyFrame:
    """All columns of an atomic file as strings, lazily, under their plain names."""
    names = list(read_header(path))
    return pl.scan_csv(
        path, separator="\t", has_header=False, skip_rows=1, new_columns=names, infer_schema=False, quote_char=None
    )


def scan_atomic(path: str | Path) -> pl.LazyFrame:
    """A typed atomic file, lazily: token -> String, float -> Float64, sequences -> lists of these.

    Raises:
        DataError: no typed header; collecting raises where a float is no number.
    """
    blank = pl.lit(None, dtype=pl.List(pl.String))
    columns = []
    for name, kind in read_header(path).items():
        column = pl.col(name)
        if kind.endswith("_seq"):
            column = pl.when(column.is_null()).then(blank).otherwise(column.str.extract_all(r"\S+"))
        if kind == "float":
            column = column.cast(pl.Float64)
        elif kind == "float_seq":
            column = column.cast(pl.List(pl.Float64))
        columns.append(column.alias(name))
    return scan_atomic_text(path).select(columns)


def write_atomic(frame: pl.DataFrame, path: str | Path, types: Mapping[str, str] | None = None) -> None:
    """Write ``frame`` as an atomic file, beside and then in place.

    Args:
        types: column -> type; columns left out are judged by their dtype (numbers that are not ids: pass ``float``
            or keep them Float64; integers and strings become tokens, lists become sequences).

    Raises:
        DataError: an unknown type, or a token that holds a tab or a line break (or, in a sequence, a blank).
    """
    path, types = Path(path), dict(types or {})
    for name, kind in types.items():
        if name not in frame.columns or kind not in TYPES:
            raise DataError(f"{name!r}: {kind!r} is no column of the frame with a type of {', '.join(TYPES)}")
    kinds = {name: types.get(name) or _kind(dtype) for name, dtype in frame.schema.items()}
    text = frame.select(_as_text(name, kind, frame.schema[name]) for name, kind in kinds.items())
    for name, kind in kinds.items():
        _refuse_separators(frame[name], text[name], kind)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(("\t".join(f"{name}:{kind}" for name, kind in kinds.items()) + "\n").encode())
            text.write_csv(stream, separator="\t", include_header=False, quote_style="never")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _kind(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return "float_seq" if dtype.inner.is_float() else "token_seq"  # type: ignore[union-attr]
    return "float" if dtype.is_float() else "token"


def _as_text(name: str, kind: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind.endswith("_seq"):
        if not isinstance(dtype, pl.List):
            raise DataError(f"column {name!r} is {dtype}, a {kind} needs a list per row")
        return column.cast(pl.List(pl.String)).list.join(" ")
    return column.cast(pl.String)


def _refuse_separators(values: pl.Series, text: pl.Series, kind: str) -> None:
    parts = values.explode().cast(pl.String) if kind == "token_seq" else text
    pattern = r"\s" if kind == "token_seq" else r"[\t\n\r]"
    wrong = parts.filter(parts.str.contains(pattern).fill_null(False))
    if len(wrong):
        raise DataError(
            f"column {values.name!r}: {wrong[0]!r} cannot be written as {kind}, it holds a separator of the format; "
            "replace blanks, tabs and line breaks in it first"
        )
