"""The two tables of the README, from the recorded results: which recipe for which situation, and five numbers."""

from __future__ import annotations

import json
import re
from typing import Any

from run import RESULTS
from sections import chance, change, corrected, interval, sections

SPEED = RESULTS.parents[1] / "speed" / "results"
OURS = "recsys"  # the row of ours in the tables of speed


def choices() -> str:
    """What to train in which situation, and what came of it where it was measured."""
    beauty, ml100k, cold = "encoders/amazon-beauty", "encoders/ml-100k", "cold/amazon-beauty"
    coded, blends = "generative/amazon-beauty", "blends/ml-100k"
    tuned = _baseline("ItemKNN(shrink=0.0, decay=0.5)")
    rows = [
        (
            "a log of your own, nothing known about it",
            "`own`: SASRec, global-time split, beside popularity, item-kNN, Markov",
            f"a log as small as ml-100k: level with a tuned item-kNN ({_ndcg('sasrec_ml100k')} and {tuned}); "
            "keep the baseline where the paired test tells no difference",
        ),
        (
            "no time to train",
            "`rs.ItemKNN(shrink=0.0, decay=0.5)`, `rs.EASE()`, `rs.Markov()`",
            f"ml-100k: {tuned}, {_baseline('EASE')}, {_baseline('Markov')}; popularity {_baseline('Popularity')}",
        ),
        (
            "the best list, for the price of its members",
            "`blend` of a run and item-kNN, as the quickstart ends with",
            f"ml-100k: {_ndcg('blend', blends)}, where SASRec has {_ndcg('sasrec', blends)} and the kNN {tuned} (five "
            f"seeds, p {_paired('blend', blends, 'knn')} against either)",
        ),
        (
            "many items, short histories",
            "`sasrec_beauty`, then `gru4rec`, `mamba4rec`",
            f"amazon-beauty: {_ndcg('sasrec', beauty)}; {_ndcg('gru4rec', beauty)}, {_ndcg('mamba4rec', beauty)}",
        ),
        (
            "long histories, all items fit a softmax",
            "`sasrec_ml1m` (`--loss bce` only to compare)",
            f"ml-1m: full softmax {_ndcg('sasrec_ml1m')}, binary cross-entropy {_ndcg('sasrec_ml1m-loss-bce')}",
        ),
        (
            "times that mean something",
            "`unirec`",
            f"ml-100k: {_against('Encoders on ml-100k', 'unirec', 'sasrec')} against SASRec, at "
            f"{_minutes('unirec', ml100k) / _minutes('sasrec', ml100k):.1f} times its minutes",
        ),
        (
            "an encoder that reads both ways, as in a paper",
            "`bert4rec`, `sigma`",
            f"ml-100k: {_against('Encoders on ml-100k', 'bert4rec', 'sasrec')}, and "
            f"{_against('Encoders on ml-100k', 'sigma', 'sasrec')} (one seed) against SASRec",
        ),
        (
            "a contrastive loss beside the softmax",
            "`duorec`, `cl4srec`, `coserec`, `sracl`, `laclrec`",
            f"{_gains()}; LACLRec: ml-100k "
            f"{_against('Augmentation and contrast on ml-100k', 'laclrec', 'backbone')}, amazon-beauty "
            f"{_against('Augmentation and contrast on amazon-beauty', 'laclrec', 'backbone')}",
        ),
        (
            "items without interactions, but with texts",
            "`text_items`, `recformer`",
            f"HR@10 among {_candidates()} items of amazon-beauty that training never saw: {_hr('text', cold)}, "
            f"{_hr('recformer', cold)}; ids {_hr('ids', cold)} (chance)",
        ),
        (
            "items to be named by codes, or generated",
            "`rpg` (all items scored), `liger`, `tiger`",
            f"amazon-beauty: {_ndcg('rpg-vectors', coded)}, {_ndcg('liger', coded)}, {_ndcg('tiger', coded)}; SASRec "
            f"{_ndcg('sasrec', coded)}, which none of them reaches",
        ),
        (
            "clicks that depend on what was shown",
            "`relmf`, `sasrec_ips`",
            "simulated only: [tables](benchmarks/README.md#exposure-bias)",
        ),
    ]
    lines = ["| you have | recipe | what to expect (test NDCG@10 unless said) |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def numbers() -> str:
    """Five numbers, each with the command that makes it."""
    speed = json.loads((SPEED / "train-ml-1m.json").read_text())
    rows = {row["name"]: row for row in speed["parts"][0]["rows"]}
    ours, peers = rows[OURS], [row for row in rows.values() if row["role"] == "peer" and "per_second" in row]
    fastest, smallest = max(peers, key=lambda row: row["per_second"]), min(peers, key=lambda row: row["peak_mib"])
    measured = [
        ("NDCG@10, SASRec on ml-100k", *_told("sasrec_ml100k")),
        ("NDCG@10, SASRec on ml-1m", *_told("sasrec_ml1m")),
        ("NDCG@10, SASRec on amazon-beauty", *_told("sasrec", "encoders/amazon-beauty")),
        (
            "training targets a second, SASRec with the full softmax on ml-1m, two CPU cores",
            f"{ours['per_second']:,.0f}; {fastest['name']} {fastest['per_second']:,.0f}",
            speed["command"],
            speed["stamp"]["date"][:10],
        ),
        (
            "peak memory of the same run",
            f"{ours['peak_mib']:,.0f} MiB; {smallest['name']} {smallest['peak_mib']:,.0f} MiB",
            speed["command"],
            speed["stamp"]["date"][:10],
        ),
    ]
    lines = ["| what | measured | command | date |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {what} | {value} | `{command}` | {date} |" for what, value, command, date in measured]
    )


