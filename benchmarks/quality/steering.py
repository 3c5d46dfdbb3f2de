"""Whether Mender does as it is told: its five axes, with controls, in one table per data set.

    RECSYS_MIRROR=... python benchmarks/quality/steering.py --data amazon-beauty
    python benchmarks/quality/steering.py --data ml-100k --only vectors mixture --seeds 0 1 2 --sample 500

A row is a variant of the recipe ``mender``, trained into ``runs/quality/steering`` unless it is there, and asked on the
test part (:mod:`recsys.preferences.evaluate`) beside the same model told nothing, told what belongs to another sample,
and the items nearest to what is said. Preferences are matched by looking at the target: nothing here stands beside the
tables of ordinary recommendation. What follows ``--`` goes to the recipe. The table of a data set is written to
``benchmarks/quality/results/steering-DATA.md``, with a JSON file per run in ``results/steering``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, split_arguments

DATA = ("ml-100k", "amazon-beauty", "amazon-sports")
ROWS: dict[str, tuple[str, ...]] = {
    "vectors": (),
    "items-only": ("--use", "items"),
    "preference-only": ("--use", "preference"),
    "steering": ("--mixture", "fine", "coarse"),
    "mixture": ("--mixture", "sentiment", "fine", "coarse"),
}
SHOWN = {"recommendation": "ndcg@10", "sentiment": "follows@10", "fine": "ndcg@10", "coarse": "ndcg@10",
         "consolidation": "ndcg@10"}  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=DATA, default=["amazon-beauty"])
    add("--only", nargs="+", choices=list(ROWS), default=["vectors", "items-only", "steering"])
    add("--seeds", type=int, nargs="+", default=[0])
    add("--sample", type=int, default=2000, help="samples of each axis")
    add("--runs", type=Path, default=Path("runs/quality/steering"))
    add("--results", type=Path, default=RESULTS)
    own, flags = split_arguments(sys.argv[1:])
    asked = parser.parse_args(own)
    for data in asked.data:
        for name in asked.only:
            for seed in asked.seeds:
                measure(name, data, seed, asked, flags)
        found = table(data, asked.results / "steering" / data, asked.sample)
        (asked.results / f"steering-{data}.md").write_text(found, encoding="utf-8")
        print(found)


def measure(name: str, data: str, seed: int, asked: argparse.Namespace, flags: list[str]) -> None:
    """Train a row, unless it is there, and ask it."""
    import recsys as rs
    from recsys.cli.arguments import parsed
    from recsys.runs.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe("mender"))
    import mender  # the file of the recipe, which is on the path now

    given = [*ROWS[name], *flags, "--data", data, "--seed", str(seed)]
    chosen = dict(parsed(recipe, given, "recsys fit mender").arguments)
    folder = asked.runs / data / f"{name}-seed{seed}"
    if not (folder / "model.safetensors").is_file():
        recipe(**chosen).fit(folder)
    model = rs.load_run(folder)
    split = rs.load(data).split(rs.LeaveLast())
    told = mender.told_of(split, chosen["preferences"], chosen["writer"], chosen["written"])
    by = chosen["text_model"] if chosen["reads"] == "vectors" else "all-minilm"
    matching = mender.matched(split, told, by, data)
    report = rs.evaluate_axes(model, matching, sample=asked.sample, name=name, seed=seed)
    print(report)
    out = asked.results / "steering" / data
    out.mkdir(parents=True, exist_ok=True)
    report.save(out / f"{name}-seed{seed}.json")


def table(data: str, folder: Path, sample: int) -> str:
    """The rows that were measured, means over seeds with the interval of the first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        groups.setdefault(path.stem.rpartition("-seed")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    lines = [f"### Steering on {data}", "", "Preferences were matched by looking at the target: nothing here stands "
             "beside ordinary recommendation.", ""]  # fmt: skip
    head = [f"{axis}, {metric}" for axis, metric in SHOWN.items()]
    lines += [f"| model | told | {' | '.join(head)} | seeds |", f"|{'---|' * (len(head) + 3)}"]
    for name in (one for one in ROWS if one in groups):
        reports = groups[name]
        for row in dict.fromkeys(one["row"] for one in reports[0]["rows"]):
            cells = [cell(reports, axis, row, metric) for axis, metric in SHOWN.items()]
            told = "the preference" if row == "model" else row
            lines.append(f"| {name} | {told} | {' | '.join(cells)} | {len(reports)} |")
    if groups:
        meta = next(iter(groups.values()))[0]["meta"]
        lines += ["", f"{meta['preferences']}; vectors by {meta['vectors']}; at most {sample:,} samples of each axis; "
                  "[95% bootstrap interval over samples, of the first seed]. Bold: above no preference and shuffled "
                  "preferences, p < .05 each (paired sign-flip test, first seed)."]  # fmt: skip
    lines += ["", f"`python benchmarks/quality/steering.py --data {data}`, {datetime.date.today()}", ""]
    return "\n".join(lines)


def cell(reports: list[dict[str, Any]], axis: str, row: str, metric: str) -> str:
    """A mean over seeds, and the interval of the first."""
    found = [one for report in reports for one in report["rows"] if one["axis"] == axis and one["row"] == row]
    if not found:
        return ""
    mean = float(np.mean([one["mean"][metric] for one in found]))
    text = f"{mean:.4f} [{found[0]['low'][metric]:.4f}, {found[0]['high'][metric]:.4f}]"
    tests = [one for one in reports[0]["tests"] if one["axis"] == axis and one["than"] != "nearest item"]
    above = bool(tests) and all(one["difference"] > 0 and one["p"] < 0.05 for one in tests)
    return f"**{text}**" if row == "model" and above else text


if __name__ == "__main__":
    main()
