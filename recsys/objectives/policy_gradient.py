"""The policy gradient of groups of samples (GRPO): what is sampled, scored and compared within its group.

    L = -(1/Z) sum_nt m_nt min(rho_nt A_nt, clip(rho_nt, 1 - low, 1 + high) A_nt) + kl * KL
    rho = exp(log pi - log pi_old)

Nothing here knows what a sequence is made of: codes of an item on a path of a generator, or tokens of a language model.
The advantage of a sequence is its reward against those of its group, (r - mean) / (std + eps); a group whose rewards
are all equal teaches nothing and has advantages 0. Sampled once and used once, log pi_old is log pi itself: the ratio
is 1, clipping is inactive and the gradient is that of REINFORCE. KL to a reference is estimated at what was sampled by
e^d - d - 1, d = log pi_ref - log pi, which is never negative.

References: DeepSeekMath (arXiv 2402.03300) for the groups, PPO (arXiv 1707.06347) for the clipped ratio, Schulman's
note "Approximating KL divergence" for the estimate. Legend: N sequences, T tokens of the longest, m (N, T) what counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, groups: Tensor, eps: float = 1e-6, correction: int = 0) -> Tensor:
    """(N,) advantages of sequences with ``rewards`` (N,) within their ``groups`` (N,) int64, of any sizes.

    Sums to 0 in a group; 0 where all rewards of the group are equal. The deviation is that of the group as it is, or,
    with ``correction`` 1, the unbiased estimate from it.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1])).tolist()
    [0.9999..., -0.9999..., 0.0, 0.0]
    """
    _, own = groups.unique(return_inverse=True)
    counts = torch.bincount(own).to(rewards.dtype)

    def means(values: Tensor) -> Tensor:
        return torch.zeros_like(counts).index_add(0, own, values) / counts

    least = torch.full_like(counts, torch.inf).scatter_reduce(0, own, rewards, "amin")
    most = torch.full_like(counts, -torch.inf).scatter_reduce(0, own, rewards, "amax")
    centred = rewards - means(rewards)[own]
    deviation = (means(centred.square()) * (counts / (counts - correction).clamp(min=1))).sqrt()
    return torch.where((most > least)[own], centred / (deviation[own] + eps), 0)


def clipped_gain(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    low: float = 0.2,
    high: float = 0.2,
    bound: float | None = None,
) -> Tensor:
    """(N, T) min(rho A, clip(rho, 1 - low, 1 + high) A) of each token, to be maximised.

    Args:
        log_probs: (N, T) of the tokens under the policy, with gradient.
        old: (N, T) under the policy that sampled them; no gradient goes through it.
        advantages: (N,) or (N, T).
        low, high: how far a token's ratio may go on counting, down and up.
        bound: where log rho is larger, rho goes on in a straight line, so that nothing overflows; None: nowhere.
    """
    advantages = advantages if advantages.dim() == 2 else advantages[:, None]
    ratio = _exp(log_probs - old.detach(), bound)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def divergence_estimate(log_probs: Tensor, reference: Tensor, bound: float | None = None) -> Tensor:
    """(N, T) estimates of KL(policy || reference) at tokens sampled by the policy: never negative, 0 where equal.

    Args:
        bound: where d is larger, e^d goes on in a straight line, so that nothing overflows; None: nowhere.
    """
    apart = reference.detach() - log_probs
    return _exp(apart, bound) - apart - 1


def _exp(values: Tensor, bound: float | None) -> Tensor:
    """The exponential, continued by its tangent above ``bound``."""
    if bound is None:
        return values.exp()
    return values.clamp(max=bound).exp() * (1 + (values - bound).clamp(min=0))


def policy_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    kl: float = 0.0,
    low: float = 0.2,
    high: float = 0.2,
) -> Tensor:
    """The scalar loss: the mean over the tokens that count of what is lost, and ``kl`` times their divergence.

    Args:
        mask: (N, T) what counts; None: everything.
        reference: (N, T) log-probabilities under the policy that this one is kept near to; None: no such term.
    """
    losses = -clipped_gain(log_probs, old, advantages, low, high)
    if reference is not None and kl:
        losses = losses + kl * divergence_estimate(log_probs, reference)
    if mask is None:
        return losses.sum() / max(losses.numel(), 1)
    counted = mask.to(losses.dtype)
    return losses.masked_fill(~mask.bool(), 0).mul(counted).sum() / counted.sum().clamp(min=1)
