"""Train recipes over seeds, rank them on the test part, and write a dated result.

    python benchmarks/quality/run.py sasrec_ml100k --seeds 0 1 2
    RECSYS_MIRROR=... python benchmarks/quality/run.py sasrec_ml1m --seeds 0 -- --loss bce

What follows ``--`` goes to the recipe. Each seed is one run folder below ``--runs``; a seed whose folder already holds
its report is read, not trained again, so an interrupted benchmark goes on where it stopped. The result is written to
``benchmarks/quality/results/NAME.json``: mean over seeds, its interval (Student's t over seeds where there are two or
more; the users' bootstrap interval for one), time and peak memory, command, machine and versions.
``benchmarks/quality/table.py`` makes the tables from these files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
METRICS = ("ndcg@10", "hr@10", "mrr@10", "coverage@10")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided 95%, by number of seeds


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", help="of the result (default: recipe and flags)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    own, flags = _split_arguments(sys.argv[1:])
    chosen = parser.parse_args(own)
    name = chosen.name or "-".join([chosen.recipe, *(flag.lstrip("-") for flag in flags)])
    seeds = []
    for seed in chosen.seeds:
        folder = chosen.runs / f"{name}-seed{seed}"
        if not (folder / "result.json").is_file():
            command = [sys.executable, __file__, "--child", chosen.recipe, str(folder), "--seed", str(seed), *flags]
            subprocess.run(command, check=True)
        seeds.append({"seed": seed, **json.loads((folder / "result.json").read_text())})
        print(f"{name} seed {seed}: " + ", ".join(f"{metric} {seeds[-1]['metrics'][metric]:.4f}" for metric in METRICS))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(_summary(name, seeds, flags, chosen.recipe), indent=1) + "\n")


def train(recipe: str, folder: Path, flags: list[str]) -> None:
    """One seed, in a process of its own, so that its peak memory is its own."""
    import torch

    from recsys.cli import main as recsys
    from recsys.eval.report import Report

    began = time.monotonic()
    if recsys(["fit", recipe, "--out", str(folder), *flags]):
        raise SystemExit(1)
    report = Report.load(folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result = {
        "metrics": {metric: report.mean(metric) for metric in METRICS},
        "intervals": {metric: report.interval(metric) for metric in METRICS if metric in report.metrics},
        "users": report.users,
        "protocol": report.header().splitlines()[0],
        "epochs": len(records),
        "seconds": round(time.monotonic() - began, 1),
        "train_seconds": round(sum(record["seconds"] for record in records), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "threads": torch.get_num_threads(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1))


def _split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def _summary(name: str, seeds: list[dict[str, Any]], flags: list[str], recipe: str) -> dict[str, Any]:
    import lightning
    import torch

    import recsys

    metrics = {}
    for metric in METRICS:
        values = np.array([seed["metrics"][metric] for seed in seeds])
        row = {"mean": float(values.mean()), "seeds": values.tolist()}
        if len(values) > 1:
            reach = T_95.get(len(values), 2.0) * values.std(ddof=1) / len(values) ** 0.5
            row |= {"low": float(values.mean() - reach), "high": float(values.mean() + reach), "over": "seeds"}
        elif metric in seeds[0]["intervals"]:
            row |= dict(zip(("low", "high"), seeds[0]["intervals"][metric], strict=True)) | {"over": "users"}
        metrics[metric] = row
    numbers = " ".join(str(seed["seed"]) for seed in seeds)
    command = f"python benchmarks/quality/run.py {recipe} --seeds {numbers}" + (
        f" -- {' '.join(flags)}" if flags else ""
    )
    return {
        "name": name,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {seeds[0]['threads']} threads",
        "versions": {"recsys": recsys.__version__, "torch": torch.__version__, "lightning": lightning.__version__,
                     "python": platform.python_version()},
        "metrics": metrics,
        "runs": seeds,
    }  # fmt: skip


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    names = [line for line in known.read_text().splitlines() if "model name" in line] if known.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
