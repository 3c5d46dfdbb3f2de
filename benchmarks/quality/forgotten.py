"""Run the table of forgetting: 1% of the users taken out of a trained model, against a model trained without them.

    RECSYS_MIRROR=... python benchmarks/quality/forgotten.py
    python benchmarks/quality/forgotten.py --data ml-100k --only sasrec --seeds 0 1 2

For each model and seed: the recipe is trained (a run folder, unless it is there), trained again without the users, and
made to forget them by NPO, and by NPO with extrapolation (UIPE). The seed draws the users as well. Told of each: how
the model ranks the forgotten users' own next items of training, two attacks (which of an event of theirs and an event
of others that nobody trained on is more probable; and which has grown more probable against the model trained without
them), the quality for everybody else on test, and the time as a share of that of training anew. The model trained
without them is what is to be reached, not zero. Differences of quality from the model of before have a paired test over
the other users. Written to ``benchmarks/quality/results/forgotten-DATA.md``, with a JSON file per model and seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, recipe_of, split_arguments, spread, write_text

DATA = ("ml-100k", "amazon-beauty")
ROWS = ("sasrec", "tiger")
SHARE = 0.01
KINDS = ("before", "trained without", "NPO", "NPO + UIPE")
SHOWN = {
    "own events ndcg@10": "own events NDCG@10", "attack": "attack", "ratio attack": "ratio attack",
    "others' test ndcg@10": "others' NDCG@10", "re-exposed ndcg@10": "re-exposed NDCG@10",
}  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", choices=DATA, default=list(DATA))
    add("--only", nargs="+", choices=ROWS, default=list(ROWS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--runs", type=Path, default=Path("runs/quality/forgotten"))
    add("--results", type=Path, default=RESULTS)
    own, flags = split_arguments(sys.argv[1:])
    asked = parser.parse_args(own)
    for data in asked.data:
        folder = asked.results / "forgotten" / data
        for name in asked.only:
            for seed in asked.seeds:
                target = folder / f"{name}-seed{seed}.json"
                if not target.is_file():
                    write_text(target, json.dumps(measure(name, data, seed, asked.runs, flags), indent=1) + "\n")
        found = table(data, folder)
        write_text(asked.results / f"forgotten-{data}.md", found)
        print(found)


def trained(name: str, data: str, seed: int, folder: Path, flags: list[str], without: Any = None) -> tuple[Any, float]:
    """The model of a recipe, trained into ``folder`` unless it is there, and the seconds that it took."""
    import recsys as rs

    clock = folder.with_name(f"{folder.name}.seconds")
    if not clock.is_file():
        run, began = recipe_of(name, [*flags, "--data", data, "--seed", str(seed)]), time.monotonic()
        rs.fit(run.model, run.split if without is None else without, run.training, folder=folder)
        clock.write_text(str(time.monotonic() - began))
    return rs.load_run(folder), float(clock.read_text())


def measure(name: str, data: str, seed: int, runs: Path, flags: list[str]) -> dict[str, Any]:
    """All that the table tells of one model and seed."""
    import recsys as rs
    from recsys.data.without import without_users
    from recsys.forgetting.forget import forget
    from recsys.forgetting.memory import auc, log_probs, training_events
    from recsys.generative.policies import policy_of

    split = rs.load(data).split(rs.LeaveLast())
    rows = np.sort(np.random.default_rng(seed).choice(split.num_users, round(SHARE * split.num_users), replace=False))
    left, home = without_users(split, rows), runs / data
    before, seconds = trained(name, data, seed, home / f"{name}-seed{seed}", flags)
    anew, spent = trained(name, data, seed, home / f"{name}-seed{seed}-without", flags, left)
    lost, part = training_events(split, rows), left.valid
    reports, found = {}, {"seconds": seconds, "seconds without": spent, "users": len(rows), "events": len(lost)}
    users = split.users.raw(rows).tolist()
    models: dict[str, Any] = {"before": before, "trained without": anew}
    for kind, share in (("NPO", 0.0), ("NPO + UIPE", 0.5)):
        done = forget(before, split, users=users, extrapolate=share, seed=seed)
        models[kind] = done.model
        found[kind] = {"facts": done.facts, "epochs": done.epochs}
    base = [log_probs(anew, policy_of(anew), events) for events in (lost, part)]
    for kind in KINDS:
        model = models[kind]
        own = [log_probs(model, policy_of(model), events) for events in (lost, part)]
        reports[kind] = rs.evaluate(model, left.test, progress=False, leakage="allow", warn=False)
        again = rs.evaluate(model, split.test.subset(np.isin(split.test.users, rows)), progress=False, leakage="allow")
        ranked = rs.evaluate(model, lost, progress=False, leakage="allow", warn=False)
        found.setdefault(kind, {})["measured"] = {
            "own events ndcg@10": ranked.mean("ndcg@10"),
            "log-probability": float(own[0].mean()),
            "attack": auc(own[0], own[1]),
            "ratio attack": auc(own[0] - base[0], own[1] - base[1]),
            "others' test ndcg@10": reports[kind].mean("ndcg@10"),
            "re-exposed ndcg@10": again.mean("ndcg@10"),
        }
    for kind in KINDS[1:]:
        row = rs.compare(reports["before"], reports[kind], names=("before", kind), metrics=["ndcg@10"], segments=False)
        one = row.overall[0]
        found[kind]["paired"] = {key: getattr(one, key) for key in ("difference", "low", "high", "p")}
    return found


def table(data: str, folder: Path) -> str:
    """Means over seeds, with their range where there are several."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        groups.setdefault(path.stem.rpartition("-seed")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    lines = [f"### Forgetting {SHARE:.0%} of the users of {data}", ""]
    head = [*SHOWN.values(), "others, minus before [95%], p", "time / training anew", "seeds"]
    lines += [f"| model | | {' | '.join(head)} |", f"|{'---|' * (len(head) + 2)}"]
    for name, found in groups.items():
        for kind in KINDS:
            cells = [spread([one[kind]["measured"][key] for one in found]) for key in SHOWN]
            paired = found[0][kind].get("paired")
            text = "" if paired is None else "{difference:+.4f} [{low:+.4f}, {high:+.4f}], {p:.3f}".format(**paired)
            ratio = [one[kind]["facts"]["seconds"] / one["seconds without"] for one in found if "facts" in one[kind]]
            cells += [text, spread(ratio) if ratio else "1" if kind == KINDS[1] else "", str(len(found))]
            lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    lines += ["", "Means over seeds (least to most). Attacks are AUC, .5 where nothing is learned; the ratio attack "
              "compares with the model trained without them. Paired differences are those of the first seed.", "",
              f"`python benchmarks/quality/forgotten.py --data {data}`, {datetime.date.today()}", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
