"""The policy gradient of groups: advantages, clipped ratios, divergence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys.objectives.policy_gradient import clipped_gain, divergence_estimate, group_advantages, policy_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_reg4rec_13_7_advantages_of_a_group_sum_to_zero_and_follow_the_formula() -> None:
    rewards, groups = drawn(9), torch.tensor([3, 3, 7, 3, 7, 1, 1, 1, 1])
    found = group_advantages(rewards, groups)
    for group in (1, 3, 7):
        own = rewards[groups == group]
        expected = (own - own.mean()) / (own.std(correction=0) + 1e-6)
        torch.testing.assert_close(found[groups == group], expected)
        assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-5)


def test_advantages_do_not_depend_on_the_order_or_the_scale_of_rewards() -> None:
    rewards, groups = drawn(12), torch.arange(12) % 3
    found = group_advantages(rewards, groups)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(group_advantages(rewards[order], groups[order]), found[order])
    torch.testing.assert_close(group_advantages(1000 * rewards + 5, groups), found, rtol=1e-3, atol=1e-3)


def test_reg4rec_13_7_equal_rewards_teach_nothing_but_the_divergence() -> None:
    log_probs = drawn(4, 3).log().requires_grad_()
    advantages = group_advantages(torch.full((4,), 0.3), torch.tensor([0, 0, 1, 1]))
    policy_loss(log_probs, log_probs.detach(), advantages).backward()
    assert float(log_probs.grad.abs().max()) == 0
    log_probs.grad = None
    reference = drawn(4, 3, seed=1).log()
    policy_loss(log_probs, log_probs.detach(), advantages, reference=reference, kl=0.1).backward()
    # The derivative of e^d - d - 1 by log pi is 1 - e^d.
    torch.testing.assert_close(log_probs.grad, 0.1 * (1 - (reference - log_probs).exp()).detach() / 12)


def test_reg4rec_13_7_at_the_sampling_policy_the_ratio_is_one_and_nothing_is_clipped() -> None:
    log_probs, advantages = drawn(4, 3).log().requires_grad_(), drawn(4) - 0.5
    gain = clipped_gain(log_probs, log_probs.detach(), advantages, low=0.0, high=0.0)
    torch.testing.assert_close(gain, advantages[:, None].expand(4, 3))
    policy_loss(log_probs, log_probs.detach(), advantages).backward()
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 3) / 12)  # REINFORCE


@pytest.mark.parametrize(
    ("advantage", "ratio", "learns"),
    [(1.0, 1.3, False), (1.0, 0.5, True), (-1.0, 0.7, False), (-1.0, 1.5, True), (1.0, 1.1, True), (-1.0, 0.9, True)],
)
def test_clipping_acts_on_the_side_that_would_go_further(advantage: float, ratio: float, learns: bool) -> None:
    log_probs = torch.tensor([[ratio]]).log().requires_grad_()
    loss = policy_loss(log_probs, torch.zeros(1, 1), torch.tensor([advantage]), low=0.2, high=0.2)
    loss.backward()
    assert (float(log_probs.grad) != 0) is learns
    if learns:
        assert float(log_probs.grad) == pytest.approx(-advantage * ratio)


def test_masked_tokens_count_nothing_and_nothing_is_infinite() -> None:
    log_probs, old, mask = drawn(3, 4).log(), drawn(3, 4, seed=1).log(), drawn(3, 4, seed=2) < 0.6
    advantages = torch.tensor([1.0, -1.0, 0.5])
    expected = -clipped_gain(log_probs, old, advantages)[mask].mean()
    assert float(policy_loss(log_probs, old, advantages, mask)) == pytest.approx(float(expected))
    wild = log_probs.masked_fill(~mask, 1e4)
    assert float(policy_loss(wild, old, advantages, mask)) == pytest.approx(float(expected))
    assert float(policy_loss(log_probs, old, advantages, mask & False)) == 0


def test_divergence_is_zero_where_equal_and_estimates_the_exact_one() -> None:
    policy, reference = drawn(5).log_softmax(0), (3 * drawn(5, seed=1)).log_softmax(0)
    assert float(divergence_estimate(policy, policy).abs().max()) == 0
    estimates = divergence_estimate(policy, reference)
    assert bool((estimates >= 0).all())
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)  # its mean under the policy


def test_the_deviation_may_be_the_unbiased_one() -> None:
    rewards, groups = drawn(9), torch.tensor([3, 3, 7, 3, 7, 1, 1, 1, 2])
    found = group_advantages(rewards, groups, eps=1e-4, correction=1)
    for group in (1, 3, 7):
        own = rewards[groups == group]
        torch.testing.assert_close(found[groups == group], (own - own.mean()) / (own.std() + 1e-4))
    assert float(found[-1]) == 0  # a group of one


def test_with_a_bound_nothing_overflows_and_below_it_nothing_changes() -> None:
    log_probs, old, advantages = drawn(3, 4).log(), drawn(3, 4, seed=1).log(), drawn(3) - 0.5
    assert torch.equal(clipped_gain(log_probs, old, advantages, bound=20.0), clipped_gain(log_probs, old, advantages))
    assert torch.equal(divergence_estimate(log_probs, old, 20.0), divergence_estimate(log_probs, old))
    apart = torch.tensor([[-1e4, 1.9, 2.0, 2.5, 1e4]]).requires_grad_()
    gain = clipped_gain(apart, torch.zeros(1, 5), torch.tensor([-1.0]), bound=2.0)
    (slope,) = torch.autograd.grad(gain.sum(), apart)
    top = torch.tensor(2.0).exp()
    torch.testing.assert_close(gain[0, 2:].detach(), -top * (1 + torch.tensor([0.0, 0.5, 1e4 - 2])))
    torch.testing.assert_close(slope[0, 3:], -top.expand(2))  # beyond the bound it goes on in a straight line
    (slope,) = torch.autograd.grad(divergence_estimate(-apart, torch.zeros(1, 5), 2.0).sum(), apart)
    torch.testing.assert_close(slope[0, 3:], (top - 1).expand(2))
