"""What the scripts of the tables share (encoders.py, augment.py): run a plan, compare its rows, write the results.

A finished run is read, not repeated, and an interrupted one is resumed. A seed that the results hold counts as
finished: what comparisons need of it, each user's metrics, is kept beside them (``per-user/NAME-seedN/``), so a table
can be continued on another machine, without the folders of the runs. To train a row anew delete both. Two processes may
work on a plan at the same time: a run that another one is at is passed over, and its result is taken in by whoever
finishes a run later. With ``--budget-minutes`` no run is begun that is expected not to end in time. What follows ``--``
goes to every recipe and becomes part of the names.

Results: ``benchmarks/quality/results/TABLE/DATA/NAME.json``, as run.py writes them, with the tuning and the paired
comparisons: each user's metric is averaged over the seeds that both rows have, the differences get a bootstrap
interval and a sign-flip test over users. A comparison that cannot be made anew, because the users' metrics of a row are
gone, stays as it was recorded. ``benchmarks/quality/table.py --write`` makes the tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from plan import RUNS, SEED, Plan, Row, recbole
from run import BUSY, RESULTS, read, shown, split_arguments, start, summary, write, write_text

PAIRED = ("ndcg@10", "hr@10")


def main(plan: Plan, description: str | None, table: Callable[[Work, str], str] | None = None) -> None:
    """Run what the command line asks for; the exit status says whether every run begun was finished.

    A plan with a table of its own gives ``table``, which makes the text of one data set ("": nothing to show); it is
    written beside the folder of results.
    """
    about = f"{description or ''}\n{(__doc__ or '').partition(chr(10))[2]}"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=plan.data, default=list(plan.data))
    add("--only", nargs="+", metavar="NAME", choices=list(plan.by_name), help="rows of plan.py; all if none is named")
    if plan.outside:
        add("--recbole", nargs="+", metavar="MODEL", help="these models of RecBole instead of the plan")
    add("--seeds", type=int, nargs="+", help="instead of the plan's")
    add("--budget-minutes", type=float, default=float("inf"))
    add("--runs", type=Path, default=Path("runs/quality") / plan.name)
    add("--results", type=Path, default=RESULTS / plan.name)
    own, flags = split_arguments(sys.argv[1:])
    chosen = parser.parse_args(own)
    models = getattr(chosen, "recbole", None)
    named = tuple(plan.by_name[name] for name in chosen.only or plan.by_name)
    rows = tuple(map(recbole, models)) if models else named
    work = Work(plan, chosen.runs, chosen.results, flags, 60 * chosen.budget_minutes)
    asked = list(jobs(rows, chosen.data, chosen.seeds, asked=bool(chosen.only or models)))
    for row, data, seed in asked:
        work.do(row, data, seed)
    if work.failed:  # what builds on runs of several seeds may have come too soon
        late = [job for job in asked if any(RUNS in flag for flag in job[0].flags_for(job[1]))]
        work.failed = [line for line in work.failed if not any(line.startswith(work.failure(*job)) for job in late)]
        for row, data, seed in late:
            work.do(row, data, seed)
    for data in chosen.data:
        work.summarise(data, rows)
    for data in chosen.data if table else ():
        text = table(work, data)
        if text:
            write_text(chosen.results.parent / f"{work.named(plan.name)}-{data}.md", text)
            print(text)
    print("\n".join(dict.fromkeys([*work.passed, *work.failed])))
    sys.exit(bool(work.failed))


def jobs(
    rows: Sequence[Row], data: Sequence[str], seeds: list[int] | None, asked: bool
) -> Iterator[tuple[Row, str, int]]:
    """(row, data set, seed), all rows of a seed before the next seed, so that the table fills evenly."""
    for name in data:
        there = [row for row in rows if name in row.data and (asked or name not in row.unrun)]
        most = max((len(row.seeds_for(name)) for row in there), default=0)
        for seed in range(most) if seeds is None else seeds:
            yield from ((row, name, seed) for row in there if seeds is not None or seed in row.seeds_for(name))


class Work:
    """The runs of one call: where they lie, what was spent, and what came to nothing."""

    def __init__(self, plan: Plan, runs: Path, results: Path, flags: list[str], budget: float) -> None:
        self.plan, self.runs, self.results, self.flags, self.budget = plan, runs, results, flags, budget
        self.began = time.monotonic()
        self.passed: list[str] = []
        self.failed: list[str] = []

    def do(self, row: Row, data: str, seed: int) -> None:
        """One run, unless it is finished, somebody else's, or too long for what is left."""
        folder = self.folder(row.name, data, seed)
        label = f"{self.named(row.name)} on {data}, seed {seed}"
        if seed in self.known(row.name, data):
            return
        reason = self._reason(row, data)
        if reason:
            self.passed.append(f"not run: {label}: {reason}")
            return
        print(f"{label} ...", flush=True)
        asked = (*row.flags_for(data), *self.flags)
        flags = [flag.replace(RUNS, str(self.runs)).replace(SEED, str(seed)) for flag in asked]
        status = start(row.recipe_for(data), folder, seed, flags)
        if status == BUSY:
            self.passed.append(f"not run: {label}: another process is at it")
        elif status:
            self.failed.append(f"{self.failure(row, data, seed)} status {status}, see above")
        else:
            print(f"{label}: {shown(read(folder, seed))}", flush=True)
            self.summarise(data, (row,))

    def failure(self, row: Row, data: str, seed: int) -> str:
        """How the line on a run that failed begins."""
        return f"failed: {self.named(row.name)} on {data}, seed {seed}:"

    def summarise(self, data: str, rows: Sequence[Row]) -> None:
        """Write the results of every row with runs on ``data``: a new run of a reference changes all comparisons."""
        with FileLock(self.locked(data)):
            for row in {**self.plan.by_name, **{row.name: row for row in rows}}.values():
                self._summarise(row, data)

    def _summarise(self, row: Row, data: str) -> None:
        results, named = self.known(row.name, data), self.named(row.name)
        if not results:
            return
        for run in results.values():  # where the runs of this machine lie is nobody else's
            if "command" in run:
                run["command"] = run["command"].replace(str(self.runs), RUNS)
        numbers = " ".join(map(str, results))
        which = f"--recbole {row.flags[1]}" if row.name.startswith("recbole-") else f"--only {row.name}"
        command = f"python {self.plan.script} --data {data} {which} --seeds {numbers}"
        command += f" -- {' '.join(self.flags)}" if self.flags else ""
        found = summary(named, list(results.values()), command)
        found |= {"data": data, "tuning": row.tuning, "fewer": row.fewer.get(data, ""), "paired": {}}
        ranked, recorded = self.ranked(row.name, data), self.results / data / f"{named}.json"
        before = json.loads(recorded.read_text()).get("paired", {}) if recorded.is_file() else {}
        for other in row.others:
            compared = paired(self.named(other), self.ranked(other, data), named, ranked) or before.get(other)
            found["paired"] |= {} if compared is None else {other: compared}
        write(recorded, found)
        for seed, folder in ranked.items():
            keep(folder, self.kept(row.name, data, seed))

    def known(self, name: str, data: str) -> dict[int, dict[str, Any]]:
        """Seed -> what is known of the run, from its folder or from the results.

        Raises:
            ValueError: runs of one row were trained in different ways.
        """
        recorded = self.results / data / f"{self.named(name)}.json"
        runs = json.loads(recorded.read_text())["runs"] if recorded.is_file() else []
        found = {run["seed"]: run for run in runs}
        found |= {seed: read(folder, seed) for seed, folder in self.finished(name, data).items()}
        ways = {run["way"]: seed for seed, run in found.items() if "way" in run}
        if len(ways) > 1:
            raise ValueError(
                f"{self.named(name)} on {data} was trained in different ways, for example with the seeds "
                f"{sorted(ways.values())}: delete the runs of the old one below {self.runs / data} and, if they are "
                f"recorded there, from {recorded}"
            )
        return dict(sorted(found.items()))

    def ranked(self, name: str, data: str) -> dict[int, Path]:
        """Seed -> where each user's metrics lie, of the known runs that have them: a run folder, or what was kept."""
        kept = {seed: self.kept(name, data, seed) for seed in self.known(name, data)}
        kept = {seed: folder for seed, folder in kept.items() if (folder / "per_user.parquet").is_file()}
        return dict(sorted((kept | self.finished(name, data)).items()))

    def finished(self, name: str, data: str) -> dict[int, Path]:
        """Seed -> folder of the runs that are over and still there."""
        stem = f"{self.named(name)}-seed"
        found = [path.parent for path in (self.runs / data).glob(f"{stem}*/result.json")]
        return dict(sorted((int(folder.name.removeprefix(stem)), folder) for folder in found))

    def kept(self, name: str, data: str, seed: int) -> Path:
        """Where each user's metrics are kept beside the results."""
        return self.results / data / "per-user" / f"{self.named(name)}-seed{seed}"

    def locked(self, data: str) -> Path:
        """The lock of whoever writes results, among the runs."""
        (self.runs / data).mkdir(parents=True, exist_ok=True)
        return self.runs / data / "results.lock"

    def named(self, name: str) -> str:
        """The name of a row, with the flags that all recipes get."""
        return "-".join([name, *(flag.lstrip("-") for flag in self.flags)])

    def folder(self, name: str, data: str, seed: int) -> Path:
        """Where a run lies."""
        return self.runs / data / f"{self.named(name)}-seed{seed}"

    def _reason(self, row: Row, data: str) -> str:
        from recsys.runs.recipe import find_recipe

        try:
            find_recipe(row.recipe_for(data))
        except FileNotFoundError as error:
            return str(error)
        if row.name.startswith("recbole-") and importlib.util.find_spec("recbole") is None:
            return "RecBole is not installed here (python3 tasks.py parity makes an environment that has it)"
        spent = time.monotonic() - self.began
        known = [run["train_seconds"] + run["validation_seconds"] for run in self.known(row.name, data).values()]
        expected = max(known, default=0.0)
        if spent + expected > self.budget:
            return f"{spent / 60:.0f} minutes of the budget are spent and it takes about {expected / 60:.0f}"
        return ""


