"""DPO, and R3M: the checks of its specification, by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.llm.trainers.objectives.preference import DPO, R3M
from recsys.llm.trainers.protocols import SequenceObjective
from recsys.llm.trainers.sequences import Role, Sequences
from recsys.storage.parts import describe
from tests.llm.trainers.tiny import g_checks, loss_and_gradient, scored, sequences

P, N = Role.POSITIVE, Role.NEGATIVE


@g_checks
@pytest.mark.parametrize("objective", [DPO(), R3M(), R3M(1.0, 0.4)], ids=["dpo", "r3m", "r3m_sceptical"])
@pytest.mark.parametrize("roles", [(P, N), (P, N, N)])
def test_preference(check: Callable[[Any, Sequences], None], objective: Any, roles: tuple[Role, ...]) -> None:
    check(objective, sequences(12, 5, roles=roles))


def margins(values: Tensor) -> Sequences:
    """A pair for each of these d, at beta = 1."""
    scores = torch.stack([values, torch.zeros_like(values)], 1).flatten()
    return scored(scores, [P, N] * len(values), [pair // 2 for pair in range(2 * len(values))])


def test_dpo_is_the_mean_over_pairs_by_the_product_of_weights() -> None:
    weight = torch.tensor([2.0, 3.0, 0.5, 1.0, 1.0])
    batch = scored(torch.tensor([1.0, 0.0, -2.0, 4.0, 3.0]), [P, N, N, P, N], [0, 0, 0, 1, 1], weight=weight)
    losses = [math.log1p(math.exp(-0.5 * d)) for d in (1.0, 3.0, 1.0)]
    wanted = (6 * losses[0] + 1 * losses[1] + 1 * losses[2]) / 8
    assert DPO(0.5)(batch).item() == pytest.approx(wanted, rel=1e-6)
    assert DPO(0.5).figures(batch) == {"pairs in order": 3.0, "pairs in order of": 3.0}


def test_r3m_1_full_trust_is_dpo() -> None:
    batch = margins(torch.linspace(-10, 20, 31))
    ours, theirs = (loss_and_gradient(one, batch) for one in (R3M(1.0, 0.999999), DPO(1.0)))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=0.0)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(
    ("d", "delta", "loss", "slope"), [(-3.0, 1.9014, 2.81234, -0.75), (0.0, 0.0, math.log(2), -0.5)]
)
def test_r3m_2_numbers(d: float, delta: float, loss: float, slope: float) -> None:
    batch = margins(torch.tensor([d]))
    found, gradient = loss_and_gradient(R3M(1.0, 0.75), batch)
    pairs, deltas = R3M(1.0, 0.75).deltas(batch)
    assert (pairs.better.tolist(), pairs.worse.tolist()) == ([0], [1])
    assert deltas.item() == pytest.approx(delta, abs=1e-4)
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert gradient.flatten().tolist() == pytest.approx([slope, -slope], abs=1e-6)


def test_r3m_3_value_and_slope_are_continuous() -> None:
    c = math.log(1 / 0.75 - 1)
    near = [
        loss_and_gradient(R3M(1.0, 0.75), margins(torch.tensor([c + e], dtype=torch.float64))) for e in (-1e-9, 1e-9)
    ]
    torch.testing.assert_close(near[0][0], near[1][0], atol=1e-8, rtol=0.0)
    torch.testing.assert_close(near[0][1], near[1][1], atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("trust", [0.3, 0.65, 0.85])
def test_r3m_4_the_form_with_deltas_has_the_same_gradient(trust: float) -> None:
    batch = margins(torch.randn(40, generator=torch.Generator().manual_seed(2)) * 3)
    objective = R3M(0.7, trust)
    found, deltas = objective.deltas(batch)
    assert 0 < (deltas > 0).sum() < 40

    def two_steps(batch: Sequences) -> Tensor:
        d = 0.7 * (batch.gains[found.better] - batch.gains[found.worse])
        return (-F.logsigmoid(d + deltas) + trust * deltas).mean()

    ours, theirs = loss_and_gradient(objective, batch), loss_and_gradient(two_steps, batch)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])
    shares = objective.figures(batch)
    assert (shares["suspect pairs"], shares["suspect pairs of"]) == ((deltas > 0).sum(), 40)


def directions(seed: int) -> tuple[float, float]:
    """Cosines with the truth of what R3M and DPO fit to 200 pairs of which 40, among the 80 farthest, are flipped."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.ones(8)
    inputs = torch.randn(200, 8, generator=generator)
    inputs *= torch.sign(inputs @ truth)[:, None]
    flipped = (inputs @ truth).argsort(descending=True)[:80][torch.randperm(80, generator=generator)[:40]]
    inputs[flipped] *= -1

    def cosine(objective: Any) -> float:
        weights = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = objective(margins(inputs @ weights))
            loss.backward()
            return loss

        optimizer.step(closure)
        return F.cosine_similarity(weights.detach(), truth, dim=0).item()

    return cosine(R3M(1.0, 0.65)), cosine(DPO(1.0))


def test_r3m_5_flipped_far_pairs_mislead_it_less() -> None:
    robust, plain = zip(*(directions(seed) for seed in range(5)), strict=True)
    assert all(ours > theirs for ours, theirs in zip(robust, plain, strict=True))
    assert sum(robust) > sum(plain) + 5 * 0.01


def test_preferences_are_parts_and_refuse_what_they_cannot_do() -> None:
    for objective, arguments in ((DPO(0.2), {"beta": 0.2}), (R3M(0.2), {"beta": 0.2, "trust": 0.75})):
        assert isinstance(objective, SequenceObjective)
        assert describe(objective)["arguments"] == arguments
    for make in (lambda: DPO(0.0), lambda: R3M(-1.0), lambda: R3M(trust=1.0), lambda: R3M(trust=0.0)):
        with pytest.raises(ValueError, match="found"):
            make()
