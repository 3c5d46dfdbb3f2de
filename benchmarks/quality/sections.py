"""The tables of a plan as text: per data set its rows with what they are compared with, and where the numbers are from.

Two kinds stand below: encoders (and ReaRec, and the other protocol), and auxiliaries on one backbone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from plan import (
    AUGMENT,
    AUGMENTED,
    BACKBONE,
    DATA,
    ENCODERS,
    GENERATE,
    GENERATIVE,
    GENERATIVE_DATA,
    KEPT,
    PLAN,
    REAREC,
    REFERENCE,
    REG4REC,
    Plan,
    Row,
    recbole,
)  # fmt: skip
from run import EDITOR, RESULTS

HEADS = {
    "ndcg@10": "NDCG@10 [95%]",
    "hr@10": "HR@10 [95%]",
    "hr@20": "HR@20 [95%]",
    "difference": "NDCG@10 minus {minus} [95%]",
    "p": "p (Holm)",
    "seeds": "seeds",
    "epochs": "epochs",
    "minutes": "minutes",
    "cost": "cost",
    "peak": "peak GiB",
    "tuning": "tuning",
}
OF_ENCODERS = tuple(key for key in HEADS if key not in ("hr@20", "cost"))


@dataclass(frozen=True)
class Section:
    """The table of some rows of a plan on one data set; without any result it is one line that says so.

    ``primary`` is the field of a row that names what its column of differences is taken from, ``minus`` how that column
    is headed, ``kind`` what the rows are, ``columns`` keys of ``HEADS``. ``results`` holds a folder per data set.
    """

    title: str
    data: str
    plan: Plan
    rows: tuple[Row, ...]
    primary: str
    minus: str
    kind: str = "encoder"
    columns: tuple[str, ...] = OF_ENCODERS
    results: Path = RESULTS

    @cached_property
    def stored(self) -> dict[str, dict[str, Any]]:
        """All results of the plan on the data set, by name."""
        folder = self.results / self.plan.name / self.data
        return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    @cached_property
    def planned(self) -> list[Row]:
        """The rows of the table, and the further models of RecBole that were run."""
        known = self.plan.by_name
        more = [recbole(name[8:]) for name in self.stored if name.startswith("recbole-") and name not in known]
        return [row for row in self.rows if self.data in row.data] + (more if self.rows is PLAN else [])

    @cached_property
    def found(self) -> dict[str, dict[str, Any]]:
        """The results of the rows that have one."""
        return {row.name: self.stored[row.name] for row in self.planned if row.name in self.stored}

    @cached_property
    def compared(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(row, other) -> the paired comparison, of all that the section shows."""
        wanted = [(row, other) for row in self.planned for other in (getattr(row, self.primary), *row.against) if other]
        pairs = [(row.name, other) for row, other in wanted if row.name in self.found]
        paired = {pair: self.found[pair[0]]["paired"].get(pair[1]) for pair in pairs}
        return {pair: comparison for pair, comparison in paired.items() if comparison is not None}

    def __str__(self) -> str:
        if not self.found:
            return f"{self.title}: not run; `{self.command()}` makes it."
        chances = corrected(self.compared)
        heads = [self.kind, *(HEADS[key].format(minus=self.minus) for key in self.columns)]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [self.line(row, chances) for row in self.planned]
        parts = ["\n".join(lines), *self.further(chances), *self.editors(), self.origin()]
        return "\n\n".join([f"### {self.title}", *parts])

    def command(self) -> str:
        """What runs the rows of this table that are planned."""
        call = f"python {self.plan.script} --data {self.data}"
        names = [row.name for row in self.planned if self.data not in row.unrun]
        return call if self.rows[0] is self.plan.rows[0] else f"{call} --only {' '.join(names)}"

    def line(self, row: Row, chances: dict[tuple[str, str], float]) -> str:
        """A row of the table; one that was not run says so, and why if that is known."""
        if row.name not in self.found:
            reason = row.unrun.get(self.data, "")
            return f"| {row.name} | not run{': ' if reason else ''}{reason} |" + " |" * (len(self.columns) - 1)
        pair = (row.name, getattr(row, self.primary))
        shown = cells(self.found[row.name], self.compared.get(pair), chances.get(pair), self.stored.get(pair[1]))
        return f"| {' | '.join([row.name, *(shown[key] for key in self.columns)])} |"

    def further(self, chances: dict[tuple[str, str], float]) -> Iterator[str]:
        """A second table: the rows against others than the one of the column of differences."""
        first = {(row.name, getattr(row, self.primary)) for row in self.planned}
        lines = []
        for (name, other), paired in self.compared.items():
            if (name, other) not in first:
                changes = [change(paired["metrics"][metric]) for metric in ("ndcg@10", "hr@10")]
                values = [name, other, *changes, chance(chances[name, other]), str(len(paired["seeds"]))]
                lines.append(f"| {' | '.join(values)} |")
        if lines:
            head = f"| {self.kind} | minus | NDCG@10 [95%] | HR@10 [95%] | p of NDCG@10 (Holm) | common seeds |"
            yield "\n".join(["Further comparisons:", "", head, "|---" * 6 + "|", *lines])

    def editors(self) -> Iterator[str]:
        """A line per result, shown as a row or not, that told how well its editor does."""
        for name, result in self.stored.items():
            told = [run["editor"] for run in result["runs"] if set(run.get("editor", ())) == set(EDITOR)]
            if told:
                right, majority, inserted, popular = (np.mean([one[key] for one in told]) for key in EDITOR)
                yield (
                    f"Editor of {name} (mean over {len(told)} of {len(result['runs'])} seeds): operations right "
                    f"{right:.4f}, the majority label {majority:.4f}; inserted item right at top-1 {inserted:.4f}, the "
                    f"most popular item {popular:.4f}."
                )

    def origin(self) -> str:
        """Where the numbers come from."""
        runs = [run for result in self.found.values() for run in result["runs"]]

        def all_of(key: str) -> str:
            return ", ".join(map(str, sorted({run[key] for run in runs if key in run})))

        versions: dict[str, set[str]] = {}
        for run in runs:
            for library, version in run.get("versions", {}).items():
                versions.setdefault(library, set()).add(version)
        told = ", ".join(f"{library} {'/'.join(sorted(found))}" for library, found in versions.items())
        return (
            f"`python {self.plan.script} --data {self.data}`, {all_of('date')}; {all_of('machine')}, "
            f"{all_of('device')}, threads {all_of('threads')}; {told}; {runs[0]['users']:,} users."
        )


