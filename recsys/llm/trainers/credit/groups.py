"""Credit by comparison within the group: what a sample is worth is its reward against the others of its prompt (GRPO).

    A = (r - mean of the group) / (s + eps)

s is the unbiased deviation of the group (``"group"``), that of all rewards of the batch (``"batch"``), or there is no
division (``"none"``); eps = 1e-4. It is what trl 1.16 computes, checked on the same numbers in
``tests/parity/test_trl_credit.py``. A group whose rewards are all equal has credit exactly 0 (trl leaves the rounding
of its mean, divided by eps), and a group of one as well.

Reference: DeepSeekMath (arXiv 2402.03300); scales by batch and without division as in trl. Legend: N sequences, T
tokens of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.errors import closest
from recsys.llm.trainers.sequences import Sequences
from recsys.objectives.policy_gradient import group_advantages

SCALES = ("group", "batch", "none")


class GroupRelative(nn.Module):
    """GRPO's credit: the reward less the mean of its group, divided by a deviation.

    Use when rewards are graded, or groups have hits and misses among their samples. A group of misses alone teaches
    nothing: ``NGRPO`` where that is most of them, ``w_reinforce`` where lists should stay varied.

    Args:
        scale: by whose deviation: of the "group", of the "batch", or "none".
        eps: added to the deviation.

    Raises:
        ValueError: another scale, or eps below 0.
    """

    reads = frozenset({"reward"})

    def __init__(self, scale: str = "group", eps: float = 1e-4) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale is one of {', '.join(SCALES)}, found {scale!r}: {closest(scale, SCALES)}")
        if eps < 0:
            raise ValueError(f"eps is added to a deviation, at least 0; found {eps}")
        self.scale, self.eps = scale, eps

    def forward(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False.

        Raises:
            ValueError: the sequences have no reward.
        """
        return over_tokens(self.of(reward_of(batch, type(self).__name__), batch.group), batch)

    def of(self, rewards: Tensor, group: Tensor) -> Tensor:
        """(N,) advantages of ``rewards`` (N,) within their ``group`` (N,)."""
        if self.scale == "group":
            return group_advantages(rewards, group, self.eps, correction=1)
        found = centred(rewards, group)
        if self.scale == "none":
            return found
        deviation = rewards.std() if len(rewards) > 1 else rewards.new_zeros(())
        return torch.where(found != 0, found / (deviation + self.eps), 0)


def reward_of(batch: Sequences, asked: str) -> Tensor:
    """(N,) rewards of the batch, for a part that needs them.

    Raises:
        ValueError: it has none.
    """
    if batch.reward is None:
        raise ValueError(f"{asked} needs the reward of each sequence, and the batch has none: score what was sampled")
    return batch.reward


def over_tokens(values: Tensor, batch: Sequences) -> Tensor:
    """(N, T) the value of each sequence at each of its tokens, 0 where the mask is False."""
    return values.to(batch.log_probs.dtype)[:, None] * batch.mask


def centred(rewards: Tensor, group: Tensor) -> Tensor:
    """(N,) rewards less the mean of their group; exactly 0 where those of the group are equal."""
    own, count = numbered(group)
    means = group_sums(rewards, own, count) / group_sums(torch.ones_like(rewards), own, count)
    return torch.where(uneven(rewards, own, count)[own], rewards - means[own], 0)


def numbered(group: Tensor) -> tuple[Tensor, int]:
    """(N,) the group of each sequence as a number from 0, and how many groups there are."""
    found, own = group.unique(return_inverse=True)
    return own, len(found)


def group_sums(values: Tensor, own: Tensor, count: int) -> Tensor:
    """(count,) sums of ``values`` (N,) over the groups numbered by ``own`` (N,)."""
    return values.new_zeros(count).index_add(0, own, values)


def uneven(values: Tensor, own: Tensor, count: int) -> Tensor:
    """(count,) bool: the groups whose ``values`` (N,) are not all equal."""
    least = values.new_full((count,), torch.inf).scatter_reduce(0, own, values, "amin")
    most = values.new_full((count,), -torch.inf).scatter_reduce(0, own, values, "amax")
    return most > least
