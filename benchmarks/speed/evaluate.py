"""Evaluation speed: every user ranked over the whole catalogue, HR@10 and NDCG@10, this library against the others.

``python benchmarks/speed/evaluate.py``. All contenders get the same user vectors, item vectors, histories and targets;
what is measured is scoring, taking out the history, ranking and the metrics, not a model's forward pass. That their
metrics agree is printed with the speeds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contest import HERE, Contender, hold, machine, write
from environments import CACHE

CONTENDERS = (
    Contender("recsys", "ours", role="ours", note="exact ranks, one number per user kept"),
    Contender("RecTools", "rectools", "rectools", note="TorchRanker, calc_metrics"),
    Contender("RePlay", "replay", "replay", note="SeenItemsFilter, TorchMetricsBuilder, 512 users at a time"),
    Contender("RecBole", "recbole", "recbole", note="Collector, Evaluator, 4,096 users at a time", gib=5.0),
    Contender("plain torch", "plain", role="yardstick", note="512 users at a time"),
)
TASKS = ("ml-1m", "100k-items")


def save_vectors(path: Path, histories: tuple[np.ndarray, np.ndarray, np.ndarray], num_items: int, dim: int) -> None:
    """Write (history, offsets, targets) with random vectors, the same in every run; users lean to their targets."""
    history, offsets, targets = histories
    draw = np.random.default_rng(0)
    items = draw.standard_normal((num_items, dim), np.float32)
    users = draw.standard_normal((len(targets), dim), np.float32) + 0.4 * items[targets - 1]
    np.savez(
        path, history=history.astype(np.int64), offsets=offsets.astype(np.int64), targets=targets.astype(np.int64),
        users=users, items=items,
    )  # fmt: skip


def real(name: str, users: int | None) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """The test part of a data set under leave-last: everything but the last event, the last event, and the items."""
    import recsys as rs

    split = rs.load(name).split(rs.LeaveLast(), audit=False)
    chosen = np.arange(len(split.test))[:users]
    owner, history = split.test.history(chosen)
    _, targets = split.test.targets(chosen)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(chosen)))])
    return (history, offsets, targets), split.num_items


def synthetic(users: int, num_items: int, length: int = 50) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """Random histories of one length without repeats, each followed by a target that is not in it."""
    draw = np.random.default_rng(1)
    block = num_items // (length + 1)
    events = draw.integers(0, block, (users, length + 1)) + np.arange(length + 1) * block + 1
    return (events[:, :-1].ravel(), np.arange(users + 1) * length, events[:, -1]), num_items


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contenders on one task."""
    path = folder / f"{name}.npz"
    if name == "100k-items":
        histories, num_items = synthetic(200 if options.smoke else 4096, 100_000)
    else:
        histories, num_items = real(name, 300 if options.smoke else None)
    save_vectors(path, histories, num_items, options.dim)
    task = {
        "kind": "evaluate", "vectors": str(path), "threads": options.threads, "seed": 0, "dim": options.dim,
        "warmup_steps": 1, "seconds": options.seconds, "max_steps": 2 if options.smoke else 10**9,
    }  # fmt: skip
    only, rounds = options.only, 1 if options.smoke else options.rounds
    chosen = [one for one in CONTENDERS if not only or any(part.lower() in one.name.lower() for part in only)]
    rows = hold(chosen, task, rounds, options.cache, timeout=900 + 4 * options.seconds)
    lasting = f"{task['max_steps']} passes, a trial run" if options.smoke else f"whole passes for {options.seconds:g} s"
    text = (
        f"{len(histories[2]):,} users, {num_items:,} items, {len(histories[0]):,} history events excluded, vectors of "
        f"width {options.dim}; one pass to warm up, then {lasting}; {rounds} round(s)."
    )
    return {"name": name, "text": text, "unit": "users", "task": task, "rows": rows}


def main() -> None:
    """Measure evaluation speed and peak memory."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="data sets, or 100k-items (default: both)")
    parser.add_argument("--only", nargs="+", help="contenders whose name contains one of these (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured per round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--dim", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the environments (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="two passes on a few users: does it all run?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        stamp = machine(options.threads)
        parts = [measure(name, options, Path(folder)) for name in options.tasks]
    write(options.output, "evaluate", "Evaluation speed: the whole catalogue ranked for every user", stamp, parts)
    print((options.output / "evaluate.md").read_text())


if __name__ == "__main__":
    main()
