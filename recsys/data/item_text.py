"""Item tables: titles, texts, categories and numbers of items, aligned with the item rows of a vocabulary.

Legend: N items. Every column ends as an object array of ``str`` of N + 1 entries, entry 0 for padding; lists are joined
with ", ", numbers written out, what is missing is "".
"""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataError
from recsys.readers.atomic import scan_atomic_text
from recsys.readers.blanks import BLANKS
from recsys.readers.columns import find_column, plain_names
from recsys.readers.events import PLAIN_INTEGER
from recsys.readers.formats import TextOptions, detect_format, find_files, find_sources, head, scan_text
from recsys.readers.frames import Frame
from recsys.readers.log import hash_files

_ID_NAMES = ("item", "item_id", "movieId", "movie_id", "id", "itemId", "asin", "sku")
_TITLE_NAMES = ("title", "movie_title", "name")
_ID = "__item"  # the id, apart from a text column of any name
_LATIN = ("latin-1", "latin1", "iso-8859-1")


@dataclass(frozen=True)
class ItemFile:
    """Where an item table is and how to read it; :meth:`read` does."""

    path: Path | Frame
    item: str | int | None = None
    text: tuple[str | int, ...] | None = None
    title: str | int | None = None
    names: tuple[str, ...] | None = None
    format: str = "auto"
    options: TextOptions = TextOptions()  # noqa: RUF009 - frozen, so it can be shared
    encoding: str = "utf-8"
    via: tuple[Path, str, str] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read; a frame is none."""
        own = () if isinstance(self.path, Frame) else (self.path,)
        return own if self.via is None else (*own, self.via[0])

    def hashes(self) -> list[dict[str, Any]]:
        """Size and SHA-256 of each file, and of a frame."""
        own = [self.path.digest()] if isinstance(self.path, Frame) else []
        return own + hash_files(self.files)

    @property
    def untyped(self) -> bool:
        """True where the format holds ids as text, which may stand for ints."""
        return self.via is not None or self.kind not in ("parquet", "ndjson", "frame")

    @property
    def kind(self) -> str:
        """The format, detected if it is ``auto``."""
        if isinstance(self.path, Frame):
            return "frame"
        return detect_format(self.path) if self.format == "auto" else self.format

    def describe(self) -> dict[str, Any]:
        """The settings that change what is read, without the path: part of the cache key."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("path", "options", "via")}
        return {**settings, "options": vars(self.options), "via": None if self.via is None else self.via[1:]}

    def read(self) -> tuple[pl.DataFrame, list[str]]:
        """The table, column ``__item`` (Int64 or String), then one String column per text; and remarks on lost rows.

        Raises:
            DataError: the file cannot be read so, or a column is missing.
        """
        try:
            frame = self._open()
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:300]
            raise DataError(
                f"{self._where} cannot be read as an item table: {reason}. Check format and encoding"
            ) from error
        names = frame.columns
        key = self.item if self.item is not None else _first(_ID_NAMES, names)
        if key is None:
            raise DataError(
                f"{self.path.name} has no column known as an item id; pass item=<one of {', '.join(names)}>"
            )
        key = find_column(key, names, "item", self.path.name)
        wanted = [name for name in names if name != key] if self.text is None else list(self.text)
        texts = {find_column(name, names, "text", self.path.name): None for name in wanted}
        columns = {name: _as_text(name, frame.schema[name]) for name in texts}
        title = self.title if self.title is not None else _first(_TITLE_NAMES, list(texts))
        if title is not None:
            title = find_column(title, names, "title", self.path.name)
            columns["title"] = _as_text(title, frame.schema[title])
        try:
            ids = _ids(frame[key]).alias(_ID)
            remarks = _blanks(frame[key], ids, self.path.name)
            table = frame.select(ids, *(column.alias(name) for name, column in columns.items()))
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0][:300]
            raise DataError(
                f"{self.path.name} has a column that is neither ids nor text ({reason}): name those to keep with "
                "read_items(path, text=[...]), or repair the ids"
            ) from error
        if self.via is None:
            return table, remarks
        table, told = _renamed(table, *self.via)
        return table, remarks + told

    @property
    def _where(self) -> str:
        return f"the table {self.path.name}" if isinstance(self.path, Frame) else str(self.path)

    def _open(self) -> pl.DataFrame:
        """The table, without blanks around the names of its columns."""
        return plain_names(self._table().lazy()).collect()

    def _table(self) -> pl.DataFrame:
        if isinstance(self.path, Frame):
            return self.path.table.collect()
        format = self.kind
        if format == "parquet":
            return pl.read_parquet(self.path, glob=False)
        if format == "ndjson":
            return pl.scan_ndjson(glob.escape(str(self.path)), infer_schema_length=1000).collect()
        if format == "atomic":
            return scan_atomic_text(self.path).collect()
        if format == "json":
            return _open_json(self.path)
        if format == "movielens":
            return self._open_movielens()
        if format != "csv":
            raise ValueError(f"format {format!r} is none of auto, csv, parquet, ndjson, movielens, atomic, json")
        frame = self._open_text()
        if self.names is not None:
            if len(self.names) != len(frame.columns):
                raise DataError(f"{self.path.name} has {len(frame.columns)} columns, names= gives {len(self.names)}")
            frame = frame.rename(dict(zip(frame.columns, self.names, strict=True)))
        return frame

    def _open_text(self) -> pl.DataFrame:
        assert isinstance(self.path, Path)
        if self.encoding.lower() not in _LATIN:
            return scan_text(self.path, self.options).collect()
        separator = self.options.separator
        if separator is None:
            raise ValueError("encoding='latin-1' needs separator=: it is told apart only in utf-8 tables")
        return pl.read_csv(
            io.BytesIO(_bytes(self.path).decode("latin-1").encode()),
            separator=separator,
            has_header=self.options.header,
            infer_schema=False,
            quote_char=self.options.quote or None,
        )

    def _open_movielens(self) -> pl.DataFrame:
        assert isinstance(self.path, Path)
        first = head(self.path)[0]
        if "::" in first:
            rows = [line.split("::") for line in _bytes(self.path).decode("latin-1").splitlines() if line.strip()]
        elif first.count("|") >= 5:  # u.item: id|title|release date|video date|url|19 genre flags
            rows = [line.split("|")[:3] for line in _bytes(self.path).decode("latin-1").splitlines() if line.strip()]
        elif first.startswith("movieId,"):
            return scan_text(self.path, TextOptions(",")).collect()
        else:
            raise DataError(f"{self.path.name} is no MovieLens item file (id::title::genres): it begins {first[:80]!r}")
        wrong = next((row for row in rows if len(row) != 3), None)
        if wrong is not None:
            raise DataError(f"{self.path.name}: expected id::title::genres, found {'::'.join(wrong)[:80]!r}")
        third = "genres" if "::" in first else "release_date"
        return pl.DataFrame(rows, schema=dict.fromkeys(("item_id", "title", third), pl.String), orient="row")


