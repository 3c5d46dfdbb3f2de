"""Train recipes over seeds, rank them on the test part, and write a dated result.

    python benchmarks/quality/run.py sasrec_ml100k --seeds 0 1 2
    RECSYS_MIRROR=... python benchmarks/quality/run.py sasrec_ml1m --seeds 0 -- --loss bce

What follows ``--`` goes to the recipe. Each seed is one run folder below ``--runs``; a seed whose folder already holds
its report is read, not trained again, so an interrupted benchmark goes on where it stopped. The result is written to
``benchmarks/quality/results/NAME.json``: mean over seeds, its interval (Student's t over seeds where there are two or
more; the users' bootstrap interval for one), time and peak memory, command, machine and versions.
``benchmarks/quality/encoders.py`` and ``augment.py`` run whole tables, ``benchmarks/quality/table.py`` makes them.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.cli.doctor import processor

RESULTS = Path(__file__).parent / "results"
METRICS = ("ndcg@10", "hr@10", "hr@20", "mrr@10", "coverage@10")
EDITOR = ("operation_accuracy", "majority_accuracy", "generator_top1", "popularity_top1")
EDITOR_SECTION = "Editor quality on fresh corruption"  # in a run's sections.json
BUSY = 75  # exit status of a run that another process is at
LIBRARIES = ("recsys", "torch", "lightning", "numpy", "numba", "recbole")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", help="of the result (default: recipe and flags)")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    own, flags = split_arguments(sys.argv[1:])
    chosen = parser.parse_args(own)
    name = chosen.name or "-".join([chosen.recipe, *(flag.lstrip("-") for flag in flags)])
    seeds = []
    for seed in chosen.seeds:
        folder = chosen.runs / f"{name}-seed{seed}"
        if not (folder / "result.json").is_file() and (status := start(chosen.recipe, folder, seed, flags)):
            sys.exit(f"{folder}: another process is at it" if status == BUSY else status)
        seeds.append(read(folder, seed))
        print(f"{name} seed {seed}: {shown(seeds[-1])}")
    numbers = " ".join(map(str, chosen.seeds))
    command = f"python benchmarks/quality/run.py {chosen.recipe} --seeds {numbers}"
    command += f" -- {' '.join(flags)}" if flags else ""
    write(RESULTS / f"{name}.json", summary(name, seeds, command))


def start(recipe: str, folder: Path, seed: int, flags: list[str]) -> int:
    """Train one seed in a process of its own, so that its peak memory is its own; its exit status."""
    command = [sys.executable, __file__, "--child", recipe, str(folder), "--seed", str(seed), *flags]
    return subprocess.run(command, check=False).returncode


def train(recipe: str, folder: Path, flags: list[str]) -> int:
    """What that process does: claim the folder, train, rank, and write ``result.json``.

    The claim is a lock file beside the folder, held for as long as this process lives, however it ends.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            return 0 if (folder / "result.json").is_file() else _train(recipe, folder, flags)
    except Timeout:
        return BUSY


