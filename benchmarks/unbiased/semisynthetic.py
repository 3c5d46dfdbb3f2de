"""Does weighting by propensities find relevance? The semi-synthetic protocol of the Rel-MF paper, and a simulation.

    python benchmarks/unbiased/semisynthetic.py                            # MovieLens-100K, 5 powers, 5 seeds
    python benchmarks/unbiased/semisynthetic.py --data made-up             # seconds
    python benchmarks/unbiased/semisynthetic.py --data simulation-unbiased # uniform test set; needs RECSYS_MIRROR

Semi-synthetic (Saito et al. 2020, arXiv 1909.03601, section 5.1; code usaito/unbiased-implicit-rec): relevance gamma
and exposure theta are made from the data, clicks are drawn from them, and logistic factorisations (K = 10, biases, SGD
.1 on 2^12 pairs, 1,000 steps) are trained on gamma (oracle), on clicks (naive), and on clicks / theta (unbiased, and
clipped, which the paper's part does not have). Shown is the log loss against true relevance on pairs that were not
clicked (made-up world: on all pairs, against gamma), at the best validation loss of each method's own kind, divided by
the oracle's; and DCG@5 after the last step among what a user finds relevant but did not click and 100 items that are
not relevant to him. What we do differently: a seed is a start *and a draw of clicks* (the paper draws once, and its
seeds only differ in the start, which hardly matters); validation losses are taken every ``--every`` steps; all methods
and seeds are trained side by side, on the same mini-batches (as in the code, which seeds them alike). Exposure is made
as by the code of the paper's figures, whose loss lacks a sigmoid; ``--exposure logistic`` is what the text describes.

Legend: G models trained side by side, U users, I items, K width, B pairs of a mini-batch.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from worlds import EXPOSURES, Clicks, World, draw, from_ratings, made_up

import recsys as rs
from recsys.cli.doctor import processor

RESULTS = Path(__file__).parent / "results"
POWERS = (0.5, 1.0, 2.0, 3.0, 4.0)
METHODS = ("oracle", "naive", "unbiased", "clipped")
PUBLISHED = {  # read off the figures of the paper's repository, error about .0003
    "naive": dict(zip(POWERS, (1.331, 1.446, 1.482, 1.487, 1.489), strict=True)),
    "unbiased": dict(zip(POWERS, (1.001, 1.018, 1.096, 1.134, 1.343), strict=True)),
}
SEEDS = 5
WIDTH, L2, RATE, BATCH, STEPS = 10, 1e-5, 0.1, 2**12, 1000


def main() -> None:
    """Print a table and write it to ``benchmarks/unbiased/results``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["ml-100k", "made-up", "simulation-unbiased"], default="ml-100k")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--clip", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=10, help="steps between two looks at the validation loss")
    parser.add_argument("--exposure", choices=list(EXPOSURES), default="published")
    asked = parser.parse_args()
    if asked.data == "simulation-unbiased":
        lines = simulation(asked.seeds)
    else:
        world = made_up() if asked.data == "made-up" else movielens(asked.exposure)
        lines = table(world, asked.seeds, asked.clip, asked.steps, asked.every, asked.data == "made-up")
    stamp = (
        f"{asked.seeds} seeds, {datetime.date.today().isoformat()}, {processor()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, recsys {rs.__version__}"
    )
    told = f"`python {' '.join(['benchmarks/unbiased/semisynthetic.py', *sys.argv[1:]])}`, {stamp}."
    name = asked.data if asked.exposure == "published" else f"{asked.data}-{asked.exposure}"
    name += "" if asked.seeds == SEEDS else f"-{asked.seeds}-seeds"
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(told + "\n\n" + "\n".join(lines) + "\n")


def movielens(exposure: str) -> World:
    """The world made from the ratings of MovieLens-100K."""
    events, _ = rs.load("ml-100k").source.read()
    users, items = (np.unique(ids, return_inverse=True)[1] for ids in (events.user, events.item))
    return from_ratings(users, items, events.rating, exposure)


