"""Tables of items and users: texts, categories, numbers and lists, aligned with the rows of a vocabulary.

Legend: N items. Every column ends as a typed column (:mod:`recsys.features.column`) with a row for each row of the
vocabulary: N + 1 of items, row 0 for padding. Written out (:func:`align`), lists are joined with ", ", what is missing
is "".
"""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.features.features import Features
from recsys.features.typed import as_text, checked_kinds, features_of, notes_of
from recsys.ids.vocabulary import Vocabulary
from recsys.readers.atomic import scan_atomic_text
from recsys.readers.blanks import BLANKS
from recsys.readers.columns import find_column, plain_names
from recsys.readers.events import PLAIN_INTEGER
from recsys.readers.formats import TextOptions, detect_format, find_files, find_sources, head, scan_text
from recsys.readers.frames import Frame
from recsys.readers.log import hash_files

_USER_NAMES = ("user", "user_id", "userId", "id", "uid")
_ID_NAMES = ("item", "item_id", "movieId", "movie_id", "id", "itemId", "asin", "sku")
_TITLE_NAMES = ("title", "movie_title", "name")
_ID = "__item"  # the id, apart from a text column of any name
_LATIN = ("latin-1", "latin1", "iso-8859-1")


@dataclass(frozen=True)
class ItemFile:
    """Where an item table is and how to read it; :func:`align_features` does.

    ``owner`` "user" makes it a table of users: ``item`` is then the column of the user id.
    """

    path: Path | Frame
    item: str | int | None = None
    text: tuple[str | int, ...] | None = None
    title: str | int | None = None
    names: tuple[str, ...] | None = None
    format: str = "auto"
    options: TextOptions = TextOptions()  # noqa: RUF009 - frozen, so it can be shared
    encoding: str = "utf-8"
    via: tuple[Path, str, str] | None = None
    kinds: tuple[tuple[str, str], ...] = ()
    list_separator: str | None = None
    owner: str = "item"

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
        """The settings that change what is read, without the path and the kinds of columns: part of the cache key."""
        apart = ("path", "options", "via", "owner", "kinds", "list_separator")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return {**settings, "options": vars(self.options), "via": None if self.via is None else self.via[1:]}

    def read(self, column: Callable[[str, pl.DataType], pl.Expr] | None = None) -> tuple[pl.DataFrame, list[str]]:
        """The table, column ``__item`` (Int64 or String), then one String column per text; and remarks on lost rows.

        Args:
            column: makes of a column and its type what is kept of it (default: text).

        Raises:
            DataError: the file cannot be read so, or a column is missing.
        """
        column = as_text if column is None else column
        try:
            frame = self._open()
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:300]
            raise DataError(
                f"{self._where} cannot be read as an {self.owner} table: {reason}. Check format and encoding"
            ) from error
        key, columns = self._columns(frame, column)
        try:
            ids = _ids(frame[key]).alias(_ID)
            remarks = _blanks(frame[key], ids, self.path.name)
            table = frame.select(ids, *(one.alias(name) for name, one in columns.items()))
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

    def _columns(
        self, frame: pl.DataFrame, column: Callable[[str, pl.DataType], pl.Expr]
    ) -> tuple[str, dict[str, pl.Expr]]:
        """The column of the id, and what is kept."""
        names, where = frame.columns, self.path.name
        key = self.item if self.item is not None else _first(_ID_NAMES if self.owner == "item" else _USER_NAMES, names)
        if key is None:
            an = "an item" if self.owner == "item" else "a user"
            raise DataError(f"{where} has no column known as {an} id; pass {self.owner}=<one of {', '.join(names)}>")
        key = find_column(key, names, self.owner, where)
        kept: list[str | int] = [name for name in names if name != key]
        if self.text is not None:
            kept = [*self.text, *(name for name, _ in self.kinds if name not in self.text)]
        columns = {
            name: column(name, frame.schema[name]) for name in (find_column(n, names, "text", where) for n in kept)
        }
        title = self.title
        if title is None and self.owner == "item":
            title = _first(_TITLE_NAMES, list(columns))
        if title is not None:
            title = find_column(title, names, "title", where)
            columns["title"] = as_text(title, frame.schema[title]) if title != "title" else columns[title]
        return key, columns

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
    kinds: Mapping[str, str] | None = None,
    list_separator: str | None = None,
) -> ItemFile:
    """An item table, a file or a frame of Polars or pandas; checked to exist now, read when the data are prepared.

    A column of numbers stays numbers, one of lists a list of categories, one of strings a text (all columns of CSV,
    JSON and atomic files are strings); ``kinds`` says otherwise.

    Args:
        item: column of the id; None takes a usual name such as ``item_id``.
        text: columns to keep, beside those that ``kinds`` names; None keeps all.
        title: column also stored as ``title``; None takes a usual name such as ``movie_title``.
        names: names of the columns of a table without header.
        format: ``auto`` (by extension), ``csv``, ``parquet``, ``ndjson``, ``movielens``, ``atomic``, or ``json``, one
            object from id to an object of columns.
        encoding: ``utf-8`` or ``latin-1``; MovieLens files are always the latter.
        via: file, from, to: a table whose column ``from`` holds the ids of the item table and whose column ``to``
            those of the events.
        kinds: column -> ``"text"``, ``"category"`` (one of a set of values), ``"number"``, or ``"list"`` (several
            categories), such as ``{"price": "number", "genres": "list"}``.
        list_separator: between the values of a list that is written as text; "|" by default.

    Raises:
        DataError: the file is missing.
        ValueError: a kind is none of the four.
    """
    return ItemFile(
        _one_table(path, "an item table"),
        item,
        None if text is None else tuple(text),
        title,
        None if names is None else tuple(names),
        format,
        TextOptions(separator, header and names is None, quote),
        encoding,
        None if via is None else (find_files(via[0])[0], via[1], via[2]),
        tuple(checked_kinds(kinds).items()),
        list_separator,
    )


