"""Coupled estimation over sequences: the checks of its specification, by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys.llm.trainers.objectives.coupled import Coupled
from recsys.llm.trainers.protocols import SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences, summed
from tests.llm.trainers.tiny import g_checks, loss_and_gradient, scored, sequences, total

P, N = Role.POSITIVE, Role.NEGATIVE


class Selector(nn.Module):
    """Scores that are something times what the sampling policy found."""

    reads = frozenset({"old"})

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))

    def forward(self, batch: Sequences) -> Tensor:
        assert batch.old is not None
        return self.slope * summed(batch.old.detach(), batch.mask)


@g_checks
@pytest.mark.parametrize("normalised", [False, True])
def test_coupled(check: Callable[[Any, Sequences], None], normalised: bool) -> None:
    check(Coupled(Selector(), tau=2.0, normalised=normalised), sequences(12, 5, roles=(P, N)))


def test_coupled_1_a_huge_tau_gives_weights_of_two() -> None:
    batch = scored(torch.tensor([-1.0, -3.0, -2.0]), [P, N, N], [0, 0, 0])
    found = Coupled(Selector(), tau=1e9)(replace(batch, old=torch.zeros(3, 1)))["policy"]
    plain = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0])).mean()
    assert found.item() == pytest.approx(2 * plain.item(), rel=1e-6)


def test_coupled_2_weights_rise_with_the_others_score() -> None:
    batch = scored(torch.tensor([0.0, 0.0]), [P, N], [0, 0])
    scores = [-20.0, -5.0, 0.0, 10.0, 20.0]
    found = [Coupled(lambda batch, s=s: torch.tensor([0.0, s]))(batch)["policy"].item() for s in scores]
    assert found == sorted(set(found))
    assert found[3] == pytest.approx(3.71828 * 0.693147, abs=1e-5)


def test_coupled_3_neither_is_trained_through_the_others_loss() -> None:
    batch, selector = sequences(12, 5, roles=(P, N)), Selector()
    terms = Coupled(selector, tau=2.0)(batch)
    leaves = [batch.log_probs, selector.slope]
    assert torch.autograd.grad(terms["policy"], leaves, retain_graph=True, allow_unused=True)[1] is None
    assert torch.autograd.grad(terms["selector"], leaves, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(terms["policy"], leaves[:1], retain_graph=True)[0].any()
    assert torch.autograd.grad(terms["selector"], leaves[1:])[0].any()


def simulated(coupled: bool, seeds: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """AUC of linear policies, one a seed, on 300 items of which some were shown; weights of both kinds of negatives."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(seeds, 300, 4, generator=generator)
    popularity = torch.randn(seeds, 300, generator=generator)
    relevant = torch.bernoulli(torch.sigmoid(features @ torch.tensor([2.0, -2.0, 1.0, 0.0])), generator=generator)
    clicked = relevant * torch.bernoulli(torch.sigmoid(2 * popularity - 1), generator=generator)
    f, h = torch.zeros(seeds, 4, requires_grad=True), torch.zeros(seeds, 1, requires_grad=True)
    optimizer = torch.optim.Adam([f, h], lr=0.1)
    roles, groups = [P, N] * 64 * seeds, (torch.arange(128 * seeds) // 2).tolist()
    for _ in range(40):
        p, q = (torch.multinomial(one, 64, True, generator=generator) for one in (clicked, 1 - clicked))
        items = torch.stack([p, q], 2).view(seeds, 128)
        mine = torch.einsum("snd,sd->sn", features, f).gather(1, items).flatten()
        selector = scored((popularity * h).gather(1, items).flatten(), roles, groups)
        objective = Coupled(lambda _, told=selector: told, tau=2.0 if coupled else 1e9)
        optimizer.zero_grad()
        (total(objective(scored(mine, roles, groups))) * seeds).backward()
        optimizer.step()
    scores, weights = torch.einsum("snd,sd->sn", features, f).detach(), 1 + torch.exp(h.detach() * popularity / 2)
    above = (scores[:, :, None] > scores[:, None]).double() * relevant[:, :, None] * (1 - relevant)[:, None]
    right = above.sum((1, 2)) / (relevant.sum(1) * (1 - relevant).sum(1))
    false, true = ((weights * one).sum(1) / one.sum(1) for one in (relevant - clicked, 1 - relevant))
    return right, false, true


def test_coupled_4_simulated_exposure_costs_no_accuracy_and_false_negatives_weigh_less() -> None:
    (ours, false, true), (plain, _, _) = simulated(True), simulated(False)
    assert ours.mean() >= plain.mean() - 0.005
    assert plain.mean() > 0.7
    assert false.mean() < true.mean()


def test_coupled_5_the_cap_is_respected() -> None:
    batch = scored(torch.tensor([0.0, 0.0]), [P, N], [0, 0])
    found = Coupled(lambda batch: torch.tensor([0.0, 1e9]), cap=5.0)(batch)["policy"]
    assert found.item() == pytest.approx(5 * 0.693147, rel=1e-5)


def test_coupled_both_ways_by_hand() -> None:
    batch = scored(torch.tensor([-1.0, -3.0], requires_grad=True), [P, N], [0, 0])
    found = Coupled(lambda batch: torch.tensor([2.0, 1.0]), tau=2.0, weight=3.0)(batch)
    f, h = torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 1.0])
    softplus = torch.nn.functional.softplus
    policy, selector = (1 + (h[1] / 2).exp()) * softplus(f[1] - f[0]), (1 + (f[1] / 2).exp()) * softplus(h[1] - h[0])
    torch.testing.assert_close(found["policy"], policy)
    torch.testing.assert_close(found["selector"], 3 * selector)


def test_coupled_is_a_part_of_a_selector_that_is_one() -> None:
    objective = Coupled(Selector())
    assert isinstance(objective, SequenceObjective)
    assert objective.reads == {"old"}
    assert [name for name, _ in objective.named_parameters()] == ["selector.slope"]
    batch = sequences(8, 3, roles=(P, N))
    assert loss_and_gradient(objective, batch)[0].isfinite()
    with pytest.raises(ValueError, match=r"\(8,\).*\(3,\)"):
        Coupled(lambda batch: torch.zeros(3))(batch)
    for wrong in ({"tau": 0.0}, {"cap": 0.5}, {"weight": -1.0}):
        with pytest.raises(ValueError, match="found"):
            Coupled(Selector(), **wrong)
