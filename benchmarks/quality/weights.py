"""Choose the weights of the auxiliary losses on validation, one seed each; the test part is never read.

    python benchmarks/quality/weights.py --data ml-100k
    RECSYS_MIRROR=... python benchmarks/quality/weights.py --data amazon-beauty --only cl4srec sracl

Each method gets the weights that its authors publish times the factors of a grid, the same for all; a method with two
weights keeps their ratio. The recipe takes for the data set what is best on validation, at the epoch that validation
chooses. A cell that is empty was not run. Runs lie below ``runs/quality/weights``; what they found is kept in
``benchmarks/quality/results/weights/DATA.json``, so a search can go on without them. The table is written to
``benchmarks/quality/results/weights-DATA.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from run import RESULTS, write, write_text

from recsys.cli.doctor import processor
from recsys.protocols import Context, Step
from recsys.runs.recipe import find_recipe, load_recipe
from recsys.train.loader import TrainBatches
from recsys.train.update import target_weight

# Method -> what its recipe is called with, apart from weights, and the published weights.
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "cl4srec": ("cl4srec", {}, {"weight": 0.1}),
    "coserec": ("coserec", {}, {"weight": 0.1}),
    "duorec": ("duorec", {"mode": "us_x"}, {"weight": 0.1}),
    "duorec-un": ("duorec", {"mode": "un"}, {"weight": 0.1}),
    "sracl": ("sracl", {}, {"cross": 0.1, "intra": 0.1}),
    "laclrec": ("laclrec", {}, {"contrast": 0.1, "triplet": 0.001}),
}
FACTORS = (1.0, 0.1, 0.03, 0.01, 0.003)
BACKBONE = ("sasrec", {}, {})


def main() -> None:
    """Search what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("ml-100k", "amazon-beauty", "ml-1m"), default="ml-100k")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--runs", type=Path, default=Path("runs/quality/weights"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    chosen.runs.mkdir(parents=True, exist_ok=True)
    kept = Kept(chosen.results / "weights" / f"{chosen.data}.json", chosen.runs / f"{chosen.data}.lock")

    def tried(name: str, *setting: Any, factor: float) -> dict[str, Any]:
        folder = chosen.runs / chosen.data / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # another process may be at it: then wait for what it finds
            return kept.get(name, lambda: search(folder, chosen.data, *setting, factor=factor))

    backbone = tried("backbone", *BACKBONE, factor=0.0)
    for factor in chosen.factors:
        for name in chosen.only:
            kept.get(f"{name}-gradients", partial(measure, chosen.data, *METHODS[name]))
            found = tried(f"{name}-{factor:g}", *METHODS[name], factor=factor)
            print(f"{name} x {factor:g}: {found['value']:.4f} (backbone {backbone['value']:.4f})", flush=True)
            write_text(chosen.results / f"weights-{chosen.data}.md", table(kept.read(), chosen.data))
    print(table(kept.read(), chosen.data))


class Kept:
    """What was found so far, by name, in one file, which several processes may add to."""

    def __init__(self, path: Path, lock: Path) -> None:
        self.path, self.lock = path, lock

    def read(self) -> dict[str, dict[str, Any]]:
        """All of it."""
        return dict(json.loads(self.path.read_text())) if self.path.is_file() else {}

    def get(self, name: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One finding, which ``find`` makes if it is not there; delete an entry of the file to make it anew."""
        known = self.read().get(name)
        if known is None:
            known = find()
            with FileLock(self.lock):
                write(self.path, dict(sorted({**self.read(), name: known}.items())))
        return known


def search(
    folder: Path, data: str, recipe: str, given: dict[str, Any], published: dict[str, float], factor: float
) -> dict[str, Any]:
    """Train one setting: the best validation value, its epoch and how many epochs there were."""
    weights = {name: weight * factor for name, weight in published.items()}
    fitted = load_recipe(find_recipe(recipe))(data=data, **given, **weights).fit(folder)
    today = datetime.date.today().isoformat()
    return {**fitted.best, "epochs": len(fitted.history), "weights": weights, "factor": factor, "date": today}


def measure(data: str, recipe: str, given: dict[str, Any], published: dict[str, float]) -> dict[str, float]:
    """Norms of the gradients of all terms in the first step of training, at the published weights."""
    import torch

    run = load_recipe(find_recipe(recipe))(data=data, **given, **published)
    model: Any = run.model
    split = run.split
    model.bind(Context(split.num_items, split.items, split.train, split.item_text, 0, split.users))
    model.train()
    settings = {"windows": run.training.windows, "batch_size": run.training.batch_size}
    needs, scheme = model.train_needs, getattr(model.targets, "scheme", "windows")
    batches = TrainBatches(split.train, scheme=scheme, max_length=model.max_length, needs=needs, **settings)
    model.on_epoch(0)
    batch = next(iter(batches.epoch(0)))
    batch = model.prepare(batch, Step(batch))
    terms = model.loss(Step(batch, total_weight=target_weight(batch)))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    norms = {}
    for name, term in terms.items():
        slopes = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        norms[name] = float(sum(slope.square().sum() for slope in slopes if slope is not None) ** 0.5)
    return norms


def table(found: dict[str, dict[str, Any]], data: str) -> str:
    """What was found: a row per method, a column per factor, the best one marked."""
    runs = [run for run in found.values() if "value" in run]
    factors = sorted({run["factor"] for run in runs if run["factor"]}, reverse=True)
    lines = [
        f"| method | published | gradient | {' | '.join(f'x {factor:g}' for factor in factors)} |",
        f"{'|---' * (3 + len(factors))}|",
    ]
    if "backbone" in found:
        lines.append(f"| backbone | {_shown(found['backbone'])} without | |{' |' * len(factors)}")
    for name, (_, _, published) in METHODS.items():
        row = [found.get(f"{name}-{factor:g}") for factor in factors]
        best = max((run["value"] for run in row if run), default=0.0)
        cells = ["" if run is None else _shown(run, marked=run["value"] == best) for run in row]
        weights = ", ".join(f"{key} {weight:g}" for key, weight in published.items())
        ratios = _ratios(found.get(f"{name}-gradients", {}))
        lines += [f"| {name} | {weights} | {ratios} | {' | '.join(cells)} |"] if any(row) else []
    stamp = f"{', '.join(sorted({run['date'] for run in runs}))}, {processor()}, seed 0"
    head = (
        f"### Weights of auxiliary losses on {data}\n\nValidation NDCG@10 (and its epoch) by factor on the published "
        "weights; the best in bold. Gradient: norm of each weighted term's against the softmax's, in the first step, "
        "at the published weights."
    )
    return "\n".join([head, "", *lines, "", f"`python benchmarks/quality/weights.py --data {data}`, {stamp}\n"])


def _shown(run: dict[str, Any], marked: bool = False) -> str:
    value = f"{run['value']:.4f}"
    return f"{f'**{value}**' if marked else value} ({run['epoch']})"


def _ratios(norms: dict[str, float]) -> str:
    own = norms.get("loss", 1.0)
    terms = {name.partition(".")[2] or "term": norm / own for name, norm in norms.items() if name != "loss"}
    return ", ".join(f"{name} {ratio:.3g}" for name, ratio in terms.items())


if __name__ == "__main__":
    main()