def read_users(
    path: Any,
    *,
    user: str | int | None = None,
    columns: Sequence[str | int] | None = None,
    kinds: Mapping[str, str] | None = None,
    list_separator: str | None = None,
    names: Sequence[str] | None = None,
    format: str = "auto",
    separator: str | None = None,
    header: bool = True,
    quote: str | None = '"',
    encoding: str = "utf-8",
) -> ItemFile:
    """A table of users (age, country, ...), for ``Dataset.scan(..., users=)``; see :func:`read_items`.

    Args:
        user: column of the id; None takes a usual name such as ``user_id``.
        columns: columns to keep, beside those that ``kinds`` names; None keeps all.

    Raises:
        DataError: the file is missing.
        ValueError: a kind is none of the four.
    """
    return ItemFile(
        _one_table(path, "a table of users"),
        user,
        None if columns is None else tuple(columns),
        None,
        None if names is None else tuple(names),
        format,
        TextOptions(separator, header and names is None, quote),
        encoding,
        None,
        tuple(checked_kinds(kinds).items()),
        list_separator,
        "user",
    )


def _one_table(path: Any, what: str) -> Path | Frame:
    found = find_sources(path)
    if len(found) != 1:
        raise DataError(f"{what} is one file, {str(path)!r} stands for {len(found)}")
    return found[0]


def align(file: ItemFile, items: Vocabulary) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of an item table by item row, (N+1,) object arrays of ``str``; and remarks on missing and repeated rows.

    Raises:
        DataError: no item of the table occurs in the data, but would if ids were of the other type.
    """
    table, remarks = file.read()
    found, at, told = _matched(file, table, items)
    columns = {}
    for name in found.columns[1:]:
        texts = _objects([*found[name].to_list(), ""])
        columns[name] = texts[at]
    return columns, remarks + told


def align_features(file: ItemFile, rows: Vocabulary) -> tuple[Features, list[str]]:
    """Typed columns of a table by row of a vocabulary of items or users; and remarks on missing and repeated rows.

    Raises:
        DataError: no id of the table occurs in the data, a column of ``kinds`` is missing, or values are not of their
            kind; the message shows some.
    """
    table, remarks = file.read(lambda name, dtype: pl.col(name))
    found, at, told = _matched(file, table, rows)
    kinds = checked_kinds(dict(file.kinds), found.columns[1:], file.path.name)
    features = features_of(found.drop(_ID), kinds, file.path.name, file.list_separator).take(at)
    return features, remarks + told + notes_of(features, file.owner, kinds)


def _matched(file: ItemFile, table: pl.DataFrame, rows: Vocabulary) -> tuple[pl.DataFrame, np.ndarray, list[str]]:
    """The rows of a table that are in the vocabulary, each once; for each row from 0 on which of them it is, -1 for
    none; and remarks."""
    where, what, remarks = file.path.name, file.owner, list[str]()
    known_ids = table.drop_nulls(_ID)
    if len(known_ids) < len(table):
        remarks.append(
            f"{where}: {len(table) - len(known_ids):,} rows without an {what} id".replace("an user", "a user")
        )
    distinct = known_ids.unique(_ID, keep="first", maintain_order=True)
    if len(distinct) < len(known_ids):
        count = len(known_ids) - len(distinct)
        remarks.append(f"{where}: {count:,} repeated {what} ids, the first row of each kept")
    ids = _keys(distinct[_ID], rows.kind if file.untyped else None)
    try:
        found = rows.rows(ids)
    except DataError as error:
        raise DataError(f"{where} and the events disagree on the type of {what} ids: {error}") from error
    known = found >= 0
    if not known.any():
        some = rows.raw(np.arange(rows.first, rows.first + min(2, len(rows)))).tolist()
        raise DataError(
            f"{where}: none of its {len(distinct):,} {what}s, such as {distinct[_ID].head(3).to_list()}, occurs in "
            f"the events, whose {what}s are such as {some}: name another {what}= column"
        )
    if absent := len(rows) - int(known.sum()):
        remarks.append(f"{where}: {absent:,} of {len(rows):,} {what}s have no row")
    if unused := int((~known).sum()):
        remarks.append(_unused(file, unused, len(known)))
    at = np.full(rows.first + len(rows), -1, np.int64)
    at[found[known]] = np.arange(int(known.sum()))
    return distinct.filter(pl.Series(known)), at, remarks


def _unused(file: ItemFile, unused: int, count: int) -> str:
    told = f"{file.path.name}: {unused:,} of {count:,} rows are of {file.owner}s that occur in no event"
    if file.owner == "user":
        return f"{told}, so they are left out"
    return (
        f"{told}, so they are not in the catalogue; a model of texts or vectors can take them after training "
        "(model.add_items)"
    )


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
    missing = len(table) - len(joined)
    remarks = [f"{path.name}: {missing:,} items are not in its column {old!r}, left out"] if missing else []
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
