"""Several rewards, each pushed up until it is enough: thresholds in place of weights found by hand (Lagrange).

    A   = A_0 + sum_k mu_k A_k,      mu_k = squash(z_k)
    z_k <- z_k - rate * velocity_k,  velocity_k <- momentum * velocity_k + (mean_k - theta_k) squash'(z_k)

A_0 is the credit of ``Sequences.reward`` by ``primary``; A_k that of column k of ``Sequences.rewards``, compared within
its group and divided by its deviation (``GroupRelative``), so that the multipliers mean the same for all. mean_k is a
running mean of the rewards over batches. ``"at least"`` squashes by the sigmoid (mu from 0 to 1, at first 1/2) and lets
go of a reward that is above its threshold; ``"equal"`` by tanh (from -1 to 1, at first 0) and pushes it down as well.

**Adapted for recommenders by us**: the published form weighs the first reward by K - sum_k mu_k; here a hit always
counts in full. So a reward that is opposed to hits in every group cannot be had against a ``primary`` that divides by
the deviation: ``GroupRelative("none")`` leaves hits as large as they are. A threshold out of reach drives its
multiplier to its bound; ``figures`` tells. Policy and multipliers go round each other, ever wider, where nothing damps
them: give ``PolicyGradient`` an ``entropy`` or ``kl``, or keep ``rate`` small.

Reference: "Confronting Reward Model Overoptimization with Constrained RLHF" (arXiv 2310.04373), and its code
tedmoskovitz/ConstrainedRL4LMs, whose clipping of the gradient of z is left out. Legend: N sequences, T tokens of the
longest, K further rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.errors import closest
from recsys.hooks import bind
from recsys.llm.trainers.credit.groups import GroupRelative, over_tokens
from recsys.llm.trainers.protocols import Credit
from recsys.llm.trainers.sequences import Sequences
from recsys.protocols import Context

KINDS = ("at least", "equal")
BOUND = 0.99  # a multiplier from here on is told as one at its bound


class Constrained(nn.Module):
    """Credit of a first reward and, as long as they are short of their thresholds, of others.

    Use when lists are to be relevant, and varied or novel or fair enough. All that is learned here are K numbers, saved
    with the weights.

    Args:
        primary: the credit of the first reward.
        others: names of the columns of ``Sequences.rewards``, in their order.
        thresholds: what the mean of each is to reach, in its own unit.
        kind: "at least" these thresholds, or "equal" to them.
        rate, momentum: of the multipliers, per batch.
        memory: how much of the running mean each batch keeps; 0 looks at the batch alone.

    Raises:
        ValueError: another kind, not one threshold for each name, or a number out of range.
    """

    z: Tensor  # (K,)
    velocity: Tensor  # (K,)
    averages: Tensor  # (K,) running means, weighted so that the first batches count in full
    seen: Tensor  # () how many batches

    def __init__(
        self,
        primary: Credit,
        others: Sequence[str],
        thresholds: Sequence[float],
        kind: str = "at least",
        rate: float = 0.01,
        momentum: float = 0.1,
        memory: float = 0.9,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, found {kind!r}: {closest(kind, KINDS)}")
        if len(others) != len(thresholds) or len(set(others)) != len(others):
            raise ValueError(f"each of the others has one threshold; found {list(others)} and {list(thresholds)}")
        if rate <= 0 or not 0 <= momentum < 1 or not 0 <= memory < 1:
            raise ValueError(
                f"rate is above 0, momentum and memory from 0 to below 1; found {rate}, {momentum} and {memory}"
            )
        self.primary, self.others, self.thresholds, self.kind = primary, list(others), list(thresholds), kind
        self.rate, self.momentum, self.memory = rate, momentum, memory
        self.reads: frozenset[str] = primary.reads | (frozenset({"rewards"}) if self.others else frozenset())
        for name in ("z", "velocity", "averages"):
            self.register_buffer(name, torch.zeros(len(self.others)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._each = [GroupRelative()]  # in a list: it has nothing of its own to save

    def bind(self, context: Context) -> None:
        """Begin anew."""
        bind(self.primary, context)
        for value in (self.z, self.velocity, self.averages, self.seen):
            value.zero_()

    @property
    def multipliers(self) -> Tensor:
        """(K,) mu, how much each further reward counts now."""
        return self.z.sigmoid() if self.kind == "at least" else self.z.tanh()

    def forward(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False.

        Raises:
            ValueError: the batch has no further rewards, or not as many columns as there are names.
        """
        found = self.primary(batch)
        if not self.others:
            return found
        each = [self._each[0].of(column, batch.group) for column in self._rewards(batch).unbind(1)]
        return found + over_tokens((torch.stack(each, 1) * self.multipliers).sum(1), batch)

    @torch.no_grad()
    def observe(self, batch: Sequences) -> None:
        """Move the multipliers by the rewards of a batch in training, once for each; the policy has no part in it.

        The batch has the sequences that count alone, as ``PolicyGradient`` hands them on.
        """
        if hasattr(self.primary, "observe"):
            self.primary.observe(batch)
        if not self.others or not len(batch):
            return
        self.seen.add_(1)
        fresh = (1 - self.memory) / (1 - self.memory ** int(self.seen))
        self.averages.add_(fresh * (self._rewards(batch).mean(0) - self.averages))
        squashed = self.multipliers
        slope = squashed * (1 - squashed) if self.kind == "at least" else 1 - squashed.square()
        over = self.averages - self.averages.new_tensor(self.thresholds)
        self.velocity.mul_(self.momentum).add_(over * slope)
        self.z.sub_(self.rate * self.velocity)

    def _rewards(self, batch: Sequences) -> Tensor:
        """(N, K) further rewards."""
        if batch.rewards is None or batch.rewards.shape[1] != len(self.others):
            found = "none" if batch.rewards is None else str(batch.rewards.shape[1])
            raise ValueError(
                f"Constrained reads a column of rewards for each of {', '.join(self.others)}; the batch has {found}"
            )
        return batch.rewards

    def figures(self, batch: Sequences) -> dict[str, float]:
        """The mean of each further reward, its multiplier, and whether that is at its bound."""
        told = dict[str, float]()
        if hasattr(self.primary, "figures"):
            told |= self.primary.figures(batch)
        counted = batch.weights > 0
        for number, name in enumerate(self.others):
            multiplier = float(self.multipliers[number])
            told |= {
                f"reward {name}": float(self._rewards(batch)[counted, number].sum()),
                f"reward {name} of": float(counted.sum()),
                f"multiplier {name}": multiplier,
                f"multiplier {name} of": 1.0,
                f"multiplier {name} at its bound": float(abs(multiplier) >= BOUND),
                f"multiplier {name} at its bound of": 1.0,
            }
        return told
