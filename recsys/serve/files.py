"""Recommendations for a file of users, into a file, in memory that does not grow with the number of users.

The input is either one row per user (``user``, ``items``: a list, oldest first) or one row per event (``user``,
``item`` and optionally ``time``). Rows are taken a slice at a time. Events of one user may lie anywhere in a file, so
a large file of events is read several times, each time keeping the users of one share of the hash space.
"""

from __future__ import annotations

import glob
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataError, DataWarning
from recsys.progress import Progress
from recsys.ranking.filters import Shown
from recsys.readers.blanks import BLANKS
from recsys.readers.columns import MILLISECONDS, detect_unit, plain_names, time_columns
from recsys.readers.times import NANOSECONDS
from recsys.recommenders.features import request_columns
from recsys.recommenders.history import History
from recsys.recommenders.top import TopK
from recsys.serve.bundle import Bundle
from recsys.storage.files import Workplace, replace, write_parquet, writing

if TYPE_CHECKING:
    import polars as pl

USERS_PER_PASS = 2**16
USERS_AT_A_TIME = 256  # ranked between two words of progress
EVENTS_PER_PASS = 2**22
FORMATS = {".parquet": "parquet", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv", ".tsv": "csv"}
LAYOUTS = ("list", "long")
ITEMS, TIMES, FINER = "__items", "__times", "__finer"
FEATURE = "__feature "  # before the names of the columns that the model reads as features
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
    allow: Sequence[Any] | None = None,
    deny: Sequence[Any] | None = None,
) -> FileReport:
    """Recommend for every user of a Parquet, NDJSON, CSV or TSV file, into the Parquet file ``out``.

    Args:
        users: one row per user with columns ``user`` and ``items`` (Parquet, NDJSON; ``times`` and ``query_time``
            too if the model reads them; ``allow`` and ``deny`` may hold a list for each user; features that the model
            reads by their name: a list for each user of those of events, one value of those of users), or one row per
            event
            with ``user``, ``item`` and, if the rows of a user are not in order, ``time``. Times may be dates, ISO text
            (UTC where no zone is given) or epoch numbers, whose unit is told by magnitude, as ``Dataset.scan`` does;
            all their digits count in sorting. Features in a file of events stand in the row of their event; those of a
            user count as in the user's last row. Blanks around ids and names of columns are taken off.
        out: written beside and renamed. Layout "list": ``user, items, scores``, a row per user; "long": ``user, rank,
            item, score``, a row per recommendation.
        batch_size: users written at a time.
        allow, deny: raw ids for all users; nothing else, or none of these, is recommended, whatever a user's own lists
            say.

    Raises:
        FileNotFoundError: there is no such file of users.
        DataError: the file cannot be read, a column is missing, events have no user or no readable time, or ids are
            of another type than the bundle's.
        ValueError: ``k``, ``exclude``, ``layout`` or a file name is not possible.
        IsADirectoryError: ``out`` is a folder.
        BlockingIOError: another process is writing ``out``.
    """
    started, users, out = time.monotonic(), Path(users), Path(out)
    k = bundle.model._check(k, exclude)
    _check(users, out, layout, batch_size, {"allow": allow, "deny": deny})
    with _reading(users):
        total, passes = _open(users, bundle)
    features = [name for columns in request_columns(bundle.model) for name in columns]
    lists = {"allow": None if allow is None else list(allow), "deny": None if deny is None else list(deny)}
    done = _Done()
    with ExitStack() as stack:
        with _writing(out):
            parts = stack.enter_context(Workplace(out, "parts")).path
        bar = stack.enter_context(Progress(total, "recommend", "users", enabled=progress))
        for number, frame in enumerate(_batches(_read(passes, users), batch_size)):
            tables = []
            for piece in frame.iter_slices(USERS_AT_A_TIME):
                histories, lengths = _histories(piece, features)
                top, may = bundle._rank(histories, k, exclude, **_lists(piece, lists))
                tables.append(_table(piece["user"], top, layout))
                done.add(top, may, lengths, k)
                bar.advance(len(top))
            with _writing(out):
                _write_part(parts / f"{number:08d}.parquet", tables)
        if not done.counts["users"]:
            raise DataError("the file holds no users: nothing to recommend")
        with _writing(out):
            _join(sorted(parts.glob("*.parquet")), out)
    report = FileReport(**done.counts, seconds=time.monotonic() - started)
    notes = [str(report)] if report.fallbacks or report.unknown_items else []
    told = {name: count for name, count in done.unknown.items() if lists[name]}
    for note in (*Shown(unknown=told).notes("catalogue"), *notes):
        warnings.warn(note, DataWarning, stacklevel=2)
    return report