def table(world: World, seeds: int, clip: float, steps: int, every: int, toy: bool) -> list[str]:
    """Rows by power: log loss relative to the oracle, mean and standard deviation over seeds, and DCG."""
    lines = [
        "| power | naive | published | unbiased | published | clipped | DCG@5 oracle | naive | unbiased | clipped |",
        "|" + "---|" * 10,
    ]
    for power in POWERS:
        draws = [draw(world, power, 12345 + seed) for seed in range(seeds)]
        losses, gains = compare(world, draws, power, clip, steps, every, everywhere=toy)
        relative = {name: losses[name] / losses["oracle"] for name in METHODS}
        cells = [f"{power:g}"]
        for name in METHODS[1:]:
            cells.append(f"{relative[name].mean():.3f} ± {relative[name].std():.3f}")
            if name in PUBLISHED:
                cells.append(f"{PUBLISHED[name][power]:.3f}" if not toy else "")
        cells += [f"{gains[name].mean():.4f}" for name in METHODS]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def compare(
    world: World,
    draws: Sequence[Clicks],
    power: float,
    clip: float,
    steps: int = STEPS,
    every: int = 10,
    rate: float = RATE,
    everywhere: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Test log loss, and DCG@5 after the last step, of each method on each of ``draws``: (draws,) by name.

    The test is on the pairs without a click against drawn relevance, as in the paper; these are less relevant than
    the rest, which favours the naive method where much is shown. ``everywhere`` is on all pairs against gamma.
    """
    theta, seeds = world.theta(power), len(draws)
    clicked = torch.stack([drawn.clicked for drawn in draws])  # (S, U, I)
    labels = {
        "oracle": world.gamma.expand_as(clicked),
        "naive": clicked,
        "unbiased": clicked / theta,
        "clipped": clicked / theta.clamp(min=clip),
    }
    stacked = torch.cat([labels[name] for name in METHODS]).flatten(1)  # (G, U I)
    models = Models(world.gamma.shape, seeds, len(METHODS), rate)
    generator = torch.Generator().manual_seed(12345)
    pairs = torch.randperm(stacked.shape[1], generator=generator)
    held, train = pairs[: len(pairs) // 10], pairs[len(pairs) // 10 :]
    held_labels = stacked[:, held]
    best, kept = torch.full((len(stacked),), torch.inf), models.copy()
    for step in range(1, steps + 1):
        batch = train[torch.randint(len(train), (BATCH,), generator=generator)]
        models.update(batch, stacked[:, batch])
        if step % every == 0 or step == steps:
            for index in range(len(stacked)):
                valid = pointwise(models.scores(index)[held], held_labels[index]).mean()
                if valid < best[index]:
                    best[index] = valid
                    kept.take(models, index)
    test, gains = np.zeros((len(METHODS), seeds)), np.zeros((len(METHODS), seeds))
    for index in range(len(stacked)):
        drawn, at = draws[index % seeds], (index // seeds, index % seeds)
        truth = (world.gamma if everywhere else drawn.relevant).flatten()
        asked = slice(None) if everywhere else drawn.clicked.flatten() == 0
        test[at] = pointwise(kept.scores(index), truth)[asked].mean()
        gains[at] = dcg(models.scores(index).view(theta.shape), drawn)
    return dict(zip(METHODS, test, strict=True)), dict(zip(METHODS, gains, strict=True))


class Models:
    """Logistic factorisations with biases, one per method and seed; gradients by hand, all models at once."""

    def __init__(self, shape: torch.Size, seeds: int, methods: int, rate: float = RATE) -> None:
        starts = [self._start(shape, seed) for seed in range(seeds)]  # equal for all methods
        self.shape, self.rate = shape, rate
        self.values = [torch.stack(parts).repeat(methods, *[1] * parts[0].dim()) for parts in zip(*starts, strict=True)]

    def update(self, pairs: Tensor, labels: Tensor) -> None:
        """A step of SGD on the mean over ``pairs`` (B,) of softplus(s) - label s; labels (G, B)."""
        users, items, user_bias, item_bias, bias = self.values
        u, i = pairs // self.shape[1], pairs % self.shape[1]
        p, q = users[:, u], items[:, i]
        scores = (p * q).sum(2) + user_bias[:, u] + item_bias[:, i] + bias
        slopes = (scores.sigmoid() - labels) * (self.rate / len(pairs))  # (G, B)
        for value in (users, items, user_bias, item_bias):
            value.mul_(1 - self.rate * L2)
        users.index_add_(1, u, slopes[:, :, None] * q, alpha=-1)
        items.index_add_(1, i, slopes[:, :, None] * p, alpha=-1)
        user_bias.index_add_(1, u, slopes, alpha=-1)
        item_bias.index_add_(1, i, slopes, alpha=-1)
        bias.sub_(slopes.sum(1, keepdim=True))

    def scores(self, index: int) -> Tensor:
        """(U I,) scores of one model."""
        users, items, user_bias, item_bias, bias = (value[index] for value in self.values)
        return torch.addmm(user_bias[:, None] + item_bias + bias, users, items.T).flatten()

    def copy(self) -> Models:
        """The same models, which ``update`` of these leaves alone."""
        other = copy(self)
        other.values = [value.clone() for value in self.values]
        return other

    def take(self, other: Models, index: int) -> None:
        """One model from ``other``."""
        for mine, theirs in zip(self.values, other.values, strict=True):
            mine[index] = theirs[index]

    @staticmethod
    def _start(shape: torch.Size, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        factors = [
            (torch.rand(rows, WIDTH, generator=generator) * 2 - 1) * (6.0 / (rows + WIDTH)) ** 0.5 for rows in shape
        ]
        biases = [torch.randn(rows, generator=generator) * 0.01 for rows in shape]
        return [*factors, *biases, torch.full((1,), 1e-3)]


def pointwise(scores: Tensor, labels: Tensor) -> Tensor:
    """Elementwise label * -log sigmoid(s) + (1 - label) * -log(1 - sigmoid(s))."""
    return F.softplus(scores) - labels * scores


def dcg(scores: Tensor, clicks: Clicks, k: int = 5, negatives: int = 100) -> Tensor:
    """Mean over users of the paper's DCG, ranks 1 and 2 alike, over the number of relevant.

    Ranked are the pairs that are relevant and not clicked, and ``negatives`` drawn from those not relevant.
    """
    relevant = clicks.relevant * (clicks.clicked == 0)
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(12345))
    drawn = noise.masked_fill(clicks.relevant > 0, -1).topk(min(negatives, noise.shape[1]), dim=1).indices
    unwanted = torch.zeros_like(noise).scatter_(1, drawn, 1.0) * (clicks.relevant == 0)
    candidates = relevant + unwanted > 0
    best = scores.masked_fill(~candidates, -torch.inf).topk(k, dim=1).indices
    discount = 1 / torch.arange(1, k + 1).log2().clamp(min=1)
    found = (relevant.gather(1, best) * discount).sum(1)
    return (found / relevant.sum(1).clamp(min=1)).mean()


def simulation(seeds: int) -> list[str]:
    """Rel-MF against plain factorisation on the uniform part of AutoDebias' simulated data."""
    from recsys.data.split import Split
    from recsys.eval.significance import bootstrap_interval
    from recsys.eval.unbiased import evaluate_uniform
    from recsys.protocols import Context
    from recsys.recommenders.relmf import RelMF
    from recsys.weighting.propensity import PopularityPropensity

    data = rs.load("simulation-unbiased")
    loaded = data.clean(min_rating=4).prepare()
    stops = loaded.prepared.offsets[1:]
    split = Split(loaded.prepared, stops, stops, loaded.items, loaded.users, {"name": "all training"})
    uniform = np.loadtxt(data.source.files[0].parent / "random.txt", delimiter=",", dtype=np.int64)
    metrics = ("dcg_old@5", "recall_all@5", "map_all@5")
    lines = [f"| model | {' | '.join(metrics)} | rated | users |", "|" + "---|" * 6]
    rare = int(np.median(split.train.item_counts()[1:]))
    for name, power, clip in (("naive", 0.0, 1.0), ("power .5", 0.5, 0.01), ("power 1", 1.0, 0.01)):
        models = [RelMF(16, 20.0, PopularityPropensity(power), clip, seed=seed) for seed in range(seeds)]
        for model in models:
            model.learn(Context(split.num_items, split.items, split.train))
        for only in (None, rare):
            found = [evaluate_uniform(model, split, *uniform.T, rare=only) for model in models]
            values = np.stack([np.mean([one.columns[metric] for one in found], axis=0) for metric in metrics], axis=1)
            bounds = bootstrap_interval(values)
            cells = [
                f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, (low, high) in zip(values.mean(0), bounds, strict=True)
            ]
            which = "all" if only is None else f"items with at most {only} clicks"
            lines.append("| " + " | ".join([name, *cells, which, f"{len(values):,}"]) + " |")
    return lines


if __name__ == "__main__":
    main()
