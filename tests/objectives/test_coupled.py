"""Coupled estimation (CET): the numbered checks of its specification, and weights of negatives in general."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from per_target import per_target
from torch import Tensor, nn

from recsys import testing
from recsys.data.batch import Batch
from recsys.items.ids import IdItems
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.negatives import Negatives
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.bce import BCE
from recsys.objectives.bpr import BPR, pairwise
from recsys.objectives.coupled import Coupled, Exposure, coupled_weights
from recsys.objectives.gbce import GBCE
from recsys.objectives.sampled import SampledSoftmax, Scored
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Encoded

SAMPLED: list[Callable[[], nn.Module]] = [
    BPR,
    lambda: BCE(UniformNegatives(3)),
    lambda: GBCE(negatives=UniformNegatives(4, per="row")),
    lambda: SampledSoftmax(UniformNegatives(5, per="batch"), temperature=0.5),
    lambda: SampledSoftmax(InBatchNegatives()),
]


def scores(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    negative = torch.randn(6, 3)
    negative[2, 1] = -torch.inf
    return torch.randn(6), negative


def problem(objective: nn.Module) -> tuple[Encoded, Batch, IdItems]:
    items = IdItems(8, init="torch")
    for part in (items, objective):
        if hasattr(part, "bind"):
            part.bind(testing.toy_context())
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    targets = torch.tensor([[2, 3, 4, 9], [6, 7, 8, 0]])
    batch = Batch(torch.arange(2), torch.arange(2), ids, torch.tensor([4, 3]), targets=targets)
    return Encoded(batch, torch.randn(7, 8, requires_grad=True)), batch, items


def test_check_01_a_huge_tau_gives_weights_of_two() -> None:
    objective = Coupled(BPR(), tau=1e9, weight=0.0)
    encoded, batch, items = problem(objective)
    ours, plain = (per_target(one, encoded, batch, items, seed=1) for one in (objective, BPR()))
    torch.testing.assert_close(ours, 2 * plain)


def test_check_02_weights_rise_with_the_other_models_score() -> None:
    assert coupled_weights(torch.tensor([10.0]), tau=10.0).item() == pytest.approx(3.71828, abs=1e-5)
    grid = torch.linspace(-20, 20, 81)
    weights = coupled_weights(grid, tau=10.0, cap=1e9)
    assert (weights.diff() > 0).all()
    torch.testing.assert_close(weights.double(), 1 / (1 - torch.sigmoid(grid.double() / 10)), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("normalised", [False, True])
def test_check_03_neither_model_is_trained_through_the_others_loss(normalised: bool) -> None:
    objective = Coupled(BPR(UniformNegatives(3)), normalised=normalised)
    encoded, batch, items = problem(objective)
    ranker, exposure = [encoded.tokens, items.weight], list(objective.exposure.parameters())

    def gradients(weight: float, of: list[Tensor]) -> list[Tensor]:
        objective.weight = weight
        total = objective(encoded, batch, items, torch.Generator().manual_seed(1))
        return list(torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True))

    assert all(not gradient.any() for gradient in gradients(0.0, exposure))
    assert any(gradient.any() for gradient in gradients(1.0, exposure))
    for alone, both in zip(gradients(0.0, ranker), gradients(3.0, ranker), strict=True):
        assert torch.equal(alone, both) and bool(alone.any())


def area(scores: Tensor, labels: Tensor) -> Tensor:
    """(S,) AUC of scores (S, N)."""
    ranks = scores.argsort(1).argsort(1).double() + 1
    count = labels.sum(1).double()
    total = (ranks * labels).sum(1) - count * (count + 1) / 2
    return total / (count * (labels.shape[1] - count))


def simulate(coupled: bool, seeds: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """AUC of linear rankers, one per seed, and the mean weight of unlabelled relevant items and of irrelevant ones."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(seeds, 300, 4, generator=generator)
    popularity = torch.randn(seeds, 300, generator=generator)
    taste = torch.tensor([2.0, -2.0, 1.0, 0.0])
    relevant = torch.bernoulli(torch.sigmoid(features @ taste), generator=generator)
    shown = torch.bernoulli(torch.sigmoid(2 * popularity - 1), generator=generator)
    clicked = relevant * shown
    f, h = torch.zeros(seeds, 4, requires_grad=True), torch.zeros(seeds, 1, requires_grad=True)
    optimizer = torch.optim.Adam([f, h], lr=0.1)
    for _ in range(40):
        p, q = (torch.multinomial(one, 64, True, generator=generator) for one in (clicked, 1 - clicked))
        f_all, h_all = torch.einsum("snd,sd->sn", features, f), popularity * h
        loss = torch.zeros(())
        for mine, other in ((f_all, h_all), (h_all, f_all)):
            weights = coupled_weights(other.gather(1, q), tau=2.0).view(-1, 1) if coupled else None
            loss = loss + pairwise(mine.gather(1, p).flatten(), mine.gather(1, q).view(-1, 1), weights).mean() * seeds
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = coupled_weights(popularity * h, tau=2.0)
    false, true = relevant * (1 - clicked), 1 - relevant
    means = [(weights * one).sum(1) / one.sum(1) for one in (false, true)]
    return area(torch.einsum("snd,sd->sn", features, f).detach(), relevant), means[0], means[1]