def sections(results: Path = RESULTS) -> list[Section]:
    """All tables: per data set encoders, ReaRec against its base, those of the other protocol; then the auxiliaries."""
    kept = "history kept, one target per prefix (the protocol of the Mamba papers)"
    found = []
    for data in DATA:
        found.append(Section(f"Encoders on {data}", data, ENCODERS, PLAN, "reference", REFERENCE, results=results))
        for title, rows in ((f"ReaRec on {data}", REAREC), (f"{data}, {kept}", KEPT)):
            if any(data in row.data for row in rows):
                found.append(Section(title, data, ENCODERS, rows, "base", "its base", results=results))
    for data in DATA:
        found.append(
            Section(
                f"Augmentation and contrast on {data}", data, AUGMENT, AUGMENTED, "reference", f"the {BACKBONE}",
                "auxiliary", tuple(HEADS), results,
            )
        )  # fmt: skip
    for data in GENERATIVE_DATA:
        title = f"Semantic ids and generation on {data}"
        found.append(Section(title, data, GENERATE, GENERATIVE, "reference", REFERENCE, "model", OF_ENCODERS, results))
        if any(data in row.data for row in REG4REC):
            title = f"REG4Rec (a reconstruction) on {data}"
            found.append(Section(title, data, GENERATE, REG4REC, "base", "its base", "model", OF_ENCODERS, results))
    return found


def cells(
    result: dict[str, Any], paired: dict[str, Any] | None, p: float | None, reference: dict[str, Any] | None
) -> dict[str, str]:
    """What a row says, by key of ``HEADS``; ``paired`` is its comparison, ``p`` corrected, if there is one."""
    runs = result["runs"]
    difference = ""
    if paired is not None:
        difference = change(paired["metrics"]["ndcg@10"])
        difference += f" ({len(paired['seeds'])} common seeds)" if len(paired["seeds"]) != len(runs) else ""
    minutes = (_mean(runs, "train_seconds") + _mean(runs, "validation_seconds")) / 60
    graphics = [run["gpu_peak_gib"] for run in runs if run["gpu_peak_gib"] is not None]
    return {
        **{key: interval(result["metrics"][key]) if key in result["metrics"] else "" for key in HEADS if "@" in key},
        "difference": difference,
        "p": "" if p is None else chance(p),
        "seeds": f"{len(runs)} ({result['fewer']})" if result["fewer"] else str(len(runs)),
        "epochs": f"{_mean(runs, 'epochs'):.0f}",
        "minutes": f"{minutes:.1f}",
        "cost": cost(runs, None if reference is None else reference["runs"]),
        "peak": f"{_mean(runs, 'peak_gib'):.2f}" + (f" + GPU {max(graphics):.2f}" if graphics else ""),
        "tuning": result["tuning"],
    }


def cost(runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]] | None) -> str:
    """Seconds per epoch as a ratio to the reference's, over the runs of the same day and machine if there are any."""
    runs = [run for run in runs if "epoch_seconds" in run]
    base = runs if reference is None else [run for run in reference if "epoch_seconds" in run]
    if not runs or not base:
        return ""
    shared = {_where(run) for run in runs} & {_where(run) for run in base}
    if shared:
        runs, base = ([run for run in group if _where(run) in shared] for group in (runs, base))
    epoch = max(_mean(base, "epoch_seconds"), 1e-9)
    earlier = _mean(runs, "earlier_seconds") / epoch
    notes = [f"{epoch:.1f} s an epoch"] if reference is None else []
    notes += [f"and {earlier:.1f} such epochs of pre-training"] if earlier else []
    notes += [] if shared else ["another day or machine"]
    return f"{_mean(runs, 'epoch_seconds') / epoch:.2f}" + (f" ({', '.join(notes)})" if notes else "")


def corrected(compared: dict[tuple[str, str], dict[str, Any]]) -> dict[tuple[str, str], float]:
    """The p of NDCG@10 of each comparison, corrected for all of a section (Holm)."""
    from recsys.eval.significance import holm

    chances = [found["metrics"]["ndcg@10"]["p"] for found in compared.values()]
    return dict(zip(compared, holm(np.array(chances)).tolist(), strict=True))


def interval(found: dict[str, Any]) -> str:
    """A mean with its interval, and what the interval is over."""
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}] ({found['over']})"


def change(found: dict[str, Any]) -> str:
    """A paired difference with its interval."""
    return f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def chance(p: float) -> str:
    """A p-value."""
    return "<.0001" if p < 0.0001 else f"{p:.4f}"


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _where(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run.get(key) for key in ("date", "machine", "threads", "device"))