def _train(recipe: str, folder: Path, flags: list[str]) -> int:
    import torch

    from recsys.cli import main as recsys
    from recsys.eval.report import Report

    began = time.monotonic()
    command = ["fit", recipe, "--out", str(folder), *flags]
    if recsys(command):
        return 1
    report = Report.load(folder)
    records = _records(folder)
    cuda = torch.cuda.is_available()
    result = {
        "metrics": {metric: report.mean(metric) for metric in METRICS},
        "intervals": {metric: report.interval(metric) for metric in METRICS if metric in report.metrics},
        "users": report.users,
        "protocol": report.header().splitlines()[0],
        "epochs": _epochs(folder, records),
        "seconds": round(time.monotonic() - began, 1),
        "train_seconds": round(sum(record["seconds"] for record in records), 1),
        "validation_seconds": round(sum(record.get("validation_seconds", 0.0) for record in records), 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if cuda else None,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "versions": _versions(),
        "command": f"recsys fit {Path(recipe).stem} {' '.join(flags)}",
    }
    write(folder / "result.json", result)
    return 0


def read(folder: Path, seed: int) -> dict[str, Any]:
    """The result of one finished seed, with its pace and, if it has an editor, how good that is."""
    result = json.loads((folder / "result.json").read_text())
    found = {"seed": seed, **result, **pace(folder, result)}
    if (folder / "config.json").is_file():
        found["way"] = way(folder)
    if (folder / "sections.json").is_file():
        told = json.loads((folder / "sections.json").read_text()).get(EDITOR_SECTION, {})
        found["editor"] = {name: float(told[name]) for name in EDITOR if name in told}
    return found


def way(folder: Path) -> str:
    """A hash of how the run was trained, its seed and the places of files left out: seeds of one row have the same."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key != "seed"}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return Path(value).name if isinstance(value, str) else value

    identity = json.loads((folder / "config.json").read_text())["identity"]
    return hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:16]


def pace(folder: Path, result: dict[str, Any]) -> dict[str, float]:
    """Seconds of an epoch of training (the median of the last stage's) and of all stages before that one.

    The records of a model that trains itself are no epochs: then it is the mean.
    """
    records = _records(folder)
    if len(records) != result["epochs"] or not records:
        return {"epoch_seconds": result["train_seconds"] / max(result["epochs"], 1), "earlier_seconds": 0.0}
    last = records[-1].get("stage", 0)
    seconds = [record["seconds"] for record in records if record.get("stage", 0) == last]
    earlier = [record["seconds"] for record in records if record.get("stage", 0) != last]
    return {"epoch_seconds": round(float(np.median(seconds)), 3), "earlier_seconds": round(sum(earlier), 1)}


def shown(result: dict[str, Any]) -> str:
    """The metrics of one seed, for the log."""
    return ", ".join(f"{metric} {value:.4f}" for metric, value in result["metrics"].items())


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def summary(name: str, seeds: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The result over seeds: each metric's mean with its interval, and the runs themselves."""
    metrics = {}
    for metric in (name for name in METRICS if all(name in seed["metrics"] for seed in seeds)):
        values = np.array([seed["metrics"][metric] for seed in seeds])
        row = {"mean": float(values.mean()), "seeds": values.tolist()}
        if len(values) > 1:
            low, high = over_seeds(values)
            row |= {"low": low, "high": high, "over": "seeds"}
        elif metric in seeds[0]["intervals"]:
            row |= dict(zip(("low", "high"), seeds[0]["intervals"][metric], strict=True)) | {"over": "users"}
        metrics[metric] = row
    newest = max(seeds, key=lambda seed: seed.get("date", ""))
    return {
        "name": name,
        "command": command,
        "date": newest.get("date", datetime.date.today().isoformat()),
        "machine": f"{newest.get('machine', processor())}, {newest['threads']} threads",
        "versions": newest.get("versions", _versions()),
        "metrics": metrics,
        "runs": seeds,
    }


def over_seeds(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of two or more seeds (Student's t)."""
    from scipy.stats import t

    reach = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - reach), float(values.mean() + reach)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--`` and what stands behind it."""
    if "--" not in arguments:
        return arguments, []
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def _records(folder: Path) -> list[dict[str, Any]]:
    """What was written about each epoch."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _epochs(folder: Path, records: list[dict[str, Any]]) -> int:
    """How many epochs were trained: one record each, but for a model that trains itself and keeps the count."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return int(file.get_tensor("trained_epochs")) if "trained_epochs" in file.keys() else len(records)  # noqa: SIM118


def _versions() -> dict[str, str]:
    import recsys

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "recsys": recsys.__version__, "python": platform.python_version()}


def recipe_of(name: str, flags: Sequence[str]) -> Any:
    """The run of a recipe by its flags."""
    from recsys.cli.arguments import parsed
    from recsys.runs.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(name))
    return recipe(**dict(parsed(recipe, list(flags), f"recsys fit {name}").arguments))


def spread(values: Sequence[float]) -> str:
    """A mean and, of several, the least and the most; empty if there is none."""
    if not values:
        return ""
    text = f"{np.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ({min(values):.4f} to {max(values):.4f})"


def changed(differences: np.ndarray) -> str:
    """A mean of paired differences (U,), its interval and its p."""
    from recsys.eval.significance import bootstrap_interval, sign_flip_test

    low, high = bootstrap_interval(differences[:, None])[0]
    [(p, _)] = sign_flip_test(differences[:, None])
    return f"{differences.mean():+.4f} [{low:+.4f}, {high:+.4f}], {p:.4f}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(train(sys.argv[2], Path(sys.argv[3]), sys.argv[4:]))
    main()
