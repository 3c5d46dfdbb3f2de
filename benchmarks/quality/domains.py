"""Run the table of mixed domains: one model of ml-100k and amazon-beauty, by each way of mixing them.

    RECSYS_MIRROR=... python benchmarks/quality/domains.py
    RECSYS_MIRROR=... python benchmarks/quality/domains.py --only proportional skill-it --seeds 0 -- --epochs 5

Each row and seed trains the recipe ``mixed`` into a run folder, with the same number of optimizer steps; a finished one
is read from its figures, a stopped one goes on. All are ranked on the test part, each user's target among the joint
catalogue (what one model for both has to do), and among the items of the user's own domain (which leaves out whether
the model knows which domain it is in). Differences from proportional mixing have a paired test over users, each user's
NDCG@10 averaged over the seeds; that of "both" counts users, so the domain with more of them decides it.

What follows ``--`` goes to the recipe. Written to ``benchmarks/quality/results/domains.md``, with the figures of each
row and seed, and of each user, in ``results/stories/domains``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, changed, recipe_of, split_arguments, spread, write_text
from stories import plain

from recsys.cli.doctor import processor

FIRST = "proportional"
ROWS: dict[str, tuple[str, ...]] = {
    FIRST: ("--mix", "proportional"),
    "equal": ("--mix", "equal"),
    "in turn": ("--mix", "dmt", "--share", "0"),
    "dmt, 1/256": ("--mix", "dmt"),
    "dmt, 1/16": ("--mix", "dmt", "--share", "0.0625"),
    "skill-it": ("--mix", "skill-it"),
}
METRICS = ["ndcg@10", "hr@10"]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--runs", type=Path, default=Path("runs/quality/domains"))
    add("--results", type=Path, default=RESULTS)
    own, flags = split_arguments(sys.argv[1:])
    asked = parser.parse_args(own)
    folder = asked.results / "stories" / "domains"
    for seed in asked.seeds:
        for name in asked.only:
            target = folder / f"{filed(name)}-seed{seed}.json"
            if target.is_file():
                continue
            figures, each = measure(name, seed, asked.runs, flags)
            figures["flags"] = flags
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(target.with_suffix(".npy"), each.astype(np.float32))
            write_text(target, json.dumps({"row": name, "seed": seed, **figures}, indent=1) + "\n")
            print(name, seed, {key: round(value, 4) for key, value in figures["ndcg@10"].items()}, flush=True)
    text = table(folder, flags)
    write_text(asked.results / "domains.md", text)
    print(text)


def measure(name: str, seed: int, runs: Path, flags: list[str]) -> tuple[dict[str, Any], np.ndarray]:
    """The figures of a row and seed; (2, U) of each test user NDCG@10 and the number of the domain."""
    import recsys as rs

    folder = runs / f"{filed(name)}-seed{seed}"
    kept = folder.with_name(f"{folder.name}-losses")
    run = recipe_of("mixed", [*ROWS[name], *flags, "--seed", str(seed), "--measured", str(kept)])
    import mixed  # the file of the recipe, which is on the path now

    began = time.monotonic()
    fitted = run.fit(folder)
    figures: dict[str, Any] = {"seconds": time.monotonic() - began, "steps": fitted.history[-1]["step"]}
    shares = getattr(run.training.stages[-1].data, "shares_of", None)
    if shares is not None:
        figures["shares"] = shares(len(fitted.history) - 1)
    told: dict[str, Any] = {**run.evaluate, "k": 10, "metrics": METRICS, "progress": False, "warn": False}
    whole, split = rs.evaluate(run.model, run.split.test, **told), run.split
    domain = np.full(len(split.test), -1)
    figures |= {metric: {"both": whole.mean(metric)} for metric in METRICS} | {"own": {}}
    for number, one in enumerate(mixed.DOMAINS):
        mask = mixed.users_of(split, one)[split.test.users]
        domain[mask] = number
        for metric in METRICS:
            figures[metric][one] = float(whole.per_user(metric)[mask].mean())
        alone = rs.evaluate(run.model, split.test.subset(mask), candidates=mixed.items_of(split, one), **told)
        figures["own"][one] = alone.mean("ndcg@10")
    return figures, np.stack([whole.per_user("ndcg@10"), domain])


def table(folder: Path, flags: list[str]) -> str:
    """Means over seeds with their range; differences from proportional mixing.

    Raises:
        ValueError: seeds or rows that were trained for different numbers of steps, or by other flags than asked for.
    """
    found = {name: read(folder, name) for name in ROWS}
    found = {name: seeds for name, seeds in found.items() if seeds}
    steps = {one["steps"] for seeds in found.values() for one in seeds}
    if len(steps) > 1:
        raise ValueError(f"rows of {folder} took different numbers of optimizer steps, {sorted(steps)}: delete some")
    if any(one["flags"] != flags for seeds in found.values() for one in seeds):
        raise ValueError(f"some rows of {folder} were trained by other flags than {flags}: delete them")
    domains = [key for key in next(iter(found.values()))[0]["ndcg@10"] if key != "both"] if found else []
    parts = [*domains, "both"]
    head = [f"NDCG@10, {part}" for part in parts] + [f"{one}, own items" for one in domains]
    head += [f"{part}, minus {FIRST} [95%], p" for part in parts] + ["shares at the end", "seconds", "seeds"]
    lines = ["### Mixed domains: SASRec on ml-100k and amazon-beauty", ""]
    lines += [f"| row | {' | '.join(head)} |", f"|{'---|' * (len(head) + 1)}"]
    base = each_of(folder, FIRST)
    for name, seeds in found.items():
        cells = [spread([one["ndcg@10"][part] for one in seeds]) for part in parts]
        cells += [spread([one["own"][part] for one in seeds]) for part in domains]
        number = {one: at for at, one in enumerate(domains)}
        cells += [difference(base, each_of(folder, name), number.get(part)) if name != FIRST else "" for part in parts]
        shares = [one["shares"] for one in seeds if "shares" in one]
        cells.append(", ".join(f"{np.mean([one[key] for one in shares]):.2f}" for key in domains) if shares else "")
        cells += [f"{np.mean([one['seconds'] for one in seeds]):.0f}", str(len(seeds))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    more = f" -- {' '.join(flags)}" if flags else ""
    told = f"{next(iter(steps)):,} optimizer steps each. " if steps else ""
    versions = ", ".join(f"{one} {importlib.metadata.version(one)}" for one in ("recsys", "torch"))
    lines += ["", f"{told}Means over seeds (least to most); differences are averaged over seeds user by user, 95% by "
              "bootstrap over users, p by a sign-flip test. Shares are of batches, which hold equal numbers of events.",
              "", f"`python benchmarks/quality/domains.py{more}`, {datetime.date.today()}, {processor()}, "
              f"{versions}", ""]  # fmt: skip
    return "\n".join(lines)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """The figures of a row, a seed each."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{filed(name)}-seed*.json"))]


def each_of(folder: Path, name: str) -> dict[int, np.ndarray]:
    """Seed -> (2, U) of each user NDCG@10 and the number of the domain."""
    paths = folder.glob(f"{filed(name)}-seed*.npy")
    return {int(path.stem.rpartition("seed")[2]): np.load(path).astype(np.float64) for path in paths}


def difference(before: dict[int, np.ndarray], after: dict[int, np.ndarray], domain: int | None) -> str:
    """The paired difference over the users of a domain (None: all), averaged over the seeds that both have."""
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return ""
    values = np.mean([after[seed][0] - before[seed][0] for seed in seeds], axis=0)
    if domain is not None:
        values = values[before[seeds[0]][1] == domain]
    return changed(values)


def filed(name: str) -> str:
    """A row as part of the name of a file."""
    return plain(name).replace("/", "th").replace(" ", "-")


if __name__ == "__main__":
    main()
