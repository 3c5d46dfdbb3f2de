"""The library's own parts pass their checks, and each broken part is told what is wrong with it."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from recsys.encoders.sasrec import SASRec
from recsys.eval.choice import METRICS
from recsys.items.ids import IdItems
from recsys.negatives.in_batch import InBatchNegatives
from recsys.objectives.bce import BCE
from recsys.objectives.bpr import BPR
from recsys.objectives.gbce import GBCE
from recsys.objectives.sampled import SampledSoftmax
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.composed import Recommender
from recsys.recommenders.ease import EASE
from recsys.recommenders.itemknn import ItemKNN
from recsys.recommenders.markov import Markov
from recsys.recommenders.popularity import Popularity
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.testing import (
    check_augmentation,
    check_auxiliary,
    check_encoder,
    check_items,
    check_metric,
    check_objective,
    check_ranker,
    check_targets,
    toy_batch,
    toy_split,
)

BROKEN = """
import numpy as np, torch
from torch import nn
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.encoders.sasrec import SASRec
from recsys.eval.metrics.ndcg import NDCG
from recsys.eval.metrics.recall import Recall
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.recommenders.popularity import Popularity
from recsys.protocols import Encoded

class LooksAhead(SASRec):
    def forward(self, batch, items):
        vectors = batch.pad(items.embed(batch.flat_ids))
        mean = vectors.sum(1) / batch.lengths.clamp(min=1)[:, None]
        return Encoded(batch, super().forward(batch, items).tokens + mean.repeat_interleave(batch.lengths, 0))

class SeesPadding(SASRec):
    def forward(self, batch, items):
        found = super().forward(batch, items)
        return Encoded(batch, found.tokens + batch.ids.shape[1])

class SeesCompany(SASRec):
    def forward(self, batch, items):
        found = super().forward(batch, items)
        return Encoded(batch, found.tokens - found.tokens.mean(0))

class Deaf(SASRec):
    def __init__(self, dim=8):
        super().__init__(dim, max_length=8)
        self.spare = nn.Linear(dim, dim)

class Draws(SASRec):
    calls = 0
    def forward(self, batch, items):
        Draws.calls += 1
        return Encoded(batch, super().forward(batch, items).tokens * (1 + Draws.calls))

class WrongShape(SASRec):
    def forward(self, batch, items):
        return Encoded(batch, super().forward(batch, items).states)

class Forgets(SASRec):
    def __init__(self, width=8):
        super().__init__(width, max_length=8)

class InPlace(SASRec):
    def forward(self, batch, items):
        batch.ids[0, 0] = 1
        return super().forward(batch, items)

class Leaks(LastItem):
    def train(self, batch, generator=None):
        made = super().train(batch, generator)
        return made.replace(ids=torch.where(made.targets > 0, made.targets, made.ids))

class SaysAll(NextItem):
    sees = "all"

class Margin(nn.Module):
    def forward(self, encoded, batch, items, generator):
        states, targets, weights = encoded.at_targets(batch)
        rows = torch.arange(1, items.num_items + 1)
        losses = torch.nn.functional.cross_entropy(states @ items.output(rows).T, targets - 1, reduction="none")
        return self.reduced(losses, torch.ones(len(targets)) if weights is None else weights, batch)

    def reduced(self, losses, weights, batch):
        return (losses * weights).sum()

class Forgetful(Margin):
    def reduced(self, losses, weights, batch):
        return losses.sum()

class WeighsTwice(Margin):
    def reduced(self, losses, weights, batch):
        return (losses * weights * weights).sum()

class Normalises(Margin):
    def reduced(self, losses, weights, batch):
        return (losses * weights).sum() / weights.sum()

class Averages(Margin):
    def reduced(self, losses, weights, batch):
        return (losses * weights).mean()

class HalfWeighs(Margin):
    def reduced(self, losses, weights, batch):
        weights = batch.flatten(batch.weights)[batch.flatten(batch.targets) > 0] if batch.weights is not None else 1
        return (losses * weights).sum()

class PerTarget(Margin):
    def reduced(self, losses, weights, batch):
        return losses * weights

class Repels(FullSoftmax):
    def forward(self, encoded, batch, items, generator):
        return -super().forward(encoded, batch, items, generator)

class Detached(FullSoftmax):
    def forward(self, encoded, batch, items, generator):
        still = Encoded(encoded.batch, encoded.tokens.detach())
        return super().forward(still, batch, items, generator) + 0 * encoded.tokens.sum()

class NoWeight(nn.Module):
    def forward(self, step):
        return step.encoded.user.sum()

class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = 1.0
    def forward(self, step):
        return step.encoded.user.sum(1)

class Constant(Vector):
    def forward(self, step):
        return torch.tensor(1.0)

class Random(Vector):
    count = 0
    def forward(self, step):
        Random.count += 1
        return step.encoded.user.square().sum() * Random.count

class Empties:
    def __call__(self, batch, generator):
        return batch.replace(ids=batch.ids * 0, lengths=batch.lengths * 0)

class Short:
    def __call__(self, batch, generator):
        return batch.replace(lengths=(batch.lengths - 1).clamp(min=1))

class Global:
    state = 0
    def __call__(self, batch, generator):
        Global.state += 1
        return batch.replace(ids=((batch.ids + Global.state) % 30 + 1) * batch.mask)