def _check(users: Path, out: Path, layout: str, batch_size: int, lists: dict[str, Any]) -> None:
    """Raise where an argument is not possible, as :func:`recommend_file` says."""
    for name, ids in lists.items():
        if isinstance(ids, (str, bytes)) or any(isinstance(one, (list, tuple)) for one in ids or ()):
            raise TypeError(f"{name} holds raw ids for all users; lists per user are a column {name!r} of the file")
    if layout not in LAYOUTS or out.suffix != ".parquet" or batch_size < 1:
        raise ValueError(
            f"layout must be list or long, out end in .parquet and batch_size be positive; found {layout!r}, "
            f"{out.name} and {batch_size}"
        )
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder, and a Parquet file is to be written: name another file")
    if out.resolve() == users.resolve():
        raise ValueError(f"{out} is the file of users itself, which must not be replaced: name another file")


class _Done:
    """What was recommended so far, counted."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("users", "unknown_items", "empty_histories", "fallbacks", "short_lists"), 0)
        self.unknown: dict[str, tuple[int, int]] = {}  # of the first lists: unknown ids, ids given

    def add(self, top: TopK, shown: Shown, lengths: np.ndarray, k: int) -> None:
        """Count the lists ``top`` for histories of ``lengths`` (B,)."""
        self.unknown = {name: self.unknown.get(name, one) for name, one in shown.unknown.items()}
        short = (top.rows > 0).sum(1) < k
        found = (len(top), top.unknown.sum(), (lengths == 0).sum(), top.fallback.sum(), short.sum())
        self.counts = {name: self.counts[name] + int(more) for name, more in zip(self.counts, found, strict=True)}


def _write_part(path: Path, tables: list[pl.DataFrame]) -> None:
    import polars as pl

    write_parquet(path, pl.concat(tables))


def _join(files: list[Path], out: Path) -> None:
    """The parts as one file."""
    import polars as pl

    replace(out, lambda partial: pl.scan_parquet(files, glob=False).sink_parquet(partial))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong with the file of users, in a sentence that names it."""
    import polars as pl

    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """What goes wrong with the output, blamed on it."""
    import polars as pl

    try:
        with writing(out):
            yield
    except (OSError, pl.exceptions.PolarsError) as error:
        if isinstance(error, BlockingIOError) or str(out) in str(error):
            raise
        number = error.errno if isinstance(error, OSError) else None
        reason = f"{out} cannot be written ({str(error).splitlines()[0]}): make room, or name another file"
        raise (OSError(reason) if number is None else OSError(number, reason)) from error


def _read(frames: Iterator[pl.DataFrame], path: Path) -> Iterator[pl.DataFrame]:
    """The frames, with a sentence that names the file if it is damaged further down than the schema shows."""
    while True:
        with _reading(path):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _lists(frame: pl.DataFrame, lists: dict[str, list[Any] | None]) -> dict[str, Any]:
    """What is allowed and denied: for all, or for each user of a frame that says it."""
    own = {name: frame[name].to_list() for name in lists if name in frame.columns}
    found: dict[str, Any] = {**lists, **own}
    if "deny" in own and lists["deny"]:
        found["deny"] = [[*(one or ()), *lists["deny"]] for one in own["deny"]]
    if "allow" in own and lists["allow"] is not None:
        common = set(lists["allow"])
        found["allow"] = [
            lists["allow"] if one is None else [item for item in one if item in common] for one in own["allow"]
        ]
    return found


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
            table = pl.scan_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False, glob=False)
        else:
            table = pl.scan_parquet(path, glob=False) if form == "parquet" else pl.scan_ndjson(glob.escape(str(path)))
        table = plain_names(table)
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
        chosen = [name for name in ("allow", "deny") if name in schema]
        for name in chosen:
            if not isinstance(schema[name], pl.List):
                raise DataError(f"column {name} of {path} must hold a list of item ids per user, found {schema[name]}")
        moments = _moments(table, {name: schema[name] for name in ("times", "query_time") if name in needed})
        plain = [
            pl.col(name).list.eval(pl.element().str.strip_chars(BLANKS))
            for name in ("items", *chosen)
            if schema[name] == pl.List(pl.String)
        ]
        read = [name for columns in request_columns(bundle.model) for name in columns if name in schema]
        kept = [pl.col(name).alias(FEATURE + name) for name in read]
        renamed = table.select(*needed, *chosen, *kept).with_columns(*moments, *plain)
        renamed = renamed.rename({"items": ITEMS, "times": TIMES}, strict=False)
        return rows, (renamed.slice(first, USERS_PER_PASS).collect() for first in range(0, rows, USERS_PER_PASS))
    _require(["user", "item"] + ["time"] * timed, schema, path)
    if asked:
        raise DataError("this model reads query_time: pass one row per user, with user, items and query_time")
    if isinstance(schema["item"], pl.List):
        raise DataError(f"column item of {path} holds lists: rename it items, or write a row per event")
    events = _typed(table, schema, bundle, path)
    _require_whole(events, path)
    return None, _grouped(events, rows, timed, request_columns(bundle.model)[1])


