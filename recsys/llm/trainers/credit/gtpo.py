"""Credit that spares what good and bad samples have in common: a miss with the right first code keeps that code (GTPO).

    base A_n = r_n - mean of the group
    A_nt     = delta_n (A_n - penalty * H_n) lambda_nt,  H_n the mean entropy of the tokens of n

A token is in conflict if it stands at the same position in a sample with A > 0 and in one with A < 0 of its group, and
so does every token before it. There lambda is ``factor`` for samples with A > 0 and 0 for those with A < 0; elsewhere
it is 1. ``backward`` does the same from the end, and the two multiply (so 4 is possible, as in the published code).
delta is 0 for a sample whose H_n is above ``threshold`` although the policy began below it.

The published loss takes the mean over samples of their means over tokens:
``PolicyGradient(GTPO(), normalise="sequences")``, without a reference.

We follow the formula, not the published code where they differ: the code filters at 0.7 whatever the beginning
(``always=True, threshold=0.7``), and divides by the number of conflict tokens, which is not offered. ln 2 is meant for
texts that are nearly certain; a code among 256 has up to 5.5 nats, and ``always`` would silence everything.

Reference: GTPO, "Stabilizing Group Relative Policy Optimization via Gradient and Entropy Control", and its code
winstonsmith1897/GTPO. Legend: N sequences, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recsys.llm.trainers.credit.groups import centred, numbered, reward_of
from recsys.llm.trainers.sequences import Sequences, summed
from recsys.protocols import Change, Context


class GTPO(nn.Module):
    """GRPO's credit without division, apart from shared beginnings, and less for uncertain samples.

    Use when samples of a group share prefixes, as codes of items do.

    Args:
        factor: for conflict tokens of samples better than their group.
        penalty: of each nat of a sample's mean entropy.
        threshold: the mean entropy above which a sample counts nothing; None: there is none.
        always: whatever the policy began with; else only if that was below the threshold.
        initial: its mean entropy when it began; None: that of the first batch in training, kept with the weights.
        backward: conflicts from the end as well. Off for codes, all of which end in the same token.

    Raises:
        ValueError: a number below 0.
    """

    reads = frozenset({"reward", "entropy", "tokens"})
    carried = ("began",)
    began: Tensor  # mean entropy of the first batch; not finite before

    def __init__(
        self,
        factor: float = 2.0,
        penalty: float = 0.1,
        threshold: float | None = math.log(2),
        always: bool = False,
        initial: float | None = None,
        backward: bool = False,
    ) -> None:
        super().__init__()
        if min(factor, penalty, threshold or 0.0, initial or 0.0) < 0:
            raise ValueError(
                "factor, penalty, threshold and initial are at least 0; found "
                f"{factor}, {penalty}, {threshold} and {initial}"
            )
        self.factor, self.penalty, self.threshold, self.always = factor, penalty, threshold, always
        self.initial, self.backward = initial, backward
        self.register_buffer("began", torch.tensor(math.nan if initial is None else initial))

    def bind(self, context: Context) -> None:
        """Forget an earlier beginning."""
        self.began.fill_(math.nan if self.initial is None else self.initial)

    def carry(self, before: Mapping[str, Tensor], change: Change) -> None:
        """Nothing: another training has another beginning."""
        self.began.fill_(math.nan if self.initial is None else self.initial)

    def forward(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False.

        Raises:
            ValueError: the batch lacks rewards, tokens or entropy.
        """
        uncertain = _entropy(batch)
        base = centred(reward_of(batch, type(self).__name__), batch.group)
        credit = (base - self.penalty * uncertain) * self.kept(batch)
        return credit.to(batch.log_probs.dtype)[:, None] * self.factors(batch) * batch.mask

    def observe(self, batch: Sequences) -> None:
        """Keep the mean entropy of the first batch."""
        if not bool(self.began.isfinite()) and len(batch):
            self.began.copy_(_overall(batch))

    def kept(self, batch: Sequences) -> Tensor:
        """(N,) bool: delta, the samples that are not too uncertain to count."""
        uncertain = _entropy(batch)
        if self.threshold is None:
            return torch.ones_like(uncertain, dtype=torch.bool)
        began = torch.where(self.began.isfinite(), self.began, _overall(batch))
        return (uncertain <= self.threshold) | ((began >= self.threshold) & (not self.always))

    def factors(self, batch: Sequences) -> Tensor:
        """(N, T) lambda: what the credit of each token is multiplied by.

        Raises:
            ValueError: the batch has no tokens.
        """
        if batch.tokens is None:
            raise ValueError("GTPO compares the tokens of a group, and the batch has none")
        base = centred(reward_of(batch, type(self).__name__), batch.group)
        at = batch.mask.cumsum(1)  # (N, T) positions from 1, from the left
        found = self._factors(batch, base, at)
        if self.backward:
            found = found * self._factors(batch, base, at[:, -1:] + 1 - at)
        return found

    def _factors(self, batch: Sequences, base: Tensor, at: Tensor) -> Tensor:
        """(N, T) lambda by tokens at the same positions ``at`` (N, T) from 1, counted from the side that it is from."""
        conflict = _conflicts(batch, base, at)
        # A run ends before the first position without a conflict.
        first = torch.where(batch.mask & ~conflict, at, at.shape[1] + 1).amin(1, keepdim=True)
        value = torch.where(base > 0, self.factor, 0.0).to(batch.log_probs.dtype)
        return torch.where(batch.mask & (at < first) & (base != 0)[:, None], value[:, None], 1.0)

    def figures(self, batch: Sequences) -> dict[str, float]:
        """Tokens whose credit is spared or raised, and samples that are too uncertain."""
        counted = (batch.weights > 0)[:, None] & batch.mask
        return {
            "conflict tokens": float(((self.factors(batch) != 1) & counted).sum()),
            "conflict tokens of": float(counted.sum()),
            "filtered samples": float((~self.kept(batch) & (batch.weights > 0)).sum()),
            "filtered samples of": float((batch.weights > 0).sum()),
        }


def _conflicts(batch: Sequences, base: Tensor, at: Tensor) -> Tensor:
    """(N, T) bool: the token stands at this position in samples of its group with ``base`` (N,) above and below 0."""
    assert batch.tokens is not None
    own, _ = numbered(batch.group)
    taking = batch.mask & (base != 0)[:, None]
    tokens, names = batch.tokens[taking].unique(return_inverse=True)
    key = (own[:, None].expand_as(at)[taking] * (at.shape[1] + 1) + at[taking]) * len(tokens) + names
    keys, number = key.unique(return_inverse=True)
    good = (base > 0)[:, None].expand_as(at)[taking]
    both = torch.zeros(2, len(keys), dtype=torch.bool, device=at.device)
    both[good.long(), number] = True
    found = torch.zeros_like(batch.mask)
    found[taking] = both.all(0)[number]
    return found


def _entropy(batch: Sequences) -> Tensor:
    """(N,) mean entropy of the tokens of each sequence.

    Raises:
        ValueError: the batch has none.
    """
    if batch.entropy is None:
        raise ValueError("GTPO needs the entropy at each token, over what is allowed there, and the batch has none")
    return summed(batch.entropy.detach(), batch.mask) / batch.mask.sum(1)


def _overall(batch: Sequences) -> Tensor:
    """() mean entropy of all tokens of the batch."""
    assert batch.entropy is not None
    return summed(batch.entropy.detach(), batch.mask).sum() / batch.mask.sum().clamp(min=1)
