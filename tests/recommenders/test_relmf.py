"""Rel-MF against dense references, by the numbers of its specification's checks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.eval.evaluate import evaluate
from recsys.eval.unbiased import evaluate_uniform, unbiased
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.relmf import RelMF, gradients
from recsys.statistics.cooccurrence import interactions
from recsys.testing import check_ranker, toy_context
from recsys.weighting.propensity import GivenPropensity, PopularityPropensity

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "unbiased"))
LOSSES = ("squared", "logistic", "squared-sigmoid")


def dense_loss(clicks: Tensor, users: Tensor, items: Tensor, labels: Tensor, loss: str, l2: float) -> Tensor:
    """w delta1 + (1 - w) delta0 on clicks, delta0 elsewhere, over all pairs."""
    scores = users @ items.T
    weight = clicks * labels
    if loss == "logistic":
        delta1, delta0 = F.softplus(-scores), F.softplus(scores)
    else:
        x = scores if loss == "squared" else scores.sigmoid()
        delta1, delta0 = (1 - x) ** 2, x**2
    return (weight * delta1 + (1 - weight) * delta0).sum() + l2 * (users.square().sum() + items.square().sum())


def factors_for(context: Context, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    training = context.training
    assert training is not None
    users, items = torch.randn(training.num_users, 5), torch.randn(context.num_items, 5)
    return users.requires_grad_(), items.requires_grad_(), 1 + 4 * torch.rand(context.num_items)


@pytest.mark.parametrize("loss", LOSSES)
def test_check_03_clip_1_or_power_0_is_matrix_factorisation_of_the_clicks(context: Context, loss: str) -> None:
    models = [
        RelMF(4, 2.0, clip=1.0, loss=loss, steps=10),
        RelMF(4, 2.0, PopularityPropensity(power=0.0), loss=loss, steps=10),
    ]
    for model in models:
        model.learn(context)
        assert (model.labels == 1).all()
    assert torch.equal(models[0].factors, models[1].factors)


@pytest.mark.parametrize("loss", LOSSES)
def test_check_08_blocked_gradients_are_those_of_the_dense_loss(
    context: Context, matrix: np.ndarray, loss: str
) -> None:
    users, items, labels = factors_for(context)
    clicks = torch.tensor(matrix, dtype=torch.float32)
    expected = torch.autograd.grad(dense_loss(clicks, users, items, labels, loss, 0.3), (users, items))
    for block in (7, 10_000):
        found = gradients(interactions(context.training), users.detach(), items.detach(), labels, loss, 0.3, block)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_check_08_uniformly_sampled_pairs_agree_in_expectation(context: Context, matrix: np.ndarray) -> None:
    users, items, labels = factors_for(context)
    weight = torch.tensor(matrix, dtype=torch.float32) * labels
    full, _ = gradients(interactions(context.training), users.detach(), items.detach(), labels, "logistic", 0.0)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(300):
        pair = torch.randint(weight.numel(), (256,), generator=generator)
        u, i = pair // len(items), pair % len(items)
        scores = (users[u] * items[i]).sum(1)
        losses = F.softplus(scores) - weight[u, i] * scores
        drawn.append(torch.autograd.grad(losses.sum() * weight.numel() / 256, users)[0])
    stacked = torch.stack(drawn)
    error = stacked.std(0) / len(drawn) ** 0.5
    assert ((stacked.mean(0) - full).abs() < 3 * error).float().mean() > 0.98


def test_check_09_the_fixed_point_has_no_gradient_and_is_the_global_optimum(
    context: Context, matrix: np.ndarray
) -> None:
    model = RelMF(5, 1.0, clip=0.2, steps=600)
    model.learn(context)
    clicks = torch.tensor(matrix, dtype=torch.float32)
    weighted = clicks * model.labels
    users = (weighted @ model.factors @ model.inverse).requires_grad_()
    items = model.factors.clone().requires_grad_()
    found = torch.autograd.grad(dense_loss(clicks, users, items, model.labels, "squared", 1.0), (users, items))
    assert all(one.abs().max() < 2e-2 for one in found)
    # |S - W|^2 + l2 (|P|^2 + |Q|^2) is least for W's singular vectors with values lowered by l2.
    left, values, right = torch.linalg.svd(weighted.double(), full_matrices=False)
    best = (left[:, :5] * (values[:5] - 1.0).clamp(min=0)) @ right[:5]
    torch.testing.assert_close((users @ items.T).double(), best, rtol=0.0, atol=2e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_history_is_folded_in_by_the_minimiser(context: Context, loss: str) -> None:
    model = RelMF(3, 0.5, clip=0.3, loss=loss, steps=60, learning_rate=0.05, fold_steps=2000)
    model.learn(context)
    clicks = torch.zeros(1, context.num_items)
    clicks[0, [1, 6]] = 1
    user = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([user], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = dense_loss(clicks, user, model.factors, model.labels, loss, 0.5)
        value.backward()
        return value

    optimizer.step(closure)
    scores = model.scores([["i2", "i7", "i2"]])[0]
    np.testing.assert_allclose(scores, (user.detach() @ model.factors.T)[0], atol=5e-3)


@pytest.mark.parametrize("loss", ["logistic", "squared-sigmoid"])
def test_descent_lowers_the_loss(context: Context, matrix: np.ndarray, loss: str) -> None:
    clicks = torch.tensor(matrix, dtype=torch.float32)
    found = []
    for steps in (1, 200):
        model = RelMF(4, 0.1, clip=0.2, loss=loss, steps=steps, learning_rate=0.02)
        model.learn(context)
        kept = interactions(context.training)
        users, items = (model._start(rows, torch.Generator().manual_seed(0)) for rows in kept.shape)
        users, items = model._descend(kept, users, items)
        found.append(float(dense_loss(clicks, users, items, model.labels, loss, 0.1)))
    assert found[1] < found[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_a_recommender_that_can_be_saved(loss: str) -> None:
    check_ranker(RelMF(4, 1.0, loss=loss, steps=5))


def test_seeds_decide_the_start(context: Context) -> None:
    found = []
    for seed in (0, 0, 1):
        model = RelMF(3, 1.0, steps=1, seed=seed)
        model.learn(context)
        found.append(model.factors)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_check_12_relative_log_loss_in_a_made_up_world(monkeypatch: pytest.MonkeyPatch) -> None:
    from semisynthetic import METHODS, compare
    from worlds import draw, made_up

    monkeypatch.setattr("semisynthetic.BATCH", 512)
    world = made_up(100, 60)
    relative: dict[float, dict[str, float]] = {}
    for power in (0.5, 1.0, 2.0, 4.0):
        draws = [draw(world, power, seed) for seed in range(5)]
        losses, _ = compare(world, draws, power, 0.05, steps=80, every=20, rate=4.0, everywhere=True)
        relative[power] = {name: float(np.mean(losses[name] / losses["oracle"])) for name in METHODS}
    for power in (0.5, 1.0, 2.0):
        assert relative[power]["naive"] > relative[power]["unbiased"] > 1
    assert relative[0.5]["unbiased"] < relative[1.0]["unbiased"] < relative[2.0]["unbiased"]
    assert relative[4.0]["clipped"] <= relative[4.0]["unbiased"]


def biased_world(seed: int) -> tuple[Split, np.ndarray, np.ndarray, np.ndarray]:
    """Clicks of items that are shown unequally; true relevance and clicks (U, I), and theta (I,)."""
    rng = np.random.default_rng(seed)
    num_users, num_items = 300, 60
    gamma = 1 / (1 + np.exp(-(rng.normal(size=(num_users, 3)) @ rng.normal(size=(3, num_items)) * 1.5 - 0.5)))
    theta = np.geomspace(1.0, 0.2, num_items)
    relevant = rng.random(gamma.shape) < gamma
    clicked = relevant & (rng.random(gamma.shape) < theta)
    rows = [rng.permutation(np.flatnonzero(row)) + 1 for row in clicked]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    prepared = Prepared(np.concatenate(rows).astype(np.int32), offsets, num_items, order="file")
    names = Vocabulary(np.arange(1, num_items + 1), 1)
    return Split.of(prepared, LeaveLast(), names, Vocabulary(np.arange(num_users), 0)), relevant, clicked, theta


def test_check_13_rare_items_gain_on_a_uniform_test_and_both_views_are_shown() -> None:
    """Each at the better of two l2, as weights change the scale of the labels."""
    changes = []
    for seed in range(3):
        split, relevant, clicked, theta = biased_world(seed)
        propensity = GivenPropensity([[item + 1, value] for item, value in enumerate(theta)])
        counts = split.train.item_counts()[1:]
        rare = counts <= np.median(counts)
        users, items = np.nonzero(~clicked)  # all that was not clicked: a uniform test set without noise of its own
        best = []
        for clip in (1.0, 0.02):
            found = []
            for l2 in (5.0, 20.0):
                model = RelMF(4, l2, propensity, clip)
                model.learn(Context(60, split.items, split.train))
                scores = model.scores([split.items.raw(split.train.history(user)) for user in range(300)])
                top = np.argsort(-np.where(clicked, -np.inf, scores), axis=1)[:, :10]
                hits = np.take_along_axis(relevant & ~clicked & rare, top, axis=1).sum()
                uniform = evaluate_uniform(model, split, users, items + 1, relevant[users, items], 1.0)
                report = evaluate(model, split.test, k=10, metrics=["ndcg"], progress=False)
                both = unbiased(report, split.test, propensity)
                assert all(word in str(both) for word in ("plain", "SNIPS"))
                recall = hits / (relevant & ~clicked & rare).sum()
                found.append((recall, uniform.mean("recall_all@5"), both.plain["ndcg@10"].mean))
            best.append(max(found))
        changes.append(np.subtract(best[1], best[0]))
    rare_recall, uniform_recall, plain = np.mean(changes, axis=0)
    assert rare_recall > 0.02 and uniform_recall > 0.0, (rare_recall, uniform_recall, plain)
    assert plain < 0, "held-out clicks are as biased as the training ones: they favour the naive model"


def test_bad_settings_and_tables(context: Context) -> None:
    for arguments in ({"l2": 0.0}, {"loss": "hinge"}, {"clip": 2.0}, {"dim": 0}):
        with pytest.raises(ValueError, match="found"):
            RelMF(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one propensity per item"):
        RelMF(2, propensity=PopularityPropensity(period_days=0.1), steps=1).learn(context)
    with pytest.raises(ValueError, match="training"):
        RelMF(2).learn(Context(30))


@pytest.mark.parametrize("loss", ["logistic", "squared-sigmoid"])
def test_the_default_fold_reaches_the_minimum_of_uneven_factors(loss: str) -> None:
    context = toy_context()
    model = RelMF(5, 0.05, loss=loss, steps=1)
    model.learn(context)
    sizes = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25])
    model.factors = torch.randn(context.num_items, 5, generator=torch.Generator().manual_seed(0)) * sizes
    model.inverse = model._inverse(model.factors)
    assert context.training is not None
    batch = context.training.gather(np.arange(8))
    found, model.fold_steps = model.fold(batch), 20_000
    best = model.fold(batch)
    assert (found - best).norm() < 0.02 * best.norm()


def test_a_large_catalogue_shares_the_room_for_scores(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    from recsys.recommenders import relmf

    monkeypatch.setattr(relmf, "SCORES", 2 * context.num_items)
    sizes, slopes = [], relmf._slopes

    def recorded(scores: torch.Tensor, *given: object) -> object:
        sizes.append(scores.numel())
        return slopes(scores, *given)

    monkeypatch.setattr(relmf, "_slopes", recorded)
    RelMF(3, 1.0, loss="squared-sigmoid", steps=1).learn(context)
    assert sizes and max(sizes) <= 2 * context.num_items
