"""Run the table of blends: a SASRec, a tuned item-kNN, and one list made of several, with weights from validation.

    RECSYS_MIRROR=... python benchmarks/quality/blends.py
    python benchmarks/quality/blends.py --data ml-100k

``blend`` is the quickstart's headline: a SASRec and the kNN. ``two`` are SASRec's seeds 0 and 1, ``two-knn`` the same
with the kNN. Seeds are those of SASRec; the kNN has none. Paired tests are over users, each metric averaged over the
seeds. A blend is no single model: it costs its members' time and memory together. The table of a data set is written
to ``benchmarks/quality/results/blends-DATA.md``.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from driver import Work, main
from plan import RUNS, SEED, Plan, Row
from slmrec import SASREC, difference

DATA = ("ml-100k", "amazon-beauty")
SEEDS = {"ml-100k": 5, "amazon-beauty": 3}
KNN = Row("knn", str(Path(__file__).with_name("counted.py")), data=DATA, seeds=SEEDS, reference=None)


def blend(name: str, seeds: dict[str, int], members: tuple[str, ...], *flags: str) -> Row:
    """The row of a blend of runs of SASRec."""
    more = {data: ("--members", *(f"{RUNS}/{data}/sasrec-seed{one}" for one in members)) for data in DATA}
    own = ("--no-baselines", *flags)
    return Row(name, dict.fromkeys(DATA, "blend"), own, more, data=DATA, seeds=seeds, against=("knn",))


BLENDS = Plan(
    "blends",
    (
        Row("sasrec", SASREC, ("--no-baselines",), data=DATA, seeds=SEEDS, reference=None),
        KNN,
        blend("blend", SEEDS, (SEED,)),
        blend("two", dict.fromkeys(DATA, 1), ("0", "1"), "--no-knn"),
        blend("two-knn", dict.fromkeys(DATA, 1), ("0", "1")),
    ),
    data=DATA,
)


def table(work: Work, data: str) -> str:
    """The table of one data set, of the rows that were run."""
    lines = []
    for row in work.plan.rows:
        recorded = work.results / data / f"{work.named(row.name)}.json"
        if not recorded.is_file():
            continue
        found = json.loads(recorded.read_text(encoding="utf-8"))
        metric = found["metrics"]["ndcg@10"]
        cells = [
            row.name,
            f"{metric['mean']:.4f}" + (f" [{metric['low']:.4f}, {metric['high']:.4f}]" if row.name != "knn" else ""),
            f"{found['metrics']['hr@10']['mean']:.4f}",
            "" if row.name == "knn" else str(len(found["runs"])),
            *(difference(found, other) for other in ("sasrec", "knn")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    head = f"| model | NDCG@10 [95%] | HR@10 | seeds | against SASRec | against kNN |\n{'|---' * 6}|"
    told = f"`python {work.plan.script} --data {data}`, {datetime.date.today()}"
    return "\n".join([f"### Blends on {data}", "", head, *lines, "", f"{told}\n"])


if __name__ == "__main__":
    main(BLENDS, __doc__, table)