def _require(names: list[str], schema: Any, path: Path) -> None:
    missing = [name for name in names if name not in schema]
    if missing:
        raise DataError(
            f"{path} has the columns {', '.join(schema)} and lacks {', '.join(missing)}: rename columns, so that there "
            "are user and items (lists), or user and item (and time)"
        )


def _typed(table: pl.LazyFrame, schema: Any, bundle: Bundle, path: Path) -> pl.LazyFrame:
    """Columns user and item (text becomes an int where the bundle's ids are) and, if there, time in milliseconds, with
    the nanoseconds within them."""
    import polars as pl

    user, item = (
        pl.col(name).str.strip_chars(BLANKS) if schema[name] == pl.String else pl.col(name) for name in ("user", "item")
    )
    if schema["item"] == pl.String and bundle.vocabulary.kind == "int":
        unreadable = pl.when(item.is_not_null()).then(pl.lit(UNREADABLE))
        item = pl.coalesce(item.cast(pl.Int64, strict=False), unreadable).alias("item")
    read = [name for columns in request_columns(bundle.model) for name in columns if name in schema]
    events = table.with_columns(user, item, *(pl.col(name).alias(FEATURE + name) for name in read))
    kept = [FEATURE + name for name in read]
    if "time" not in schema:
        return events.select("user", "item", *kept)
    sample = table.select(pl.col("time").drop_nulls().head(1000)).collect().to_series()
    try:
        parsed, unit = time_columns("time", schema["time"], sample, None, str(path))
    except DataError:  # neither numbers nor dates, most of them
        parsed, unit = time_columns("time", pl.String(), pl.Series(["0"]), None, str(path))
    read_times = [one for one in parsed if one.meta.output_name() != "bad_time"]
    timed = events.select("user", "item", *kept, *read_times)
    if unit is None:
        ends = list(timed.select(low=pl.col("time").min(), high=pl.col("time").max()).collect().row(0))
        unit = detect_unit(np.array(ends)) if None not in ends else "ms"
    times, over = MILLISECONDS[unit]
    whole, finer = pl.col("time"), NANOSECONDS // over
    within = whole % over * finer
    if "fraction" in timed.collect_schema():
        within += (pl.col("fraction").fill_null(0) * (times * finer)).round().cast(pl.Int64)
    return timed.select(
        "user",
        "item",
        *kept,
        (whole // over * times + within // NANOSECONDS).alias("time"),
        (within % NANOSECONDS).alias(FINER),
    )


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


def _grouped(table: pl.LazyFrame, rows: int, timed: bool, of_users: Mapping[str, Any]) -> Iterator[pl.DataFrame]:
    """Events to users, the users of one share of the hash space per pass over the file."""
    import polars as pl

    shares = max(1, -(-rows // EVENTS_PER_PASS))
    for share in range(shares):
        events = table if shares == 1 else table.filter(pl.col("user").hash(0) % shares == share)
        if "time" in table.collect_schema():
            events = events.sort("time", FINER, maintain_order=True)
        lists = [pl.col("item").drop_nulls().alias(ITEMS)]
        if timed:
            lists.append(pl.col("time").filter(pl.col("item").is_not_null()).cast(pl.Int64).alias(TIMES))
        for name in (one for one in table.collect_schema() if one.startswith(FEATURE)):
            own = pl.col(name).filter(pl.col("item").is_not_null())
            lists.append(pl.col(name).last() if name.removeprefix(FEATURE) in of_users else own)
        yield events.group_by("user", maintain_order=True).agg(lists).collect()


def _batches(frames: Iterator[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    for frame in frames:
        yield from frame.iter_slices(size)


def _histories(frame: pl.DataFrame, features: Sequence[str]) -> tuple[list[History], np.ndarray]:
    """Histories of a frame and their lengths; a null list is an empty history."""
    items = [one or [] for one in frame[ITEMS].to_list()]
    times = frame[TIMES].to_list() if TIMES in frame.columns else [None] * len(items)
    asked = frame["query_time"].to_list() if "query_time" in frame.columns else [None] * len(items)
    given = {name: frame[FEATURE + name].to_list() for name in features if FEATURE + name in frame.columns}
    histories = [
        History(one, when, query_time=at, time_unit="ms", features={name: given[name][row] for name in given} or None)
        for row, (one, when, at) in enumerate(zip(items, times, asked, strict=True))
    ]
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
