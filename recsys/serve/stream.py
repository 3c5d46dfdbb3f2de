"""Recommendations for a file of users, into a file, in memory that does not grow with the number of users.

The input is either one row per user (``user``, ``items``: a list, oldest first) or one row per event (``user``,
``item`` and optionally ``time``). Rows are taken a slice at a time. Events of one user may lie anywhere in a file, so
a large file of events is read several times, each time keeping the users of one share of the hash space.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.data.columns import MILLISECONDS, detect_unit
from recsys.errors import DataError, DataWarning
from recsys.progress import Progress
from recsys.ranker import History, TopK
from recsys.serve.bundle import Bundle
from recsys.storage.files import Workplace, replace, writing

if TYPE_CHECKING:
    import polars as pl

USERS_PER_PASS = 2**16
EVENTS_PER_PASS = 2**22
FORMATS = {".parquet": "parquet", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv", ".tsv": "csv"}
LAYOUTS = ("list", "long")
ITEMS, TIMES = "__items", "__times"
UNREADABLE = -(2**63)  # stands for a text that is no int: an item that no catalogue holds, skipped and counted


@dataclass(frozen=True)
class FileReport:
    """What :func:`recommend_file` did."""

    users: int
    unknown_items: int  # history items that the catalogue does not hold, skipped
    empty_histories: int  # users without a single history item
    fallbacks: int  # users without a known history item (the empty ones among them), ranked by popularity
    short_lists: int  # users for whom fewer than k items were left
    seconds: float

    def __str__(self) -> str:
        rate = self.users / max(self.seconds, 1e-9)
        return (
            f"{self.users:,} users in {self.seconds:.1f} s ({rate:,.0f}/s); {self.fallbacks:,} ranked by popularity "
            f"({self.empty_histories:,} with an empty history, the others with unknown items only); "
            f"{self.unknown_items:,} unknown history items skipped; {self.short_lists:,} lists shorter than k"
        )


def recommend_file(
    bundle: Bundle,
    users: Path | str,
    out: Path | str,
    k: int = 10,
    exclude: str = "history",
    batch_size: int = 4096,
    layout: str = "list",
    progress: bool = True,
) -> FileReport:
    """Recommend for every user of a Parquet, NDJSON, CSV or TSV file, into the Parquet file ``out``.

    Args:
        users: one row per user with columns ``user`` and ``items`` (Parquet, NDJSON; ``times`` and ``query_time``
            too if the model reads them), or one row per event with ``user``, ``item`` and, if the rows of a user are
            not in order, ``time``. Times may be dates, ISO text (UTC where no zone is given) or epoch numbers, whose
            unit is told by magnitude, as ``Dataset.scan`` does.
        out: written beside and renamed. Layout "list": ``user, items, scores``, a row per user; "long": ``user, rank,
            item, score``, a row per recommendation.
        batch_size: users at a time.

    Raises:
        FileNotFoundError: there is no such file of users.
        DataError: the file cannot be read, a column is missing, events have no user or no readable time, or ids are
            of another type than the bundle's.
        ValueError: ``k``, ``exclude``, ``layout`` or a file name is not possible.
        BlockingIOError: another process is writing ``out``.
    """
    import polars as pl

    started, users, out = time.monotonic(), Path(users), Path(out)
    bundle.model._check(k, exclude)
    if layout not in LAYOUTS or out.suffix != ".parquet" or batch_size < 1:
        raise ValueError(
            f"layout must be list or long, out end in .parquet and batch_size be positive; found {layout!r}, "
            f"{out.name} and {batch_size}"
        )
    if out.resolve() == users.resolve():
        raise ValueError(f"{out} is the file of users itself, which must not be replaced: name another file")
    try:
        total, passes = _open(users, bundle)
    except pl.exceptions.PolarsError as error:
        raise _unreadable(users, error) from error
    counts = dict.fromkeys(("users", "unknown_items", "empty_histories", "fallbacks", "short_lists"), 0)
    try:
        with Workplace(out, "parts") as parts, Progress(total, "recommend", "users", enabled=progress) as shown:
            for number, frame in enumerate(_batches(passes, batch_size)):
                histories, length = _histories(frame)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DataWarning)
                    top = bundle.recommend(histories, k, exclude)
                with writing(out):
                    _table(frame["user"], top, layout).write_parquet(parts.path / f"{number:08d}.parquet")
                short = (top.rows == 0).any(1).sum()
                found = (len(top), top.unknown.sum(), (length == 0).sum(), top.fallback.sum(), short)
                counts = {name: counts[name] + int(more) for name, more in zip(counts, found, strict=True)}
                shown.advance(len(top))
            _join(parts.path, out)
    except pl.exceptions.PolarsError as error:  # damaged further down than the schema shows
        raise _unreadable(users, error) from error
    seconds = time.monotonic() - started
    report = FileReport(**counts, seconds=seconds)
    if report.fallbacks or report.unknown_items:
        warnings.warn(str(report), DataWarning, stacklevel=2)
    return report


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as {FORMATS[path.suffix]}: {str(error).splitlines()[0]}")


def _open(path: Path, bundle: Bundle) -> tuple[int | None, Iterator[pl.DataFrame]]:
    """Number of users, if known beforehand, and frames of users: ``user``, lists of items, and of times if needed."""
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    form = FORMATS.get(path.suffix)
    if form is None:
        raise ValueError(f"{path.name} must end in one of {', '.join(FORMATS)}")
    try:
        if form == "csv":
            table = pl.scan_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False)
        else:
            table = pl.scan_parquet(path) if form == "parquet" else pl.scan_ndjson(path)
        schema = table.collect_schema()
        rows = int(table.select(pl.len()).collect().item())
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error
    timed, asked = "times" in bundle.model.needs, "query_time" in bundle.model.needs
    if "user" in schema and "items" in schema:
        needed = ["user", "items"] + ["times"] * timed + ["query_time"] * asked
        _require(needed, schema, path)
        if not isinstance(schema["items"], pl.List):
            raise DataError(f"column items of {path} must hold lists, found {schema['items']}; events are user, item")
        moments = _moments(table, {name: schema[name] for name in ("times", "query_time") if name in needed})
        renamed = table.select(needed).with_columns(moments).rename({"items": ITEMS, "times": TIMES}, strict=False)
        return rows, (renamed.slice(first, USERS_PER_PASS).collect() for first in range(0, rows, USERS_PER_PASS))
    _require(["user", "item"] + ["time"] * timed, schema, path)
    if asked:
        raise DataError("this model reads query_time: pass one row per user, with user, items and query_time")
    events = _typed(table, schema, bundle)
    _require_whole(events, path)
    return None, _grouped(events, rows, timed)


def _require(names: list[str], schema: Any, path: Path) -> None:
    missing = [name for name in names if name not in schema]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(schema)} and lacks {', '.join(missing)}: rename columns, so that there "
            "are user and items (lists), or user and item (and time)"
        )


def _typed(table: pl.LazyFrame, schema: Any, bundle: Bundle) -> pl.LazyFrame:
    """Columns user, item (text becomes an int where the bundle's ids are) and, if there, time in milliseconds."""
    import polars as pl

    item = pl.col("item")
    if schema["item"] == pl.String and bundle.vocabulary.kind == "int":
        unreadable = pl.when(item.is_not_null()).then(pl.lit(UNREADABLE))
        item = pl.coalesce(item.str.strip_chars().cast(pl.Int64, strict=False), unreadable).alias("item")
    columns = [pl.col("user"), item]
    if "time" in schema:
        columns += _moments(table, {"time": schema["time"]})
    return table.select(columns)


def _moments(table: pl.LazyFrame, schema: dict[str, Any]) -> list[pl.Expr]:
    """Columns of times, or of lists of them, in milliseconds; the unit of numbers is told by magnitude."""
    import polars as pl

    found = []
    for name, dtype in schema.items():
        lists = isinstance(dtype, pl.List)
        kind = dtype.inner if lists else dtype
        inner = pl.element() if lists else pl.col(name)
        number = inner.cast(pl.Int64 if kind.is_integer() else pl.Float64, strict=False)
        if kind.is_temporal():
            moment = inner.cast(pl.Datetime("ms")).dt.epoch("ms")
        else:
            moment = _scaled(number, _ends(table, name, lists, number))
        if kind == pl.String:
            text = inner.str.to_datetime(time_unit="ms", strict=False, time_zone="UTC")
            moment = pl.coalesce(moment, text.dt.epoch("ms").cast(pl.Float64))
        found.append((pl.col(name).list.eval(moment) if lists else moment).alias(name))
    return found


def _ends(table: pl.LazyFrame, name: str, lists: bool, number: pl.Expr) -> list[float]:
    """The lowest and the highest number of a column, none where there is no number."""
    import polars as pl

    column = pl.col(name).list.eval(number).list.explode() if lists else number
    ends = table.select(column.min().alias("low"), column.max().alias("high")).collect(engine="streaming").row(0)
    return [float(end) for end in ends if end is not None]


def _scaled(number: pl.Expr, ends: list[float]) -> pl.Expr:
    times, over = MILLISECONDS[detect_unit(np.array(ends))] if ends else (1, 1)
    return number if times == over else number * times // over


def _require_whole(events: pl.LazyFrame, path: Path) -> None:
    """Events without a user would become one user, and those without a time would come first: refuse both."""
    import polars as pl

    schema = events.collect_schema()
    lacks = {name: pl.col(name).is_null() for name in ("user", "time") if name in schema}
    if schema["user"] == pl.String:
        lacks["user"] |= pl.col("user") == ""
    counts = events.select(lack.sum().alias(name) for name, lack in lacks.items()).collect(engine="streaming").row(0)
    for name, count in zip(lacks, counts, strict=True):
        if count:
            raise DataError(f"{path} holds {count:,} events without a readable {name}: drop or repair these rows")


def _grouped(table: pl.LazyFrame, rows: int, timed: bool) -> Iterator[pl.DataFrame]:
    """Events to users, the users of one share of the hash space per pass over the file."""
    import polars as pl

    shares = max(1, -(-rows // EVENTS_PER_PASS))
    for share in range(shares):
        events = table if shares == 1 else table.filter(pl.col("user").hash(0) % shares == share)
        if "time" in table.collect_schema():
            events = events.sort("time", maintain_order=True)
        lists = [pl.col("item").drop_nulls().alias(ITEMS)]
        if timed:
            lists.append(pl.col("time").filter(pl.col("item").is_not_null()).cast(pl.Int64).alias(TIMES))
        yield events.group_by("user", maintain_order=True).agg(lists).collect()


def _batches(frames: Iterator[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    for frame in frames:
        yield from frame.iter_slices(size)


def _histories(frame: pl.DataFrame) -> tuple[list[History], np.ndarray]:
    """Histories of a frame and their lengths; a null list is an empty history."""
    items = [one or [] for one in frame[ITEMS].to_list()]
    times = frame[TIMES].to_list() if TIMES in frame.columns else [None] * len(items)
    asked = frame["query_time"].to_list() if "query_time" in frame.columns else [None] * len(items)
    histories = [History(one, times=when, query_time=at) for one, when, at in zip(items, times, asked, strict=True)]
    return histories, np.array([len(one) for one in items], np.int64)


def _table(users: pl.Series, top: TopK, layout: str) -> pl.DataFrame:
    import polars as pl

    found = top.rows > 0
    lengths = found.sum(1)
    rank = np.broadcast_to(np.arange(1, found.shape[1] + 1, dtype=np.int32), found.shape)[found]
    kind = pl.Int64 if top.vocabulary.kind == "int" else pl.String
    items = pl.Series("item", top.vocabulary.raw(top.rows[found]).tolist(), dtype=kind)
    owner = pl.Series("owner", np.repeat(np.arange(len(top)), lengths))
    table = pl.DataFrame({"user": users.gather(owner), "rank": rank, "item": items, "score": top.scores[found]})
    if layout == "long":
        return table
    forms = {"items": pl.List(kind), "scores": pl.List(pl.Float32)}
    lists = table.group_by(owner, maintain_order=True).agg(items=pl.col("item"), scores=pl.col("score"))
    whole = pl.DataFrame({"user": users, "owner": pl.Series(np.arange(len(top)), dtype=owner.dtype)})
    empty = [pl.col(name).fill_null(pl.lit([], form)) for name, form in forms.items()]
    return whole.join(lists, on="owner", how="left", maintain_order="left").drop("owner").with_columns(empty)


def _join(parts: Path, out: Path) -> None:
    import polars as pl

    files = sorted(parts.glob("*.parquet"))
    if not files:
        raise DataError("the file holds no users: nothing to recommend")
    replace(out, lambda partial: pl.scan_parquet(files).sink_parquet(partial))
