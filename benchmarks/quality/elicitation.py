"""Run the table of onboarding: NDCG@10 of lists after 0, 5, 10 and 20 questions, by who asks and how answers are read.

    RECSYS_MIRROR=... python benchmarks/quality/elicitation.py
    python benchmarks/quality/elicitation.py --data ml-100k --seeds 1 --askers liked group_gain

The protocol is that of :mod:`recsys.elicitation.evaluate`: users split 80/10/10, EASE fitted on the likes (4 stars and
more) of the first part, the weight of popularity in ``blend`` chosen on the second with the asker ``liked`` after 5, 10
and 20 questions together, the third part asked. A seed is a split of users and of their ratings into halves. Of seeds
with overlapping test users all are counted: intervals are over conversations. Paired differences are from ``liked``
with the reader ``blend``, the default, after 20 questions.

Written to ``benchmarks/quality/results/elicitation-DATA.md``, with the figures in ``results/elicitation``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, changed, write_text

import recsys as rs
from recsys.cards.card import fetch_file
from recsys.cli.doctor import processor
from recsys.data.split import Split
from recsys.elicitation.elicitor import ASKERS, READERS
from recsys.elicitation.evaluate import ALL, BUDGETS, Elicited, evaluate_elicitation

L2 = {"ml-100k": 100.0, "ml-1m": 300.0}
WEIGHTS = (0.0, 0.1, 0.3, 1.0)
ROWS = (*ASKERS, ALL)
FIRST = ("liked", "blend")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=list(L2), default=list(L2))
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--askers", nargs="+", choices=ROWS, default=list(ROWS))
    add("--halves", choices=("random", "time"), default="random")
    add("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    for data in asked.data:
        split = split_of(data)
        name = data if asked.halves == "random" else f"{data}-{asked.halves}"
        found = [measure(split, data, asked.askers, asked.halves, seed) for seed in asked.seeds]
        facts = {
            "data": data, "date": str(datetime.date.today()), "machine": processor(), "seeds": asked.seeds,
            "versions": {one: importlib.metadata.version(one) for one in ("recsys", "torch", "numpy", "scipy")},
            "l2": L2[data], "halves": asked.halves,
        }  # fmt: skip
        write_text(
            asked.results / "elicitation" / f"{name}.json",
            json.dumps({**facts, "runs": [figures for figures, _ in found]}, indent=1) + "\n",
        )
        text = table(name, facts, found)
        write_text(asked.results / f"elicitation-{name}.md", text)
        print(text)


def split_of(data: str) -> Split:
    """All ratings of a data set; the split of events is not looked at."""
    import polars as pl

    if data == "ml-1m":
        frame = pl.read_parquet(fetch_file("ml-1m", "ratings_ordered.parquet")).drop_nulls("position")
        frame = frame.sort("user_id", "position").select(user="user_id", item="movie_id", rating="rating")
        found = rs.Dataset.scan(frame, order="file", event_columns={"rating": "number"}, name=data)
    else:
        path = fetch_file("ml-100k", "ml-100k.inter")
        found = rs.Dataset.scan(
            path, format="atomic", user="user_id", item="item_id", time="timestamp", time_unit="s",
            event_columns={"rating": "number"}, name=data,
        )  # fmt: skip
    return found.split(rs.LeaveLast(), audit=False)


def measure(
    split: Split, data: str, askers: Sequence[str], halves: str, seed: int
) -> tuple[dict[str, Any], list[Elicited]]:
    """Figures of one seed, and what they come from."""

    def model(likes: Split) -> Any:
        return rs.fit(rs.EASE(L2[data]), likes).model

    def ask(names: Sequence[str], readers: dict[str, float], part: str) -> list[Elicited]:
        return evaluate_elicitation(
            split, model, names, readers, rating="rating", halves=halves, part=part, seed=seed, progress=False
        )

    quality = {}
    for weight in WEIGHTS:
        [one] = ask(["liked"], {"blend": weight}, "valid")
        quality[weight] = float(np.mean([one.reports[count].mean("ndcg@10") for count in BUDGETS[1:]]))
    weight = max(quality, key=lambda one: quality[one])
    found = ask(askers, {"history": 0.0, "blend": weight, "groups": 0.0}, "test")
    rows = []
    for one in found:
        ndcg = {count: report.mean("ndcg@10") for count, report in one.reports.items()}
        recall = {count: report.mean("recall@10") for count, report in one.reports.items()}
        worst = {count: one.worst(count) for count in one.reports}
        rows.append({
            "asker": one.asker, "reader": one.reader, "ndcg@10": ndcg, "recall@10": recall, "worst_tenth": worst,
            "answered": one.answered, "likes": one.likes, "milliseconds": one.milliseconds,
        })  # fmt: skip
        print(seed, one.asker, one.reader, {count: round(value, 4) for count, value in ndcg.items()}, flush=True)
    users = found[0].reports[BUDGETS[0]]
    figures = {"seed": seed, "users": users.users, "left_out": users.meta["users_without_targets"], "weight": weight,
               "validation": quality, "rows": rows}  # fmt: skip
    return figures, found


def table(name: str, facts: dict[str, Any], found: list[tuple[dict[str, Any], list[Elicited]]]) -> str:
    """Means over seeds, and the paired difference after the last question."""
    last = BUDGETS[-1]
    keys = [(one.asker, one.reader) for one in found[0][1]]
    users = {key: np.concatenate([_one(every, key).reports[last].per_user("ndcg@10") for _, every in found])
             for key in keys}  # fmt: skip
    head = [f"NDCG@10 after {count}" for count in BUDGETS]
    head += [f"worst tenth after {last}", f"Recall@10 after {last}", f"answered of {last}", f"likes of {last}",
             f"minus {', '.join(FIRST)} [95%], p", "ms a question"]  # fmt: skip
    lines = [
        f"### Onboarding on {name}",
        "",
        f"| asker | reader | {' | '.join(head)} |",
        f"|{'---|' * (len(head) + 2)}",
    ]
    for key in sorted(keys, key=lambda one: (READERS.index(one[1]), ROWS.index(one[0]))):
        every = [_one(each, key) for _, each in found]
        cells = [f"{np.mean([one.reports[count].mean('ndcg@10') for one in every]):.4f}" for count in BUDGETS]
        cells += [f"{np.mean([one.worst(last) for one in every]):.4f}",
                  f"{np.mean([one.reports[last].mean('recall@10') for one in every]):.4f}",
                  f"{np.mean([one.answered[last] for one in every]):.2f}",
                  f"{np.mean([one.likes[last] for one in every]):.2f}",
                  changed(users[key] - users[FIRST]) if FIRST in users and key != FIRST else "",
                  f"{np.mean([one.milliseconds for one in every]):.3f}"]  # fmt: skip
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(cells)} |")
    count = sum(figures["users"] for figures, _ in found)
    weights = ", ".join(str(figures["weight"]) for figures, _ in found)
    lines += [
        "", f"{len(found)} splits of users, {count:,} conversations; EASE with l2 {facts['l2']:.0f} on likes; weight "
        f"of `blend`, chosen on the second part of the users: {weights}. "
        f"Halves of the ratings: {'at random' if facts['halves'] == 'random' else 'the older one answers'}.", "",
        "Read with care: an item of the hidden half, and one that was seen and not rated, counts as unknown, so people "
        "answer more than this, and askers that prefer informative over famous items are understated most; people rate "
        "what they chose, so likes are over-represented, and NDCG on rated targets rewards popular questions; a random "
        "half lets the future answer.", "",
        f"`python benchmarks/quality/elicitation.py --data {facts['data']}"
        f"{'' if facts['halves'] == 'random' else ' --halves time'}`, {facts['date']}, {facts['machine']}, "
        f"{', '.join(f'{key} {value}' for key, value in facts['versions'].items())}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _one(found: list[Elicited], key: tuple[str, str]) -> Elicited:
    return next(one for one in found if (one.asker, one.reader) == key)


if __name__ == "__main__":
    main()
