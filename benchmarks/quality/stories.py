"""Run the tables of training further: dislikes, lists by reward, noisy clicks, each against the model of before.

    RECSYS_MIRROR=... python benchmarks/quality/stories.py dislikes varied noisy
    python benchmarks/quality/stories.py varied --data ml-100k --only before grpo nsr --seeds 0 --model tiger

For each seed a model is trained once by its recipe (a run folder, unless it is there), and every row of a story trains
it further by the recipe of the story, for a set number of epochs, and keeps the last. All are ranked on the test part;
differences from the model of before have a paired test over users, each user's NDCG@10 averaged over the seeds.

*dislikes*: what some users hid (of what was recommended to them) is asked for behind their later history: how much of
it is in the first ten, where it ranks (share of the catalogue above it), quality for those who hid something, for whom
all rows leave out what they hid ("before" is what a deny list does), and quality for the others.
*varied*: recall and coverage of the catalogue at 10 and 50, and the share of sampled groups that taught nothing.
*noisy*: pairs of which a share is flipped, by DPO and by R3M.

What follows ``--`` goes to the recipe of the story. Written to ``benchmarks/quality/results/STORY-DATA[-MODEL].md``,
with the figures of each row and seed, and of each user, in ``results/stories``.
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

from recsys.cli.doctor import processor

DATA = ("ml-100k", "amazon-beauty")
MODELS = ("sasrec", "tiger")
BEFORE = "before"
FLIPS = (0.0, 0.1, 0.2, 0.4)
METRICS = ["ndcg@10", "hr@10", "hr@50", "coverage@10", "coverage@50"]
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "dislikes": {name: ("--by", name) for name in ("npo", "d2o", "aft")},
    "varied": {name: ("--credit", name) for name in ("grpo", "psr", "nsr", "w-reinforce", "ngrpo")},
    "noisy": {
        f"{by}, {flipped:.0%} flipped": ("--by", by, "--flipped", str(flipped))
        for flipped in FLIPS
        for by in ("dpo", "r3m")
    },
}
SHOWN = {
    "dislikes": {
        "hidden@10": "hidden items in the first 10", "place": "place of hidden items", "hiders": "NDCG@10, who hid",
        "others": "NDCG@10, others",
    },
    "varied": {
        "ndcg@10": "NDCG@10", "hr@10": "recall@10", "hr@50": "recall@50", "coverage@10": "coverage@10",
        "coverage@50": "coverage@50", "groups without signal": "groups without signal",
    },
    "noisy": {"ndcg@10": "NDCG@10", "hr@10": "recall@10", "suspect pairs": "suspect pairs"},
}  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("story", nargs="+", choices=list(ROWS))
    add("--data", nargs="+", choices=DATA, default=["ml-100k"])
    add("--model", choices=MODELS, default="sasrec")
    add("--only", nargs="+", help="rows (default: all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--runs", type=Path, default=Path("runs/quality/stories"))
    add("--results", type=Path, default=RESULTS)
    own, flags = split_arguments(sys.argv[1:])
    asked = parser.parse_args(own)
    for story in asked.story:
        for data in asked.data:
            folder = asked.results / "stories" / story / f"{data}-{asked.model}"
            for seed in asked.seeds:
                base = started(asked.model, data, seed, asked.runs / data / f"{asked.model}-seed{seed}")
                for name in [BEFORE, *ROWS[story]]:
                    target = folder / f"{plain(name)}-seed{seed}.json"
                    if (asked.only and name not in asked.only) or target.is_file():
                        continue
                    figures, each = measure(story, name, data, seed, base, flags)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    np.save(target.with_suffix(".npy"), each.astype(np.float32))
                    write_text(target, json.dumps({"row": name, "seed": seed, **figures}, indent=1) + "\n")
                    print(name, seed, {key: round(figures.get(key, np.nan), 4) for key in SHOWN[story]}, flush=True)
            text = table(story, data, asked.model, folder, flags)
            suffix = "" if asked.model == MODELS[0] else f"-{asked.model}"
            write_text(asked.results / f"{story}-{data}{suffix}.md", text)
            print(text)


def started(model: str, data: str, seed: int, folder: Path) -> Path:
    """The folder of a trained model."""
    if not (folder / "done").is_file():
        recipe_of(model, ["--data", data, "--seed", str(seed)]).fit(folder)
        (folder / "done").touch()
    return folder


def measure(story: str, name: str, data: str, seed: int, base: Path, flags: list[str]) -> tuple[dict[str, Any], Any]:
    """The figures of a row and seed, and each user's NDCG@10, with whether the user hid something."""
    import recsys as rs

    told: dict[str, Any] = {"seconds": 0.0}
    if name == BEFORE:
        model, split = rs.load_run(base), rs.load(data).split(rs.LeaveLast())
    else:
        given = [*ROWS[story][name], *flags, "--data", data, "--seed", str(seed), "--base", str(base)]
        run, began = recipe_of(story, given), time.monotonic()
        fitted = run.fit()
        model, split = run.model, run.split
        told = {"seconds": time.monotonic() - began, **fitted.history[-1].get("tallies", {})}
    if story == "dislikes":
        figures, each = of_dislikes(model, split, base, seed, flags)
        return {**told, **figures}, each
    report = rs.evaluate(model, split.test, k=(10, 50), metrics=METRICS, progress=False, leakage="allow", warn=False)
    values = report.per_user("ndcg@10")
    return told | {metric: report.mean(metric) for metric in METRICS}, np.stack([values, np.zeros(len(values))])