def test_check_04_simulated_exposure_costs_no_accuracy_and_false_negatives_weigh_less() -> None:
    ours, plain = simulate(True), simulate(False)
    assert ours[0].mean() >= plain[0].mean() - 0.005
    assert plain[0].mean() > 0.7, "the ranker has learned something"
    assert ours[1].mean() < ours[2].mean()


def test_check_05_the_cap_is_respected() -> None:
    weights = coupled_weights(torch.tensor([-1e9, -50.0, 0.0, 50.0, 1e9, torch.inf]), tau=1.0, cap=10.0)
    assert weights.tolist() == [1.0, 1.0, 2.0, 10.0, 10.0, 10.0]


def test_normalised_weights_have_mean_one_where_they_count() -> None:
    _, negative = scores()
    weights = coupled_weights(negative, tau=0.5, normalised=True)
    assert weights[negative > -torch.inf].mean().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("make", SAMPLED)
def test_weights_of_negatives_count_items_that_many_times(make: Callable[[], nn.Module]) -> None:
    objective = make()
    positive, negative = scores()
    plain = objective.of_scores(Scored(positive, negative), 30)
    ones = objective.of_scores(Scored(positive, negative, torch.ones_like(negative)), 30)
    torch.testing.assert_close(ones, plain)
    twice = objective.of_scores(Scored(positive, negative, torch.full_like(negative, 2.0)), 30)
    repeated = objective.of_scores(Scored(positive, torch.cat([negative, negative], 1)), 30)
    if isinstance(objective, GBCE):  # divides by K + 1, and its beta depends on K
        difference = F.softplus(negative).sum(1) / (negative.shape[1] + 1)
        torch.testing.assert_close(twice - plain, difference)
    elif isinstance(objective, BPR):
        torch.testing.assert_close(twice, 2 * plain)
    else:
        torch.testing.assert_close(twice, repeated)


@pytest.mark.parametrize("make", SAMPLED)
def test_a_sampler_may_weigh_what_it_draws(make: Callable[[], nn.Module]) -> None:
    class Heavy(UniformNegatives):
        def sample(self, batch, targets, num_items, generator):  # type: ignore[no-untyped-def]
            drawn: Negatives = super().sample(batch, targets, num_items, generator)
            return replace(drawn, weights=torch.full(drawn.mask.shape, 3.0))

    objective, light = make(), make()
    objective.negatives, light.negatives = Heavy(4), UniformNegatives(4)
    encoded, batch, items = problem(objective)
    heavy = per_target(objective, encoded, batch, items, seed=1)
    assert (heavy > per_target(light, encoded, batch, items, seed=1)).all()


@pytest.mark.parametrize("make", SAMPLED)
def test_coupled_objectives_conform(make: Callable[[], nn.Module]) -> None:
    testing.check_objective(Coupled(make()))


def test_exposure_reads_popularity_and_is_saved() -> None:
    part = Exposure(hidden=0)
    context = testing.toy_context()
    part.bind(context)
    counts = context.training.item_counts()[1:]
    order = np.argsort(counts, kind="stable")
    for column in part.features[1:].numpy()[order].T:
        assert (np.diff(column) >= 0).all()
    assert part.features[1:, 0].std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert "features" in part.state_dict()


def test_what_cannot_be_coupled_is_refused() -> None:
    with pytest.raises(TypeError, match="FullSoftmax"):
        Coupled(FullSoftmax())
    with pytest.raises(ValueError, match="found"):
        Coupled(BPR(), cap=0.5)
    with pytest.raises(ValueError, match="found"):
        Exposure(hidden=-1)