def _stored(name: str, folder: str = "") -> dict[str, Any]:
    return json.loads((RESULTS / folder / f"{name}.json").read_text())


def _told(name: str, folder: str = "") -> tuple[str, str, str]:
    found = _stored(name, folder)
    return interval(found["metrics"]["ndcg@10"]), found["command"], found["date"]


def _ndcg(name: str, folder: str = "") -> str:
    return _short(_stored(name, folder)["metrics"]["ndcg@10"]["mean"])


def _paired(name: str, folder: str, other: str) -> str:
    return f"{_stored(name, folder)['paired'][other]['metrics']['ndcg@10']['p']:.4f}"


def _hr(name: str, folder: str) -> str:
    return _short(_stored(name, folder)["metrics"]["hr@10"]["mean"])


def _minutes(name: str, folder: str) -> float:
    runs = _stored(name, folder)["runs"]
    return sum(run["train_seconds"] + run["validation_seconds"] for run in runs) / len(runs) / 60


def _against(title: str, name: str, other: str) -> str:
    """A row's paired difference from another of its table, with the p that is corrected for the table."""
    section = next(section for section in sections() if section.title == title)
    paired = section.compared[name, other]["metrics"]["ndcg@10"]
    return f"{change(paired)}, p {chance(corrected(section.compared)[name, other])}"


def _gains() -> str:
    """Which auxiliaries are better than the backbone by a difference that the corrected test tells from chance."""
    better = []
    for section in sections():
        if section.title.startswith("Augmentation"):
            chances = corrected(section.compared)
            for (name, other), paired in section.compared.items():
                gain = other == "backbone" and paired["metrics"]["ndcg@10"]["difference"] > 0
                better += [f"{name} on {section.data}"] if gain and chances[name, other] < 0.05 else []
    told = "no gain that the test tells from chance"
    return f"{told} but for {', '.join(better)}" if better else f"{told}, on ml-100k or amazon-beauty"


def _baseline(name: str) -> str:
    """A baseline's test NDCG@10 on ml-100k, from the table that ``baselines.py`` wrote."""
    lines = (RESULTS / "baselines-ml-100k.md").read_text().splitlines()
    cells = next(cells for cells in (line.split("|") for line in lines) if len(cells) > 3 and cells[1].strip() == name)
    return _short(float(cells[3].split()[0]))


def _candidates() -> str:
    """How many items were ranked in the table of cold items."""
    line = next(line for line in (RESULTS / "cold-amazon-beauty.md").read_text().splitlines() if "| text |" in line)
    return re.split(r"\s*\|\s*", line.strip())[-2]


def _short(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
