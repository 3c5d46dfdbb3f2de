"""Run the table of cold items: who finds items that training never saw, by id, by text, by both.

    RECSYS_MIRROR=... python benchmarks/quality/cold.py
    python benchmarks/quality/cold.py --data ml-100k --only ids text --seeds 0 1 --budget-minutes 30

5% of the items are taken out of training and histories (:mod:`recsys.data.cold`), the same ones for all rows and seeds,
and only items that training never saw are ranked: these, and some that lost all their events with what comes behind a
test target. A random order finds a target among the first ten of C candidates with chance 10 / C, and every bound is
also told as a multiple of it. Two intervals are made of each row's HR@10: over users (bootstrap, each user's mean over
seeds) and over seeds (Student's t); the bounds are the outer ones of the two.
The table of a data set is written to ``benchmarks/quality/results/cold-DATA.md``, from the run folders; a row whose
users' metrics are gone stays in it as it was.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from driver import Work, main
from plan import Plan, Row
from run import over_seeds

DATA = ("ml-100k", "amazon-beauty")
METRIC, K = "hr@10", 10


def cold(name: str, *flags: str, seeds: int = 3, reference: str | None = "ids") -> Row:
    """A row of the table, ranked on cold items."""
    return Row(name, "text_items", ("--cold", *flags), data=DATA, seeds=dict.fromkeys(DATA, seeds), reference=reference)


def by_codes(name: str, recipe: str, *flags: str, beauty: tuple[str, ...] = ()) -> Row:
    """A row of items by semantic ids."""
    seeds, more = {"ml-100k": 3, "amazon-beauty": 1}, {"amazon-beauty": beauty} if beauty else {}
    return Row(name, recipe, ("--cold", *flags), more, data=DATA, seeds=seeds, reference="text")


# LIGER on amazon-beauty as its authors train it (cosine), and held back from the codes of items that it knows.
TEXTS = ("--project", "linear", "--decay", "cosine", "--dropout", "0.3", "--epochs", "40", "--patience", "40")


# On one core an epoch of pre-training takes 6 minutes on amazon-beauty and one of fine-tuning 2.
SHORT = ("--pretrain-epochs", "1", "--epochs", "8", "--second-epochs", "4")


COLD = Plan(
    "cold",
    (
        cold("ids", "--table", "ids", seeds=5, reference=None),  # at chance, which moves with the initial weights
        cold("text", "--table", "text"),
        cold("text-mlp", "--table", "text", "--project", "mlp"),
        cold("ids-text", "--table", "ids+text"),
        Row(
            "recformer", "recformer", ("--cold",), more={"amazon-beauty": SHORT}, data=DATA,
            seeds={"ml-100k": 3, "amazon-beauty": 1}, reference="ids",
        ),
        by_codes("codes", "rpg", "--loss", "items"),  # vectors of codes, fitted without the cold items
        by_codes("tiger", "tiger"),
        by_codes("liger", "liger", beauty=TEXTS),
        by_codes("liger-dense", "liger", "--rank-by", "dense", beauty=TEXTS),
    ),
)  # fmt: skip


def table(work: Work, data: str) -> str:
    """The table of one data set, empty if nothing was run."""
    lines, before = [], recorded(work.results.parent / f"{work.named(COLD.name)}-{data}.md")
    for row in COLD.rows:
        folders, name = work.ranked(row.name, data), work.named(row.name)
        if len(folders) < len(work.known(row.name, data)) and name in before:
            lines.append(before[name])
        elif folders:
            lines.append(line(name, measured(list(folders.values())), len(folders)))
    if not lines:
        return ""
    head = (
        f"| items | HR@10 [95% over users] | [95% over seeds] | chance | lower bound / chance | upper bound / chance "
        f"| NDCG@10 | seeds | users | candidates |\n{'|---' * 10}|"
    )
    command = f"python {COLD.script} --data {data}" + (f" -- {' '.join(work.flags)}" if work.flags else "")
    return "\n".join([f"### Cold items of {data}", "", head, *lines, "", f"`{command}`, {datetime.date.today()}\n"])


def measured(folders: list[Path]) -> dict[str, Any]:
    """HR@10 of the runs in ``folders``, one per seed, with both intervals, and what chance gives these users."""
    from driver import averaged

    from recsys.eval.report import Report
    from recsys.eval.significance import bootstrap_interval

    report = averaged(folders)
    seeds = np.array([Report.load(folder, only=[METRIC]).mean(METRIC) for folder in folders])
    candidates = Report.load(folders[0], only=[METRIC]).columns["candidates"]
    low, high = bootstrap_interval(report.columns[METRIC][:, None])[0].tolist()
    users = (low, high)
    found = {
        "mean": report.mean(METRIC),
        "ndcg": report.mean("ndcg@10"),
        "users": users,
        "seeds": None,
        "chance": float(np.minimum(K / candidates, 1).mean()),
        "num_users": len(candidates),
        "candidates": float(candidates.mean()),
    }
    bounds = list(users)
    if len(seeds) > 1:
        found["seeds"] = over_seeds(seeds)
        bounds += found["seeds"]
    return found | {"low": max(min(bounds), 0.0), "high": max(bounds)}


def recorded(table: Path) -> dict[str, str]:
    """The rows of a table that was written before, by their names."""
    if not table.is_file():
        return {}
    rows = [row for row in table.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    return {row.split("|")[1].strip(): row for row in rows[1:]}


def line(name: str, found: dict[str, Any], seeds: int) -> str:
    """A row of the table."""

    def between(bounds: tuple[float, float] | None) -> str:
        return "" if bounds is None else f"[{bounds[0]:.4f}, {bounds[1]:.4f}]"

    cells = [
        name,
        f"{found['mean']:.4f} {between(found['users'])}",
        between(found["seeds"]),
        f"{found['chance']:.4f}",
        f"{found['low'] / found['chance']:.2f}",
        f"{found['high'] / found['chance']:.2f}",
        f"{found['ndcg']:.4f}",
        str(seeds),
        f"{found['num_users']:,}",
        f"{found['candidates']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(COLD, __doc__, table)
