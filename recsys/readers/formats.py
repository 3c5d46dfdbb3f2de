"""One file as a lazy table with named columns, whatever its format; separators and headers are verified first."""

from __future__ import annotations

import csv
import glob
import gzip
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.readers.atomic import SUFFIXES, scan_atomic_text
from recsys.readers.blanks import stripped
from recsys.readers.columns import ColumnMap, plain_names, suggest
from recsys.readers.frames import Frame, is_frame

FORMATS = ("csv", "parquet", "ndjson", "movielens", "atomic", "pairs", "sequences", "json-sequences")
_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".data": "movielens",
    **dict.fromkeys(SUFFIXES, "atomic"),
}
_SEPARATORS = (",", "\t", ";", "|", " ")
_POSITIONAL = ColumnMap(user="user", item="item")
_RATED = ColumnMap(user="user", item="item", rating="rating", time="time")


@dataclass(frozen=True)
class TextOptions:
    """How the fields of a text table are separated; ``separator`` None is sniffed, ``quote`` "" or None is off."""

    separator: str | None = None
    header: bool = True
    quote: str | None = '"'


@dataclass(frozen=True)
class Table:
    """A lazy table and what is known of it: the standard columns of its format, and which hold ids as plain text."""

    frame: pl.LazyFrame
    known: ColumnMap
    untyped: frozenset[str] = frozenset()  # roles whose ids are text that may stand for ints


def find_sources(path: Any) -> tuple[Path | Frame, ...]:
    """The files or frames that a path, a glob, a table in memory or a list of these stands for.

    Raises:
        DataError: as :func:`find_files`. TypeError: it is none of these.
    """
    if is_frame(path):
        return (Frame.of(path),)
    if isinstance(path, (list, tuple)) and any(map(is_frame, path)):
        return tuple(itertools.chain.from_iterable(map(find_sources, path)))
    return find_files(path)