def read_items(
    path: Any,
    *,
    item: str | int | None = None,
    text: Sequence[str | int] | None = None,
    title: str | int | None = None,
    names: Sequence[str] | None = None,
    format: str = "auto",
    separator: str | None = None,
    header: bool = True,
    quote: str | None = '"',
    encoding: str = "utf-8",
    via: tuple[str | Path, str, str] | None = None,
) -> ItemFile:
    """An item table, a file or a frame of Polars or pandas; checked to exist now, read when the data are prepared.

    Args:
        item: column of the id; None takes a usual name such as ``item_id``.
        text: columns to keep; None keeps all.
        title: column also stored as ``title``; None takes a usual name such as ``movie_title``.
        names: names of the columns of a table without header.
        format: ``auto`` (by extension), ``csv``, ``parquet``, ``ndjson``, ``movielens``, ``atomic``, or ``json``, one
            object from id to an object of columns.
        encoding: ``utf-8`` or ``latin-1``; MovieLens files are always the latter.
        via: file, from, to: a table whose column ``from`` holds the ids of the item table and whose column ``to``
            those of the events.

    Raises:
        DataError: the file is missing.
    """
    found = find_sources(path)
    if len(found) != 1:
        raise DataError(f"an item table is one file, {str(path)!r} stands for {len(found)}")
    return ItemFile(
        found[0],
        item,
        None if text is None else tuple(text),
        title,
        None if names is None else tuple(names),
        format,
        TextOptions(separator, header and names is None, quote),
        encoding,
        None if via is None else (find_files(via[0])[0], via[1], via[2]),
    )


