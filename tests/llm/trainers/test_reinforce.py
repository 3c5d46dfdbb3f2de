"""Credit for hits and misses: PSR, NSR, W-REINFORCE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys.llm.trainers.credit.reinforce import Reinforce, nsr, psr, w_reinforce
from recsys.llm.trainers.objectives.policy import PolicyGradient
from tests.llm.trainers.sampled import drawn_from, first, sampled


def test_psr_nsr_1_a_miss_gives_its_probability_to_the_others_in_proportion() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0]).requires_grad_()
    probable = logits.softmax(0)
    for missed in range(4):
        batch = sampled([0], log_probs=logits.log_softmax(0)[missed].view(1, 1))
        (gradient,) = torch.autograd.grad(PolicyGradient(nsr())(batch), logits)
        expected = probable.detach().clone()
        expected[missed] -= 1
        torch.testing.assert_close(-gradient, expected)


def test_psr_nsr_2_with_equal_weights_it_is_reinforce_and_the_sum_of_its_halves() -> None:
    batch = sampled([1, 0, 0, 1], [0, 0, 1, 1], tokens=[[2, 3], [4], [5, 6, 7], [8]])
    assert first(w_reinforce(1.0)(batch)).tolist() == [1, -1, -1, 1]
    torch.testing.assert_close(w_reinforce(1.0)(batch), (2 * batch.reward - 1)[:, None] * batch.mask)
    halves = [PolicyGradient(credit)(batch) for credit in (psr(), nsr())]
    torch.testing.assert_close(PolicyGradient(w_reinforce(1.0))(batch), halves[0] + halves[1])
    assert first(w_reinforce()(batch)).tolist() == pytest.approx([0.1, -1, -1, 0.1])


def test_psr_nsr_3_without_hits_there_is_nothing_to_learn_and_it_is_told() -> None:
    batch = sampled([0, 0, 0], [0, 0, 1])
    objective = PolicyGradient(psr())
    loss = objective(batch)
    (gradient,) = torch.autograd.grad(loss, batch.log_probs)
    assert float(loss.detach()) == 0
    assert not gradient.any()
    figures = objective.figures(batch)
    assert (figures["hits"], figures["hits of"]) == (0, 3)
    assert figures["groups without signal"] == figures["groups without signal of"] == 2


def learned(credit: Reinforce, seed: int) -> Tensor:
    """The policy over 8 arms, 2 of them good and all alike at first, after 50 updates from 16 samples each."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(8).requires_grad_()
    for _ in range(50):
        arms, log_probs = drawn_from(logits, 16, generator)
        batch = sampled((arms < 2).tolist(), log_probs=log_probs)
        (gradient,) = torch.autograd.grad(PolicyGradient(credit)(batch), logits)
        logits = (logits - gradient).detach().requires_grad_()
    return logits.detach().softmax(0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_psr_nsr_4_mostly_negative_credit_keeps_both_good_arms(seed: int) -> None:
    def entropy(policy: Tensor) -> float:
        good = policy[:2] / policy[:2].sum()
        return -float((good * good.log()).sum())

    both, hits = learned(w_reinforce(0.1), seed), learned(psr(), seed)
    assert entropy(both) > entropy(hits)
    assert float(both[:2].sum()) > 0.8


def test_psr_nsr_5_graded_rewards_need_a_threshold() -> None:
    batch = sampled([1, 0.5, 0, 0.75])
    with pytest.raises(ValueError, match="2 others of 4"):
        psr()(batch)
    assert first(Reinforce(0.5, 2.0, threshold=0.75)(batch)).tolist() == [0.5, -2, -2, 0.5]
    assert first(nsr(threshold=0.5)(batch)).tolist() == [0, 0, -1, 0]


def test_numbers_out_of_range_are_errors() -> None:
    for positive, negative in ((-1.0, 1.0), (1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="positive and negative"):
            Reinforce(positive, negative)