class Optimist(Recall):
    def __call__(self, ranked, k):
        return np.bincount(ranked.user, weights=ranked.above < k, minlength=len(ranked)).astype(float)

class Mean(Recall):
    def __call__(self, ranked, k):
        found = super().__call__(ranked, k)
        return found - found.mean()

class Integers(Recall):
    def __call__(self, ranked, k):
        return super().__call__(ranked, k).astype(int)

class Loose(Popularity):
    def score(self, batch):
        return super().score(batch) + batch.ids.shape[1]

class Gap(IdItems):
    def scores(self, users, metric="dot", out=None):
        found = super().scores(users, metric, out)
        return found[:, 1:]

class Late(IdItems):
    def topk(self, users, k):
        values, rows = super().topk(users, k)
        return values, rows - 1

class Flat(IdItems):
    def log_sum_exp(self, hidden):
        return super().log_sum_exp(hidden.detach()) + 0 * hidden.sum(1)

class Heavy(IdItems):
    def cross_entropy(self, hidden, targets, weights=None, more=None, chunk=None):
        return super().cross_entropy(hidden, targets, None, more, chunk)

"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("parts") / "broken_parts.py"
    path.write_text(BROKEN)
    spec = importlib.util.spec_from_file_location("broken_parts", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["broken_parts"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["broken_parts"]


@pytest.mark.parametrize("layout", ["original", "pre", "post", "ligr"])
@pytest.mark.parametrize("positions", ["recency", "absolute", "none"])
def test_the_encoder_passes(layout: str, positions: str) -> None:
    check_encoder(SASRec(16, num_heads=2, dropout=0.3, max_length=9, layout=layout, positions=positions))


def test_items_and_targets_pass() -> None:
    check_items(IdItems(8))
    check_items(IdItems(8, scale=False, extra=2))
    check_targets(NextItem())
    check_targets(LastItem())


@pytest.mark.parametrize("objective", [FullSoftmax, SampledSoftmax, BCE, GBCE, BPR])
def test_objectives_pass(objective: type) -> None:
    check_objective(objective())


@pytest.mark.parametrize("importance", ["positive", "exact", "all"])
def test_bce_passes_under_each_meaning_of_importance(importance: str) -> None:
    check_objective(BCE(importance=importance))


def test_in_batch_negatives_pass() -> None:
    check_objective(SampledSoftmax(InBatchNegatives()))


def test_what_is_varied_to_be_broken_is_whole(broken: ModuleType) -> None:
    check_objective(broken.Margin())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metrics_pass(metric) -> None:
    check_metric(metric)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recommender(IdItems(8), SASRec(8, max_length=6), FullSoftmax()),
        Popularity,
        lambda: Popularity(window_days=0.01),
        ItemKNN,
        lambda: EASE(l2=2.0),
        Markov,
    ],
)
def test_rankers_pass(make) -> None:
    check_ranker(make())


@pytest.mark.parametrize(
    ("check", "name", "word"),
    [
        (check_encoder, "LooksAhead", "looks ahead"),
        (check_encoder, "SeesPadding", "padding"),
        (check_encoder, "SeesCompany", "company"),
        (check_encoder, "Deaf", "spare.weight"),
        (check_encoder, "Draws", "two passes"),
        (check_encoder, "WrongShape", "shape"),
        (check_encoder, "InPlace", "in place"),
        (check_targets, "Leaks", "leaks"),
        (check_targets, "SaysAll", "leaks"),
        (check_objective, "Forgetful", "forgets the weights"),
        (check_objective, "WeighsTwice", "weights"),
        (check_objective, "Normalises", "weights"),
        (check_objective, "Averages", "mean"),
        (check_objective, "HalfWeighs", "importance"),
        (check_objective, "PerTarget", "scalar"),
        (check_objective, "Repels", "opposite"),
        (check_objective, "Detached", "gradient"),
        (check_auxiliary, "NoWeight", "weight"),
        (check_auxiliary, "Vector", "scalar"),
        (check_auxiliary, "Constant", "parameter"),
        (check_auxiliary, "Random", "step.generator"),
        (check_augmentation, "Empties", "at least one"),
        (check_augmentation, "Short", "behind a history"),
        (check_augmentation, "Global", "generator"),
        (check_metric, "Optimist", "tied"),
        (check_metric, "Mean", "alone"),
        (check_metric, "Integers", "float64"),
        (check_ranker, "Loose", "alone"),
        (check_items, "Gap", "scores"),
        (check_items, "Late", "topk"),
        (check_items, "Flat", "gradients of log_sum_exp"),
        (check_items, "Heavy", "weights"),
    ],
)
def test_what_is_broken_is_named(check, name: str, word: str, broken: ModuleType) -> None:
    cls = getattr(broken, name)
    part = cls(8, max_length=8) if issubclass(cls, SASRec) and name != "Deaf" else cls()
    with pytest.raises(AssertionError, match=word):
        check(part)


def test_an_argument_that_is_not_kept_is_named(broken: ModuleType) -> None:
    with pytest.raises(TypeError, match="width"):
        check_encoder(broken.Forgets())


def test_toys() -> None:
    split, batch = toy_split(), toy_batch((3, 1), width=5)
    assert len(split.test) == 40
    assert batch.ids.shape == (2, 5)
    assert batch.mask.sum() == 4
    assert np.isin(split.prepared.items, np.arange(1, 31)).all()
    assert torch.equal(batch.ids, toy_batch((3, 1), width=5).ids)
