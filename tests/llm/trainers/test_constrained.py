"""Several rewards with thresholds: multipliers, their credit, and that they are resumed exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from recsys.llm.trainers.credit.constrained import Constrained
from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.objectives.policy import PolicyGradient
from recsys.llm.trainers.sequences import Sequences
from tests.llm.trainers.sampled import drawn_from, first, sampled


def with_rewards(rewards: list[list[float]], reward: list[float] | None = None) -> Sequences:
    values = [0.0] * len(rewards) if reward is None else reward
    return sampled(values, rewards=torch.tensor(rewards, dtype=torch.float32))


def of(thresholds: list[float], **knobs: Any) -> Constrained:
    return Constrained(GroupRelative(), ["varied", "new"][: len(thresholds)], thresholds, **knobs)


def test_constrained_1_a_multiplier_falls_where_there_is_enough_and_rises_where_there_is_not() -> None:
    credit = of([0.5, 0.5], rate=4.0)
    batch = with_rewards([[0.9, 0.1], [0.7, 0.3]])
    before = credit.multipliers
    assert before.tolist() == [0.5, 0.5]
    for _ in range(500):
        credit.observe(batch)
        now = credit.multipliers
        assert now[0] < before[0]
        assert now[1] > before[1]
        before = now
    assert before[0] < 0.01
    assert before[1] > 0.99
    figures = PolicyGradient(credit).figures(batch)
    assert figures["multiplier new at its bound"] == 1
    assert figures["multiplier varied at its bound"] == 0
    assert figures["reward varied"] / figures["reward varied of"] == pytest.approx(0.8)


def test_constrained_1_equal_pushes_from_both_sides() -> None:
    credit = of([0.5, 0.5], kind="equal", rate=1.0)
    assert credit.multipliers.tolist() == [0, 0]
    for _ in range(200):
        credit.observe(with_rewards([[0.9, 0.1], [0.7, 0.3]]))
    assert credit.multipliers[0] < -0.9
    assert credit.multipliers[1] > 0.9


def test_the_multiplier_moves_by_the_equation() -> None:
    credit = of([0.5], rate=0.1, momentum=0.5, memory=0.75)
    z, velocity, seen = 0.0, 0.0, []
    for value in (0.9, 0.2, 0.4):
        credit.observe(with_rewards([[value], [value]]))
        seen.append(value)
        weights = [0.75**age for age in range(len(seen))][::-1]
        mean = sum(w * one for w, one in zip(weights, seen, strict=True)) / sum(weights)
        mu = 1 / (1 + torch.tensor(-z).exp().item())
        velocity = 0.5 * velocity + (mean - 0.5) * mu * (1 - mu)
        z -= 0.1 * velocity
        assert float(credit.averages) == pytest.approx(mean, abs=1e-6)
        assert float(credit.z) == pytest.approx(z, abs=1e-6)


def test_constrained_2_without_others_it_is_the_first_credit() -> None:
    batch = sampled([1, 0, 0, 1], [0, 0, 1, 1])
    credit = of([])
    assert torch.equal(credit(batch), GroupRelative()(batch))
    credit.observe(batch)
    assert credit.reads == {"reward"}


def test_constrained_3_credit_is_linear_in_each_reward() -> None:
    batch = with_rewards([[0.1, 3.0], [0.9, 7.0], [0.4, 5.0]], [1, 0, 0])
    credit = of([0.5, 0.5])
    credit.z.copy_(torch.tensor([1.0, -2.0]))
    expected = first(GroupRelative()(batch))
    assert batch.rewards is not None
    for column, multiplier in zip(batch.rewards.unbind(1), credit.multipliers, strict=True):
        expected = expected + multiplier * first(GroupRelative()(replace(batch, reward=column)))
    torch.testing.assert_close(first(credit(batch)), expected)


def learned(credit: Constrained, seed: int) -> float:
    """The mean of the second reward over the last 100 of 200 updates, on a bandit of three arms.

    They are worth 1, .5 and 0 by the first reward, and 0, 1 and .5 by the second. A bonus for entropy damps the policy
    and the multiplier, which go round each other without it.
    """
    rewards, others = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 1.0, 0.5])
    generator, objective, values = torch.Generator().manual_seed(seed), PolicyGradient(credit, entropy=0.3), []
    logits = torch.zeros(3).requires_grad_()
    for _ in range(200):
        arms, log_probs = drawn_from(logits, 32, generator)
        probable = logits.log_softmax(0)
        entropy = -(probable.exp() * probable).sum().expand(32, 1)
        more: dict[str, Any] = {"log_probs": log_probs, "entropy": entropy, "rewards": others[arms][:, None]}
        batch = sampled(rewards[arms].tolist(), **more)
        (gradient,) = torch.autograd.grad(objective(batch), logits)
        logits = (logits - gradient).detach().requires_grad_()
        values.append(float(others[arms].mean()))
    return sum(values[100:]) / 100


def test_constrained_4_a_bandit_comes_to_its_threshold() -> None:
    assert learned(Constrained(GroupRelative("none"), [], []), 0) < 0.3
    for kind in ("at least", "equal"):
        bound = Constrained(GroupRelative("none"), ["varied"], [0.6], kind, rate=1.0, memory=0.5)
        assert abs(learned(bound, 0) - 0.6) < 0.05


def test_constrained_5_multipliers_have_no_part_in_gradients_and_move_in_training_alone() -> None:
    objective = PolicyGradient(of([0.9]))
    batch = with_rewards([[0.1], [0.9]], [1, 0])
    objective(batch).backward()
    assert not list(objective.parameters())
    moved = objective.credit.z.clone()
    assert moved > 0
    assert not moved.requires_grad
    batch.log_probs.grad = None
    objective.credit.observe(batch)
    assert batch.log_probs.grad is None
    moved = objective.credit.z.clone()
    objective.eval()(batch)
    objective.figures(batch)
    assert torch.equal(objective.credit.z, moved)


def test_resumed_it_goes_on_to_the_bit_and_bound_again_it_begins_anew() -> None:
    batches = [with_rewards([[0.1 * n], [0.9 - 0.1 * n]], [1, 0]) for n in range(6)]
    whole, part, rest = (PolicyGradient(of([0.4], rate=0.3)) for _ in range(3))
    losses = [whole(batch) for batch in batches]
    for batch in batches[:3]:
        part(batch)
    rest.load_state_dict(part.state_dict())
    assert [rest(batch) for batch in batches[3:]] == losses[3:]
    rest.credit.bind(None)
    assert [rest(batch) for batch in batches] == losses


def test_wrong_input_is_told() -> None:
    with pytest.raises(ValueError, match="one threshold"):
        Constrained(GroupRelative(), ["varied"], [])
    with pytest.raises(ValueError, match="kind"):
        of([0.5], kind="least")
    for wrong in ({"rate": 0}, {"momentum": 1}, {"memory": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            of([0.5], **wrong)
    with pytest.raises(ValueError, match="varied"):
        of([0.5])(sampled([1, 0]))
    with pytest.raises(ValueError, match="2"):
        of([0.5])(with_rewards([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match="rewards"):
        sampled([1, 0], rewards=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="1 of 2 reward"):
        with_rewards([[1.0], [float("nan")]])