def find_files(path: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """The files that a path, a glob or a list of these stands for; globs in sorted order.

    Raises:
        DataError: a file is missing (close names in its folder are offered) or a glob finds nothing.
    """
    if not isinstance(path, (str, Path)):
        if not isinstance(path, Sequence):
            raise TypeError(
                f"a path, a glob or a list of these is expected, found {type(path).__name__}: Dataset.scan, read_items "
                "and Vectors.of take frames of Polars or pandas too; write any other table to a file first"
            )
        if not len(path):
            raise DataError("no file given: the list of paths is empty")
        return tuple(itertools.chain.from_iterable(find_files(one) for one in path))
    text = str(path)
    if not Path(path).exists() and any(mark in text for mark in "*?["):
        found = sorted(glob.glob(text, recursive=True))
        if not found:
            raise DataError(f"no file matches {text!r}: check the pattern, relative paths start at {Path.cwd()}")
        return tuple(Path(one) for one in found)
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder: name its files, for example {path / '*.parquet'}")
    if not path.is_file():
        beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = suggest(path.name, beside) if beside else f"; the folder {path.parent} does not exist either"
        raise DataError(f"no file {path}{hint}")
    return (path,)


def detect_format(path: Path) -> str:
    """The format of a file by its extension, ``.gz`` looked through.

    Raises:
        DataError: the extension does not tell (``.txt``, ``.json``...).
    """
    suffix = _suffix(path)
    if suffix == ".dat":
        return "movielens" if "::" in next(iter(head(path)), "") else "csv"
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    raise DataError(
        f"the name {path.name} does not say what the file is (it begins {next(iter(head(path)), '')[:60]!r}): pass "
        "format='pairs' (a line per `user item`), 'sequences' (a line per `user item item ...`), 'csv', 'ndjson' (a "
        "JSON object per line), 'json-sequences' ({user: [items]}), 'parquet', 'movielens' or 'atomic'"
    )


def open_table(path: Path | Frame, format: str, options: TextOptions, wanted: Sequence[str] = ()) -> Table:
    """``path`` as a lazy table; no name of a column has blanks around it.

    Args:
        wanted: column names that the header of a text table should hold, to judge its separator by.

    Raises:
        DataError: the separator or the layout is not what ``format`` promises.
    """
    if isinstance(path, Frame):
        return Table(plain_names(path.table), _POSITIONAL)
    if format == "csv":
        return Table(scan_text(path, options, wanted), _POSITIONAL, frozenset({"user", "item"}))
    if format == "parquet":
        return Table(plain_names(pl.scan_parquet(path, glob=False)), _POSITIONAL)
    if format == "ndjson":
        return Table(plain_names(pl.scan_ndjson(glob.escape(str(path)), infer_schema_length=1000)), _POSITIONAL)
    if format == "atomic":
        return _open_atomic(path)
    both = frozenset({"user", "item"})
    if format == "movielens":
        return _open_movielens(path, both)
    if format == "pairs":
        return Table(_open_pairs(path), _POSITIONAL, both)
    if format == "sequences":
        return Table(_open_sequences(path), _POSITIONAL, both)
    if format == "json-sequences":
        return Table(_open_json(path), _POSITIONAL, frozenset({"user"}))
    raise ValueError(f"format {format!r} is unknown{suggest(format, FORMATS)}: use 'auto', {', '.join(FORMATS)}")


def scan_text(path: Path, options: TextOptions, wanted: Sequence[str] = ()) -> pl.LazyFrame:
    """A separated text file as a lazy table of strings; columns without a header are named "0", "1", ...

    Raises:
        DataError: the separator cannot be told, or the one given is not the one in the file.
    """
    separator = _separator(path, options, wanted)
    frame = pl.scan_csv(
        path,
        separator=separator,
        has_header=options.header,
        infer_schema=False,
        quote_char=options.quote or None,
        glob=False,
    )
    if options.header:
        return plain_names(frame)
    names = frame.collect_schema().names()
    return frame.rename({name: str(at) for at, name in enumerate(names)})


def head(path: Path, lines: int = 50, encoding: str = "latin-1") -> list[str]:
    """The first lines of a text file that hold anything, without their ends; gzip is looked through.

    Raises:
        DataError: the file is empty, or no whole gzip file.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(1 << 16)
            whole = not stream.read(1)
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}): is the download complete?") from error
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    found = data.decode(encoding).splitlines()
    found = found if whole or len(found) < 2 else found[:-1]
    found = [line for line in found if line.strip()][:lines]
    if not found:
        raise DataError(f"{path} is empty")
    return found


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _separator(path: Path, options: TextOptions, wanted: Sequence[str]) -> str:
    lines, quote = head(path), options.quote
    wanted = wanted if options.header else ()
    sniffed = _sniff(lines, quote, wanted)
    given = options.separator
    if given is None:
        if sniffed is None:
            raise DataError(
                f"{path.name}: no separator (comma, tab, semicolon, bar, blank) cuts its lines into equally many "
                f"fields; it begins {lines[0][:80]!r}. Pass separator="
            )
        return sniffed
    if len(given.encode()) != 1:
        raise DataError(f"separator {given!r} must be one character; for '::' files pass format='movielens'")
    fits = given in lines[0] and set(wanted) <= {stripped(field) for field in _fields(lines[:1], given, quote)[0]}
    if not fits and sniffed not in (None, given) and (given not in lines[0] or wanted):
        raise DataError(
            f"{path.name} is not separated by {given!r}: it begins {lines[0][:80]!r}, which looks like "
            f"separator={sniffed!r}"
        )
    return given


def _sniff(lines: list[str], quote: str | None, wanted: Sequence[str]) -> str | None:
    best, score = None, (0, 0)
    for separator in _SEPARATORS:
        rows = _fields(lines, separator, quote)
        width = len(rows[0])
        holds = len(set(wanted) & {stripped(field) for field in rows[0]})
        even = all(len(row) == width for row in rows)
        if width > 1 and (even or holds) and (holds, width * even) > score:
            best, score = separator, (holds, width * even)
    return best


def _fields(lines: list[str], separator: str, quote: str | None) -> list[list[str]]:
    if quote:
        return list(csv.reader(lines, delimiter=separator, quotechar=quote))
    return [line.split(separator) for line in lines]


def _open_atomic(path: Path) -> Table:
    frame = scan_atomic_text(path)
    names = frame.collect_schema().names()
    time, rating = ("timestamp" if "timestamp" in names else None), ("rating" if "rating" in names else None)
    return Table(frame, ColumnMap(user="user_id", item="item_id", time=time, rating=rating))


def _open_movielens(path: Path, untyped: frozenset[str]) -> Table:
    first = head(path)[0]
    if "::" in first:
        # A one-byte separator is all a CSV reader takes; "::" read as ":" leaves an empty column between any two.
        frame, names = scan_text(path, TextOptions(":", header=False, quote=None)), ["0", "2", "4", "6"]
    elif first.count("\t") == 3:
        frame, names = scan_text(path, TextOptions("\t", header=False, quote=None)), ["0", "1", "2", "3"]
    elif first.startswith("userId,movieId"):
        return Table(scan_text(path, TextOptions(",")), ColumnMap("userId", "movieId", "timestamp", "rating"), untyped)
    else:
        raise DataError(
            f"{path.name} is not a MovieLens rating file: expected user::item::rating::time, the same four separated "
            f"by tabs, or a header userId,movieId,rating,timestamp; it begins {first[:80]!r}"
        )
    if names[-1] not in frame.collect_schema().names():
        raise DataError(f"{path.name}: expected four fields user, item, rating, time; it begins {first[:80]!r}")
    roles = ["user", "item", "rating", "time"]
    return Table(frame.select(pl.col(n).alias(role) for n, role in zip(names, roles, strict=True)), _RATED, untyped)


def _open_pairs(path: Path) -> pl.LazyFrame:
    lines = head(path)
    for separator in (" ", "\t", ","):
        if all(len(line.split(separator)) == 2 for line in lines):
            frame = scan_text(path, TextOptions(separator, header=False, quote=None))
            return frame.select(user="0", item="1")
    if all(len(line.split()) == 2 for line in lines):  # blanks before, behind or several between them
        fields = _fields_of_lines(path).filter(pl.col("fields").list.len() > 0)
        second = pl.when(pl.col("fields").list.len() == 2).then(pl.col("fields").list.get(1, null_on_oob=True))
        return fields.select(user=pl.col("fields").list.first(), item=second)
    wrong = next(line for line in lines if len(line.split()) != 2 or line.strip() != line)
    hint = "; format='sequences' reads a line per `user item item ...`" if len(wrong.split()) > 2 else ""
    raise DataError(f"{path.name}: expected lines of two fields, `user item`, found {wrong[:80]!r}{hint}")


def _open_sequences(path: Path) -> pl.LazyFrame:
    first = head(path)[0]
    if len(first.split()) == 1 and any(mark in first for mark in ",;|"):
        raise DataError(f"{path.name}: expected `user item item ...` separated by blanks, found {first[:80]!r}")
    fields = _fields_of_lines(path).filter(pl.col("fields").list.len() > 1)
    return fields.select(user=pl.col("fields").list.first(), item=pl.col("fields").list.slice(1)).explode("item")


def _fields_of_lines(path: Path) -> pl.LazyFrame:
    """A column ``fields``: what stands between blanks, per line."""
    lines = pl.scan_csv(path, separator="\x01", has_header=False, infer_schema=False, quote_char=None, glob=False)
    return lines.select(pl.nth(0).str.extract_all(r"\S+").alias("fields"))


def _open_json(path: Path) -> pl.LazyFrame:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            loaded = json.loads(stream.read())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): expected one object, user -> list of items") from error
    if not isinstance(loaded, dict) or not all(isinstance(items, list) for items in loaded.values()):
        raise DataError(f"{path} must be one JSON object, user -> list of items; for an object per line pass 'ndjson'")
    lengths = [len(items) for items in loaded.values()]
    try:
        items = pl.Series("item", list(itertools.chain.from_iterable(loaded.values())))
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise DataError(f"{path}: the items must be all ints or all strings ({error})") from error
    users = pl.Series("user", list(loaded), dtype=pl.String).gather(
        pl.int_range(len(lengths), eager=True).repeat_by(pl.Series(lengths)).explode().drop_nulls().cast(pl.UInt32)
    )
    return pl.DataFrame([users, items]).lazy()
