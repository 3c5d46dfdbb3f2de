"""Recorded results of benchmarks, read from a folder: rows by data set and method, tables, and what is neither.

Three kinds of files are known. A *result* of several seeds, as ``benchmarks/quality/run.py`` writes it: name, command,
date, machine, metrics with intervals, the runs, and paired comparisons. A *row of one seed* (``row``, ``seed`` and
numbers); those of one row are put together, the mean with Student's t over seeds. A *table* in Markdown, which has the
numbers of files of any other form beside it. What is damaged or unknown is kept with the reason: nothing is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys.cards.card import names as card_names
from recsys.errors import DataError, printable
from recsys.eval.significance import holm
from recsys.pages.charts import is_number

FOLDER = "results"  # where there are folders of this name, only what lies in one is read
USERS = "per-user"  # users' numbers beside results, for later comparisons
_SIZE = 64 * 2**20  # bytes of a file that is read


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds of a result; without an interval where none was recorded."""

    mean: float
    low: float | None = None
    high: float | None = None
    over: str = ""


@dataclass(frozen=True)
class Paired:
    """A paired difference from another method; ``p_holm`` is corrected within data set, table and reference."""

    reference: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Result:
    """One method on one data set."""

    files: tuple[str, ...]
    table: str
    data: str
    method: str
    metrics: Mapping[str, Measured]
    seeds: tuple[int, ...]
    protocol: str = ""
    date: str = ""
    machine: str = ""
    command: str = ""
    tuning: str = ""
    paired: tuple[Paired, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table in Markdown, with the JSON files whose numbers it shows."""

    file: str
    text: str
    of: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its first heading, or the name of the file."""
        first = self.text.lstrip().partition("\n")[0]
        return first.lstrip("# ").strip() if first.startswith("#") else Path(self.file).stem

    @property
    def command(self) -> str:
        """The command that it says made it."""
        found = re.search(r"`(python [^`]*)`", self.text)
        return found.group(1) if found else ""

    @property
    def date(self) -> str:
        """The last day that it names."""
        return max(re.findall(r"\b20\d\d-\d\d-\d\d\b", self.text), default="")


@dataclass(frozen=True)
class Recorded:
    """All that lies in a folder. ``others`` are files that are neither results nor shown by a table: (file, reason)."""

    results: tuple[Result, ...]
    tables: tuple[Table, ...]
    others: tuple[tuple[str, str], ...]
    files: int


def read_recorded(folder: str | Path) -> Recorded:
    """Everything recorded below ``folder``, in the order of its files.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it holds no result and no table.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{printable(root, None)} is not a folder: pass one that holds recorded results")
    paths = _paths(root)
    names = {path: path.relative_to(root).as_posix() for path in paths}
    contents, others = _contents({path: name for path, name in names.items() if path.suffix == ".json"})
    texts = {names[path]: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.suffix == ".md"}
    tables = [Table(name, text) for name, text in texts.items()]
    whole = {name: found for name, found in contents.items() if _is_result(found)}
    known = sorted({*card_names(), *(str(found["data"]) for found in whole.values() if found.get("data"))}, key=len)
    results = _read(whole, known, others)
    rows = {name: found for name, found in contents.items() if name not in whole and _is_row(found)}
    results += _together(rows, known, tables)
    by_table: dict[str, list[str]] = {}
    for name in contents.keys() - whole.keys():
        told = _table_of(name, tables)
        if told is not None:
            by_table.setdefault(told.file, []).append(name)
        elif name not in rows:
            others.append((name, "neither a result nor beside a table"))
    if not results and not tables:
        said = (
            f"; {len(others):,} files cannot be read as such, the first: {others[0][0]}: {others[0][1]}"
            if others
            else ""
        )
        raise DataError(
            f"{printable(root, None)} holds no recorded results{said}: pass a folder with files that "
            "benchmarks/quality/run.py wrote, or the folder of a run"
        )
    shown = tuple(replace(table, of=tuple(sorted(by_table.get(table.file, ())))) for table in tables)
    return Recorded(tuple(_corrected(results)), shown, tuple(sorted(others)), len(paths))


def _paths(root: Path) -> list[Path]:
    """The files to read, in one order on every machine; links are not followed."""
    found = [
        path for path in root.rglob("*")
        if path.suffix in (".json", ".md") and path.is_file() and not path.is_symlink() and path.name != "README.md"
        and USERS not in path.relative_to(root).parts
    ]  # fmt: skip
    inside = [path for path in found if FOLDER in path.relative_to(root).parts[:-1]]
    return sorted(inside or found, key=lambda path: path.relative_to(root).as_posix())


def _contents(names: Mapping[Path, str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The contents of JSON files by name, and those that cannot be read with the reason."""
    found, others = {}, []
    for path, name in names.items():
        try:
            if path.stat().st_size > _SIZE:
                raise ValueError(f"it is larger than {_SIZE >> 20} MiB")
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            others.append((name, f"damaged: {type(error).__name__}: {error}"))
    return found, others


def _read(whole: Mapping[str, dict[str, Any]], known: Sequence[str], others: list[tuple[str, str]]) -> list[Result]:
    """Results of several seeds; what is no such thing after all goes to ``others``."""
    results = []
    for name, found in whole.items():
        try:
            results.append(_result(name, found, known))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            others.append((name, f"a result of another format ({type(error).__name__}: {error})"))
    return results


def _is_result(found: Any) -> bool:
    return isinstance(found, dict) and {"name", "metrics", "runs"} <= found.keys()


def _is_row(found: Any) -> bool:
    named = isinstance(found, dict) and {"row", "seed"} <= found.keys()
    return named and any(is_number(value) for key, value in found.items() if key != "seed")


def _result(file: str, found: dict[str, Any], known: Sequence[str]) -> Result:
    name, runs = str(found["name"]), list(found["runs"])
    metrics = {str(metric): _measured(row) for metric, row in found["metrics"].items()}
    if not metrics:
        raise ValueError("it has no metrics")
    told = [str(run["protocol"]).partition(" on ")[2] for run in runs if "protocol" in run]
    paired = tuple(
        Paired(
            str(one["reference"]), str(metric), *(float(row[key]) for key in ("difference", "low", "high", "p", "p"))
        )
        for one in found.get("paired", {}).values()
        for metric, row in one["metrics"].items()
    )
    return Result(
        (file,), _place(file), str(found.get("data") or _data_of(name, known)), name, metrics,
        tuple(int(run["seed"]) for run in runs), protocol(told[0]) if told else "", str(found.get("date", "")),
        str(found.get("machine", "")), str(found.get("command", "")), str(found.get("tuning", "")), paired,
    )  # fmt: skip


def protocol(told: str) -> str:
    """What must be equal for two numbers to be compared, of the first line of a report: split, candidates, users.

    Full rankings and lists to a depth are the same task, up to that depth.
    """
    ranked, _, counts = told.partition("; ")
    ranked = re.sub(
        r", (full ranking|list only, to \d+(, of the candidates)?|ranked among the candidates only)", "", ranked
    )
    return (
        f"{ranked}; {counts.partition(',')[0] if ' users' not in counts else counts.partition(' users')[0] + ' users'}"
    )


def _measured(row: Mapping[str, Any]) -> Measured:
    if not is_number(row["mean"]):
        raise ValueError(f"its mean is {row['mean']!r}, and a finite number is expected")
    low, high = (float(row[key]) if is_number(row.get(key)) else None for key in ("low", "high"))
    return Measured(float(row["mean"]), low, high, str(row.get("over", "")))


def _together(rows: Mapping[str, Any], known: Sequence[str], tables: Sequence[Table]) -> list[Result]:
    """A result for each row that was recorded a seed at a time."""
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for name, found in rows.items():
        groups.setdefault((name.rpartition("/")[0], str(found["row"])), []).append((name, found))
    made = []
    for (place, row), members in groups.items():
        *_, before, last = ("", "", *place.split("/"))
        data = _data_of(last, known)
        model = last.removeprefix(data).strip("-")
        names = [key for key in members[0][1] if all(is_number(found.get(key)) for _, found in members)]
        metrics = {key: _over_seeds([float(found[key]) for _, found in members]) for key in names if key != "seed"}
        told = _table_of(members[0][0], tables)
        made.append(
            Result(
                tuple(name for name, _ in members), before, data, f"{row} ({model})" if model else row, metrics,
                tuple(int(found["seed"]) for _, found in members if is_number(found["seed"])),
                f"as in the table {told.title}" if told else "", told.date if told else "",
                command=told.command if told else "",
            )
        )  # fmt: skip
    return made


def _over_seeds(values: list[float]) -> Measured:
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Measured(mean)
    reach = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Measured(mean, mean - reach, mean + reach, "seeds")


def _table_of(file: str, tables: Iterable[Table]) -> Table | None:
    """The table about a file: of those whose name the file's path has in it, the one with the longest."""
    home, _, inner = file.rpartition(f"{FOLDER}/")
    words = f"-{inner.removesuffix('.json').replace('/', '-')}-"
    fitting = [
        one for one in tables
        if one.file.rpartition(f"{FOLDER}/")[0] == home and f"-{Path(one.file).stem}-" in words
    ]  # fmt: skip
    return max(fitting, key=lambda one: len(Path(one.file).stem), default=None)


def _place(file: str) -> str:
    """The table that a result belongs to: the folder above that of the data set, if it has one."""
    inner = file.rpartition(f"{FOLDER}/")[2].split("/")
    return inner[0] if len(inner) > 1 else "single results"


def _data_of(name: str, known: Sequence[str]) -> str:
    """The data set that a name begins with or mentions, with or without hyphens; the longest of several."""
    squeezed = name.replace("-", "")
    return max((one for one in known if one.replace("-", "") in squeezed), key=len, default="")


def _corrected(results: Sequence[Result]) -> list[Result]:
    """The same results with p corrected (Holm) over all methods of a table against one reference."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for at, one in enumerate(results):
        for place, paired in enumerate(one.paired):
            groups.setdefault((one.data, one.table, paired.reference, paired.metric), []).append((at, place))
    lists = [list(one.paired) for one in results]
    for members in groups.values():
        chances = holm(np.array([lists[at][place].p for at, place in members]))
        for (at, place), chance in zip(members, chances.tolist(), strict=True):
            lists[at][place] = replace(lists[at][place], p_holm=float(chance))
    return [replace(one, paired=tuple(own)) for one, own in zip(results, lists, strict=True)]
