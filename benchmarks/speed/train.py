"""Training speed of SASRec with the full softmax: this library, RecTools, RePlay, RecBole and a plain torch loop.

``python benchmarks/speed/train.py --data ml-1m ml-100k``. See ``benchmarks/speed/README.md`` for what is held equal.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contest import HERE, Contender, hold, machine, write
from environments import CACHE

CONTENDERS = (
    Contender("recsys", "ours", role="ours", note="no dropout on attention weights, its default"),
    Contender("recsys, attention dropout", "ours", variant="attention-dropout", role="ours"),
    Contender("recsys, bf16", "ours", variant="bf16", role="ours", note="mixed precision"),
    Contender("RecTools", "rectools", "rectools"),
    Contender("RecTools, flat loss", "rectools", "rectools", "flat", note="its loss replaced by one over rows"),
    Contender("RePlay", "replay", "replay"),
    Contender("RePlay, bucketed", "replay", "replay", "bucketed", note="its LengthBucketedQueryEncoder"),
    Contender("RecBole", "recbole", "recbole", note="one target per row", gib=3.0),
    Contender("plain torch", "plain", role="yardstick"),
    Contender("plain torch, fused attention", "plain", variant="fused-attention", role="yardstick"),
)
MAX_LENGTH = {"ml-1m": 200, "ml-100k": 50}
RECBOLE_BYTES = 40  # it keeps every prefix as a padded row of items and times, and copies them while it builds


def save_sequences(name: str, path: Path, users: int | None = None) -> dict[str, Any]:
    """Write the training part under leave-last of data set ``name`` for all contenders; say what it is.

    Items are numbered from 1; user u has ``items[offsets[u]:offsets[u + 1]]``, oldest first.
    """
    import recsys as rs

    split = rs.load(name).split(rs.LeaveLast(), audit=False)
    training = split.train
    chosen = np.arange(training.num_users)[:users]
    _, items, _ = training.events(chosen)
    offsets = np.concatenate([[0], np.cumsum(training.lengths[chosen])])
    np.savez(path, items=items.astype(np.int32), offsets=offsets.astype(np.int64), num_items=split.num_items)
    digest = hashlib.sha256(items.astype(np.int32).tobytes() + offsets.astype(np.int64).tobytes()).hexdigest()
    return {"users": len(offsets) - 1, "events": len(items), "items": split.num_items, "sha256": digest}


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contenders on one data set."""
    path = folder / f"{name}.npz"
    facts = save_sequences(name, path, 300 if options.smoke else None)
    length = options.max_length or MAX_LENGTH.get(name, 50)
    task = {
        "kind": "train", "sequences": str(path), "max_length": length, "dim": options.dim, "blocks": options.blocks,
        "heads": options.heads, "dropout": options.dropout, "batch_size": options.batch_size, "learning_rate": 1e-3,
        "threads": options.threads, "seed": 0, "warmup_steps": options.warmup, "seconds": options.seconds,
        "max_steps": 10**9,
    }  # fmt: skip
    rounds = options.rounds
    if options.smoke:
        rounds, task["warmup_steps"], task["max_steps"] = 1, 1, 3
    prefixes_gib = facts["events"] * length * RECBOLE_BYTES / 1024**3
    only = options.only
    chosen = [
        replace(one, gib=one.gib + prefixes_gib) if one.module == "recbole" else one
        for one in CONTENDERS
        if not only or any(wanted.lower() in one.name.lower() for wanted in only)
    ]
    rows = hold(chosen, task, rounds, options.cache, timeout=900 + 4 * options.seconds)
    lasting = f"{task['max_steps']} steps, a trial run" if options.smoke else f"{options.seconds:g} s"
    text = (
        f"{facts['users']:,} users, {facts['events']:,} training events (all but each user's last two), "
        f"{facts['items']:,} items; length {length}, width {options.dim}, {options.blocks} blocks, {options.heads} "
        f"head(s), dropout {options.dropout}, batches of {options.batch_size} rows, Adam 1e-3, 32-bit unless said; "
        f"{task['warmup_steps']} steps to warm up, then {lasting}; {rounds} round(s)."
    )
    return {"name": name, "text": text, "unit": "targets", "facts": facts, "task": task, "rows": rows}


def main() -> None:
    """Measure training speed and peak memory."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", nargs="+", default=["ml-1m", "ml-100k"], help="names of data sets (default: both)")
    parser.add_argument("--only", nargs="+", help="contenders whose name contains one of these (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured per round (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=8, help="steps before the clock starts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--max-length", type=int, help="default: 200 for ml-1m, 50 otherwise")
    parser.add_argument("--dim", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--blocks", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--heads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--dropout", type=float, default=0.2, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="rows (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the environments (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: benchmarks/speed/results")
    parser.add_argument("--smoke", action="store_true", help="three steps on 300 users: does every runner work?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recsys-speed-") as folder:
        stamp = machine(options.threads)
        for name in options.data:  # a file each, so that what is measured stays if the rest is stopped
            part = measure(name, options, Path(folder))
            write(options.output, f"train-{name}", f"Training speed on {name}: SASRec, full softmax", stamp, [part])
            print((options.output / f"train-{name}.md").read_text())


if __name__ == "__main__":
    main()