def of_dislikes(model: Any, split: Any, base: Path, seed: int, flags: list[str]) -> tuple[dict[str, Any], Any]:
    """Where hidden items rank behind test histories, and NDCG@10 where these are left out for those who hid them."""
    import recsys as rs
    from recsys.cli.arguments import parsed
    from recsys.runs.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe("dislikes"))
    import dislikes  # the file of the recipe, which is on the path now

    told = dict(parsed(recipe, flags, "recsys fit dislikes").arguments)
    users, items = dislikes.simulated(rs.load_run(base), split, told["share"], told["each"], seed)
    hidden: dict[int, list[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        hidden.setdefault(user, []).append(item)
    gains, hid, top, place = [], [], [], []
    part = split.test
    for first in range(0, len(part), 256):
        index = np.arange(first, min(first + 256, len(part)))
        ids, (_, targets) = part.batch(index).ids.numpy(), part.targets(index)
        raw = [split.items.raw(row[row > 0]).tolist() for row in ids]
        for row, scores, target, user in zip(ids, model.scores(raw), targets, part.users[index].tolist(), strict=True):
            scores[row[row > 0] - 1] = -np.inf
            own = [item for item in hidden.get(user, []) if np.isfinite(scores[item - 1])]
            for item in own:
                above = int((scores > scores[item - 1]).sum())
                top.append(above < 10)
                place.append(above / int(np.isfinite(scores).sum()))
            scores[np.array(own, np.int64) - 1] = -np.inf
            rank = int((scores > scores[target - 1]).sum()) if np.isfinite(scores[target - 1]) else len(scores)
            gains.append(1 / np.log2(rank + 2) if rank < 10 else 0.0)
            hid.append(user in hidden)
    values, mask = np.array(gains), np.array(hid)
    figures = {"hidden@10": np.mean(top), "place": np.mean(place)}
    figures |= {"hiders": values[mask].mean(), "others": values[~mask].mean()}
    return {name: float(value) for name, value in figures.items()}, np.stack([values, mask])


def table(story: str, data: str, model: str, folder: Path, flags: list[str]) -> str:
    """Means over seeds with their range; differences from the model of before."""
    names = [name for name in [BEFORE, *ROWS[story]] if list(folder.glob(f"{plain(name)}-seed*.json"))]
    shown, parts = SHOWN[story], ("who hid", "others") if story == "dislikes" else ("",)
    head = [*shown.values(), *(f"{part or 'NDCG@10'}, minus before [95%], p" for part in parts)]
    lines = [f"### {story.capitalize()}: {model} on {data}", ""]
    lines += [f"| row | {' | '.join(head)} | seconds | seeds |", f"|{'---|' * (len(head) + 3)}"]
    base = each_of(folder, BEFORE)
    for name in names:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{plain(name)}-seed*"))
                 if path.suffix == ".json"]  # fmt: skip
        cells = [spread([one[key] for one in found if key in one]) for key in shown]
        cells += [difference(base, each_of(folder, name), part) if name != BEFORE else "" for part in parts]
        cells += [f"{np.mean([one['seconds'] for one in found]):.0f}" if name != BEFORE else "", str(len(found))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    more = f" -- {' '.join(flags)}" if flags else ""
    command = f"python benchmarks/quality/stories.py {story} --data {data} --model {model}{more}"
    lines += ["", "Means over seeds (least to most); differences are averaged over seeds user by user, 95% by "
              "bootstrap over users, p by a sign-flip test.", "", f"`{command}`, {datetime.date.today()}, "
              f"{processor()}, torch {importlib.metadata.version('torch')}", ""]  # fmt: skip
    return "\n".join(lines)


def each_of(folder: Path, name: str) -> dict[int, Any]:
    """Seed -> (2, U): each user's NDCG@10, and whether the user hid something."""
    paths = folder.glob(f"{plain(name)}-seed*.npy")
    return {int(path.stem.rpartition("seed")[2]): np.load(path).astype(np.float64) for path in paths}


def difference(before: dict[int, Any], after: dict[int, Any], part: str) -> str:
    """The paired difference over users, averaged over the seeds that both have."""
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return ""
    changes = [after[seed][0] - before[seed][0] for seed in seeds]
    if part:  # who hid differs by seed: each seed's changes count for those of that seed
        masks = [(before[seed][1] > 0) == (part == "who hid") for seed in seeds]
        count = np.sum(masks, axis=0)
        total = np.sum([change * mask for change, mask in zip(changes, masks, strict=True)], axis=0)
        values = (total / np.maximum(count, 1))[count > 0]
    else:
        values = np.mean(changes, axis=0)
    return changed(values)


def plain(name: str) -> str:
    """A row as part of the name of a file."""
    return name.replace(", ", "-").replace("% ", "-").replace("%", "")


if __name__ == "__main__":
    main()