def paired(reference: str, before: dict[int, Path], name: str, after: dict[int, Path]) -> dict[str, Any] | None:
    """What changes from the reference, over users; None if no seed is common to both."""
    from recsys.eval.compare import compare

    common = sorted(before.keys() & after.keys())
    if not common:
        return None
    reports = [averaged([folders[seed] for seed in common]) for folders in (before, after)]
    found = compare(*reports, names=(reference, name), metrics=PAIRED, segments=False)
    keys = ("first_mean", "other_mean", "difference", "low", "high", "p", "test")
    return {
        "reference": reference,
        "seeds": common,
        "users": found.overall[0].users,
        "metrics": {row.metric: {key: getattr(row, key) for key in keys} for row in found.overall},
    }


def keep(run: Path, folder: Path) -> None:
    """Write what a comparison needs of the report in the folder of a run into another one, unless it is there."""
    from recsys.eval.report import Report
    from recsys.eval.storage import read_table, write_table

    if run == folder:
        return
    report = Report.load(run, only=PAIRED)
    few = ("candidates",) if "num_candidates" in report.meta else ()  # cold.py tells chance by them
    columns = {name: report.columns[name] for name in ("user", *few, *PAIRED)}
    known = read_table(folder)[0] if (folder / "per_user.parquet").is_file() else {}
    if any(name not in known or not np.array_equal(known[name], values) for name, values in columns.items()):
        write_table(folder, columns, {"meta": report.meta, "aggregates": report.aggregates, "seed": report.seed})


def averaged(paths: Sequence[Path]) -> Any:
    """One report whose metrics are, user by user, the means over the reports in ``paths``."""
    from recsys.eval.report import Report

    reports = [Report.load(path, only=PAIRED) for path in paths]
    first = reports[0]
    for report in reports[1:]:
        if (
            report.meta["fingerprint"] != first.meta["fingerprint"]
            or report.meta["data_hash"] != first.meta["data_hash"]
        ):
            raise ValueError(f"the seeds of {paths[0].parent} were not ranked on the same targets: remove the old ones")
    orders = [np.argsort(report.columns["user"], kind="stable") for report in reports]
    columns = {"user": first.columns["user"][orders[0]]}
    for metric in PAIRED:
        values = [report.columns[metric][order] for report, order in zip(reports, orders, strict=True)]
        columns[metric] = np.mean(values, axis=0)
    return replace(first, columns=columns)