def align(file: ItemFile, items: Vocabulary) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of an item table by item row, (N+1,) object arrays of ``str``; and remarks on missing and repeated rows.

    Raises:
        DataError: no item of the table occurs in the data, but would if ids were of the other type.
    """
    where = file.path.name
    table, remarks = file.read()
    known_ids = table.drop_nulls(_ID)
    if len(known_ids) < len(table):
        remarks.append(f"{where}: {len(table) - len(known_ids):,} rows without an item id")
    table = known_ids
    distinct = table.unique(_ID, keep="first", maintain_order=True)
    if len(distinct) < len(table):
        remarks.append(f"{where}: {len(table) - len(distinct):,} repeated item ids, the first row of each kept")
    ids = _keys(distinct[_ID], items.kind if file.untyped else None)
    try:
        rows = items.rows(ids)
    except DataError as error:
        raise DataError(f"{where} and the events disagree on the type of item ids: {error}") from error
    known = rows >= 0
    if not known.any():
        raise DataError(
            f"{where}: none of its {len(distinct):,} items, such as {distinct[_ID].head(3).to_list()}, occurs in "
            f"the events, whose items are such as {items.raw(np.arange(1, min(3, len(items)) + 1)).tolist()}: name "
            "another item= column"
        )
    absent = len(items) - int(known.sum())
    if absent:
        remarks.append(f"{where}: {absent:,} of {len(items):,} items have no row")
    if unused := int((~known).sum()):
        remarks.append(
            f"{where}: {unused:,} of {len(known):,} rows are of items that occur in no event, so they are not in the "
            "catalogue; a model of texts or vectors can take them after training (model.add_items)"
        )
    columns = {}
    for name in distinct.columns[1:]:
        values = np.full(len(items) + 1, "", dtype=object)
        values[rows[known]] = _objects(distinct[name].to_list())[known]
        columns[name] = values
    return columns, remarks


def _first(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in candidates if name in names), None)


def _keys(ids: pl.Series, kind: str | None) -> np.ndarray:
    """Ids to look up: as they are, or as the ints or strings that the events have."""
    if kind == "int" and ids.dtype == pl.String:
        plain = ids.set(~ids.str.contains(PLAIN_INTEGER), None)
        return _objects(plain.cast(pl.Int64).to_list())
    if kind == "str" and ids.dtype != pl.String:
        ids = ids.cast(pl.String)
    return ids.to_numpy() if ids.dtype.is_integer() else _objects(ids.to_list())


def _renamed(table: pl.DataFrame, path: Path, old: str, new: str) -> tuple[pl.DataFrame, list[str]]:
    """The table under the ids that a map gives, without the items that are not in the map."""
    names = scan_text(path, TextOptions(), (old, new))
    known = names.collect_schema().names()
    old, new = (find_column(column, known, "via", path.name) for column in (old, new))
    both = (pl.col(old).str.strip_chars(BLANKS).alias(_ID), pl.col(new).str.strip_chars(BLANKS).alias("__new"))
    pairs = names.select(*both).collect().unique(_ID, keep="first")
    joined = table.with_columns(pl.col(_ID).cast(pl.String)).join(pairs, on=_ID, maintain_order="left")
    remarks = [f"{path.name}: {len(table) - len(joined):,} items without a partner"] if len(joined) < len(table) else []
    return joined.with_columns(pl.col("__new").alias(_ID)).drop("__new"), remarks


def _ids(values: pl.Series) -> pl.Series:
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    if values.dtype.is_float() and bool((values.drop_nans() == values.drop_nans().round()).all()):
        return values.fill_nan(None).cast(pl.Int64)
    text = values.cast(pl.String).str.strip_chars(BLANKS)
    return text.set(text == "", None)


def _blanks(given: pl.Series, ids: pl.Series, where: str) -> list[str]:
    """A remark on ids that had blanks around them."""
    if ids.dtype != pl.String:
        return []
    count = int((given.cast(pl.String).str.len_bytes() != ids.str.len_bytes()).sum())
    return [f"{where}: {count:,} item ids had blanks around them, which were taken off"] if count else []


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, (pl.List, pl.Array)):
        if isinstance(dtype.inner, (pl.List, pl.Array, pl.Struct)):
            column = column.cast(pl.List(pl.List(pl.String))).list.eval(pl.element().list.join(", "))
        return column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True).fill_null("")
    if isinstance(dtype, pl.Struct):
        return column.struct.json_encode().fill_null("")
    return column.cast(pl.String).fill_null("")


def _bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _open_json(path: Path) -> pl.DataFrame:
    try:
        loaded = json.loads(_bytes(path))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no readable JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} must be one JSON object from item id to its columns, found {type(loaded).__name__}")
    rows = [
        {"item_id": key, **(value if isinstance(value, dict) else {"text": value})} for key, value in loaded.items()
    ]
    for row in rows:
        row.update({name: ", ".join(map(str, value)) for name, value in row.items() if isinstance(value, list)})
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
