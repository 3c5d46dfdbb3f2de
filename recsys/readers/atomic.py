"""RecBole's atomic files, read and written without RecBole: tab separated, typed header such as ``user_id:token``.

The four types: ``token`` (one string), ``token_seq`` (strings separated by blanks), ``float``, ``float_seq``.
Reference: the atomic file format of https://recbole.io/atomic_files.html
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import polars as pl

from recsys.errors import DataError
from recsys.readers.blanks import stripped
from recsys.storage.files import replace

TYPES = ("token", "token_seq", "float", "float_seq")
SUFFIXES = (".inter", ".item", ".user", ".net", ".kg", ".link")


def read_header(path: str | Path) -> dict[str, str]:
    """Column name -> type of an atomic file, in order.

    Raises:
        DataError: the file is missing or its first line is not a typed header.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        fields = stream.readline().rstrip("\r\n").split("\t")
    header = {}
    for field in fields:
        name, colon, kind = stripped(field).rpartition(":")
        name, kind = stripped(name), stripped(kind)
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
        path,
        glob=False,
        separator="\t",
        has_header=False,
        skip_rows=1,
        schema=dict.fromkeys(names, pl.String()),
        quote_char=None,
        raise_if_empty=False,
    )


def scan_atomic(path: str | Path) -> pl.LazyFrame:
    """A typed atomic file, lazily: token -> String, float -> Float64, sequences -> lists of these.

    Raises:
        DataError: no typed header; collecting raises where a float is not a number.
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
    """Write ``frame`` as an atomic file, beside and then in place; ``.gz`` is compressed.

    The format has one blank for what is missing, empty text and an empty list: all three are read back as null.

    Args:
        types: column -> type; columns left out are judged by their dtype (numbers that are not ids: pass ``float``
            or keep them Float64; integers and strings become tokens, lists become sequences).

    Raises:
        DataError: an unknown type, a value that is not of its type, or one that the format cannot hold: a tab or line
            break in a token or a name, a blank in a sequence, an empty or missing element of a sequence.
    """
    path, types = Path(path), dict(types or {})
    for name, kind in types.items():
        if name not in frame.columns or kind not in TYPES:
            raise DataError(f"{name!r}: {kind!r} is not a column of the frame with a type of {', '.join(TYPES)}")
    kinds = {name: types.get(name) or _kind(dtype) for name, dtype in frame.schema.items()}
    for name in kinds:
        if any(mark in name for mark in "\t\r\n"):
            raise DataError(f"the column name {name!r} holds a separator of the format: rename the column")
    try:
        text = frame.select(_as_text(name, kind, frame.schema[name]) for name, kind in kinds.items())
    except pl.exceptions.InvalidOperationError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path.name} cannot be written with the types {kinds}: {reason}") from error
    for name, kind in kinds.items():
        _refuse_separators(frame[name], text[name], kind)

    def write(partial: Path) -> None:
        with cast(IO[bytes], gzip.open(partial, "wb")) if path.suffix == ".gz" else partial.open("wb") as stream:
            stream.write(("\t".join(f"{name}:{kind}" for name, kind in kinds.items()) + "\n").encode())
            text.write_csv(stream, separator="\t", include_header=False, quote_style="never")

    replace(path, write)


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
    return (column.cast(pl.Float64) if kind == "float" and not dtype.is_numeric() else column).cast(pl.String)


def _refuse_separators(values: pl.Series, text: pl.Series, kind: str) -> None:
    sequence = kind.endswith("_seq")
    parts = values.drop_nulls().explode(empty_as_null=False).cast(pl.String) if sequence else text
    if sequence and (parts.is_null() | (parts == "")).any():
        raise DataError(f"column {values.name!r}: a {kind} cannot hold an empty or missing element; drop it first")
    pattern = r"\s" if sequence else r"[\t\n\r]"
    wrong = parts.filter(parts.str.contains(pattern).fill_null(False))
    if len(wrong):
        raise DataError(
            f"column {values.name!r}: {wrong[0]!r} cannot be written as {kind}, it holds a separator of the format; "
            "replace blanks, tabs and line breaks in it first"
        )
