"""Run SLMRec's table: a teacher, a student of half its depth that learns from it, and one that does not.

    RECSYS_MIRROR=... python benchmarks/quality/slmrec.py
    python benchmarks/quality/slmrec.py --data ml-100k --seeds 0 1 2

Items are the vectors of SASRec's run with seed 0, and the students' teacher is the one with seed 0, so what the seeds
vary is the student. All three train on one row per user, as the authors do (SASRec on all positions of each row), so
teacher and students are to be compared with each other first. Paired tests are over users, each metric averaged over
the seeds. At the end the finished models of seed 0 are timed against each other: histories of the test part, whole
scores, in turns, medians. The table of a data set is written to ``benchmarks/quality/results/slmrec-DATA.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from driver import Work, main
from plan import Plan, Row
from run import RESULTS, split_arguments

DATA = ("ml-100k", "amazon-beauty")
SASREC = {"ml-100k": "sasrec_ml100k", "amazon-beauty": "sasrec_beauty"}
ROLES = ("teacher", "student", "ce-only")
ROUNDS, HISTORIES = 5, 512


def rows(runs: Path) -> tuple[Row, ...]:
    """SASRec, then what is built on it, in the order in which they need each other."""
    sasrec = {data: ("--sasrec", str(runs / data / "sasrec-seed0")) for data in DATA}
    teacher = {data: (*sasrec[data], "--teacher", str(runs / data / "slmrec-teacher-seed0")) for data in DATA}

    def slmrec(role: str, against: tuple[str, ...] = ()) -> Row:
        return Row(
            f"slmrec-{role}",
            "slmrec",
            ("--role", role, "--rows", "users", "--epochs", "60", "--patience", "8"),
            more=teacher if role == "student" else sasrec,
            data=DATA,
            seeds=dict.fromkeys(DATA, 1 if role == "teacher" else 3),
            against=against,
        )

    return (
        Row("sasrec", SASREC, ("--no-baselines",), data=DATA, seeds=dict.fromkeys(DATA, 3), reference=None),
        slmrec("teacher"),
        slmrec("ce-only", against=("slmrec-teacher",)),
        slmrec("student", against=("slmrec-ce-only", "slmrec-teacher")),
    )


def table(work: Work, data: str) -> str:
    """The table of one data set, empty if a role was not run."""
    folders = {row.name: work.finished(row.name, data) for row in work.plan.rows}
    if not all(folders.values()):
        return ""
    results = {
        name: json.loads((work.results / data / f"{work.named(name)}.json").read_text(encoding="utf-8"))
        for name in folders
    }
    facts = timed({role: folders[f"slmrec-{role}"][min(folders[f"slmrec-{role}"])] for role in ROLES})
    lines = []
    for name, found in results.items():
        metric, role = found["metrics"]["ndcg@10"], name.removeprefix("slmrec-")
        mean = f"{metric['mean']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}] ({metric['over']})"
        cells = [name, mean, f"{found['metrics']['hr@10']['mean']:.4f}", str(len(found["runs"]))]
        cells += [difference(found, other) for other in ("slmrec-ce-only", "slmrec-teacher", "sasrec")]
        cells += ratios(facts, role, results) if role in facts else [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        "| model | NDCG@10 [95%] | HR@10 | seeds | against ce-only | against teacher | against SASRec | parameters "
        f"| of these trained | / teacher | training s/epoch / teacher | scoring / teacher |\n{'|---' * 12}|"
    )
    command = f"python {work.plan.script} --data {data}" + (f" -- {' '.join(work.flags)}" if work.flags else "")
    told = f"{HISTORIES} histories on {facts['threads']} threads, the teacher in {facts['teacher']['seconds']:.2f} s"
    return "\n".join(
        [f"### SLMRec on {data}", "", head, *lines, "", f"Scoring: {told}. `{command}`, {datetime.date.today()}\n"]
    )


def difference(found: dict[str, Any], other: str) -> str:
    """Difference of NDCG@10 from another row, its interval over users and the p-value of the paired test."""
    if other not in found["paired"]:
        return ""
    row = found["paired"][other]["metrics"]["ndcg@10"]
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p {row['p']:.4f}"


def ratios(facts: dict[str, Any], role: str, results: dict[str, Any]) -> list[str]:
    """Sizes and times of a role as ratios to the teacher's."""

    def epoch(which: str) -> float:
        return statistics.median(run["epoch_seconds"] for run in results[f"slmrec-{which}"]["runs"])

    mine, teacher = facts[role], facts["teacher"]
    return [
        f"{mine['parameters']:,}",
        f"{mine['trained']:,}",
        f"{mine['parameters'] / teacher['parameters']:.2f}",
        f"{epoch(role) / epoch('teacher'):.2f}",
        f"{mine['seconds'] / teacher['seconds']:.2f}",
    ]


def timed(folders: dict[str, Path]) -> dict[str, Any]:
    """Parameters of each model, and seconds that it takes to score the same histories, adapters merged."""
    import torch

    import recsys as rs

    models = {role: rs.load_run(folder) for role, folder in folders.items()}
    facts: dict[str, Any] = {"threads": torch.get_num_threads()}
    for role, model in models.items():
        sizes = [value.numel() for value in model.parameters()]
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        model.encoder.merge()
        facts[role] = {"parameters": sum(sizes), "trained": trained}
    items = models["teacher"].vocabulary.ids
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(items), (HISTORIES, models["teacher"].encoder.max_length), generator=generator)
    histories = [items[row].tolist() for row in rows.numpy()]
    seconds: dict[str, list[float]] = {role: [] for role in models}
    for _ in range(ROUNDS):
        for role, model in models.items():
            began = time.perf_counter()
            model.scores(histories)
            seconds[role].append(time.perf_counter() - began)
    for role, found in seconds.items():
        facts[role]["seconds"] = statistics.median(found)
    return facts


def write_tables(plan: Plan, runs: Path, results: Path, flags: list[str]) -> None:
    """Write the table of each data set whose rows have runs, beside the folder of results."""
    work = Work(plan, runs, results, flags, 0.0)
    for data in DATA:
        text = table(work, data)
        if text:
            path = results.parent / f"{work.named(plan.name)}-{data}.md"
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
            print(text)


def run() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality/slmrec"))
    parser.add_argument("--results", type=Path, default=RESULTS / "slmrec")
    own, flags = split_arguments(sys.argv[1:])
    chosen, _ = parser.parse_known_args(own)
    plan = Plan("slmrec", rows(chosen.runs))
    try:
        main(plan, __doc__)
    except SystemExit as over:  # how it always ends; 2 is a command line that it does not understand
        if over.code != 2 and not {"-h", "--help"} & set(sys.argv):
            write_tables(plan, chosen.runs, chosen.results, flags)
        raise


if __name__ == "__main__":
    run()
