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

import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

from driver import Work, main
from plan import RUNS, Plan, Row

DATA = ("ml-100k", "amazon-beauty")
SASREC = {"ml-100k": "sasrec_ml100k", "amazon-beauty": "sasrec_beauty"}
ROLES = ("teacher", "student", "ce-only")
ROUNDS, HISTORIES = 5, 512


def slmrec(role: str, against: tuple[str, ...] = ()) -> Row:
    """The row of a role; all of them read the vectors of SASRec, and the student the teacher as well."""
    flags = {}
    for data in DATA:
        flags[data] = ("--sasrec", f"{RUNS}/{data}/sasrec-seed0")
        flags[data] += ("--teacher", f"{RUNS}/{data}/slmrec-teacher-seed0") if role == "student" else ()
    return Row(
        f"slmrec-{role}",
        "slmrec",
        ("--role", role, "--rows", "users", "--epochs", "60", "--patience", "8"),
        more=flags,
        data=DATA,
        seeds=dict.fromkeys(DATA, 1 if role == "teacher" else 3),
        against=against,
    )


# In the order in which they need each other.
SLMREC = Plan(
    "slmrec",
    (
        Row("sasrec", SASREC, ("--no-baselines",), data=DATA, seeds=dict.fromkeys(DATA, 3), reference=None),
        slmrec("teacher"),
        slmrec("ce-only", against=("slmrec-teacher",)),
        slmrec("student", against=("slmrec-ce-only", "slmrec-teacher")),
    ),
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
        "| model | NDCG@10 [95%] | HR@10 | seeds | against ce-only | against teacher | against SASRec | trained "
        f"| served, merged | / teacher | training s/epoch / teacher | scoring / teacher |\n{'|---' * 12}|"
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
        f"{mine['trained']:,}",
        f"{mine['served']:,}",
        f"{mine['served'] / teacher['served']:.2f}",
        f"{epoch(role) / epoch('teacher'):.2f}",
        f"{mine['seconds'] / teacher['seconds']:.2f}",
    ]


def timed(folders: dict[str, Path]) -> dict[str, Any]:
    """Parameters trained (a student's heads among them) and served, and seconds to score the same histories, merged."""
    import torch

    import recsys as rs

    models = {role: rs.load_run(folder) for role, folder in folders.items()}
    facts: dict[str, Any] = {"threads": torch.get_num_threads()}
    for role, model in models.items():
        trained = sum(value.numel() for value in model.parameters())  # the base's are buffers, so that none is trained
        model.encoder.merge()
        served = sum(value.numel() for value in model.encoder.state_dict().values() if value.is_floating_point())
        facts[role] = {"served": served, "trained": trained}
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


if __name__ == "__main__":
    main(SLMREC, __doc__, table)
