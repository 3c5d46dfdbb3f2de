"""Groups of misses that teach: each is compared with samples that it could have had (NGRPO).

    A = (r - mu) / (s + 1e-6),  mu and s over r_1 .. r_G and ``virtual`` rewards of ``most``

s is the unbiased deviation of the G + virtual values; the virtual samples have no part in the loss. A group of misses
gets -1/sqrt(G + 1) each where GRPO gives 0, and a group of hits gets 0.

The sum over a group is negative: what is sampled loses probability in every update. Set the ``ceiling`` of
``PolicyGradient``, and, as published, clip hits wider than misses: ``PolicyGradient(NGRPO(), low=0.16, high=0.24)``.

What differs from the published code: there a group of one gets its reward itself; here it is a group like any other,
so that a hit alone gets 0 and a miss alone -1/sqrt(2).

Reference: NGRPO, as in its code nangongrui-ngr/NGRPO. Legend: N sequences, T tokens of the longest, G of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.llm.trainers.credit.groups import numbered, over_tokens, reward_of
from recsys.llm.trainers.sequences import Sequences
from recsys.objectives.policy_gradient import group_advantages

EPS = 1e-6


class NGRPO(nn.Module):
    """GRPO's credit with the best reward added to the statistics of every group.

    Use when most groups have no hit, as where one held-out item is to be found among many. Prefer ``GroupRelative``
    where most groups have one.

    Args:
        virtual: how many samples of the best reward each group is given; 0 is GRPO with eps 1e-6.
        most: that reward; none is above it.

    Raises:
        ValueError: ``virtual`` below 0.
    """

    reads = frozenset({"reward"})

    def __init__(self, virtual: int = 1, most: float = 1.0) -> None:
        super().__init__()
        if virtual < 0:
            raise ValueError(f"virtual counts samples, at least 0; found {virtual}")
        self.virtual, self.most = virtual, most

    def forward(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False.

        Raises:
            ValueError: there are no rewards, or one above ``most``.
        """
        rewards = reward_of(batch, type(self).__name__)
        if bool((rewards > rewards.new_tensor(self.most)).any()):
            raise ValueError(
                f"virtual samples get most={self.most:g}, the largest reward there is; found {float(rewards.max()):g}: "
                "give that as most"
            )
        own, count = numbered(batch.group)
        added = torch.arange(count, device=own.device).repeat(self.virtual)
        joined = torch.cat([rewards, rewards.new_full(added.shape, self.most)])
        found = group_advantages(joined, torch.cat([own, added]), EPS, correction=1)
        return over_tokens(found[: len(rewards)], batch)
