"""Pairwise preferences against a reference: DPO, and R3M, which does not believe every pair.

With D_n = log pi(y_n | x) - log pi_ref(y_n | x) and d = beta (D_better - D_worse) of each pair of a group,

    DPO   L = -log sigmoid(d)
    R3M   L = min over delta >= 0 of -log sigmoid(d + delta) + trust * delta

delta is how much a pair looks flipped (a wrong click, somebody else at the screen). It is found in closed form,
delta = max(log(1/trust - 1) - d, 0), and put in gives a loss without a number kept per pair: with c = log(1/trust - 1),

    L = -log sigmoid(d) where d >= c,   -log(1 - trust) + trust (c - d) below

whose slope is min(sigmoid(-d), trust) downwards: a logistic loss with a straight tail. The mean is over pairs.

Sources: DPO, arXiv 2305.18290 (its sigmoid loss, as in trl); R3M, "Robust reinforcement learning from corrupted human
feedback" (equations 3.1 to 3.5; ``trust`` is its lambda, 0.65 to 0.85 there). The form without delta is derived.
Legend: N sequences, P pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import Pairs, pairs
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean


class DPO(nn.Module):
    """Each POSITIVE sequence above each NEGATIVE one of its group, by more than the reference has it.

    A pair counts by the product of its sequences' weights.

    Args:
        beta: how far the policy may go from the reference; smaller is farther.

    Use when: pairs can be trusted. Prefer instead: R3M where some are flipped, AFT without a reference.

    Raises:
        ValueError: beta is not positive.
    """

    reads: frozenset[str] = frozenset({"reference"})

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta > 0 is needed, found {beta}")
        self.beta = beta

    def forward(self, batch: Sequences) -> Tensor:
        """The scalar loss.

        Raises:
            ValueError: a role is missing, no group has both, or there is no reference.
        """
        found, margins = compared(batch, self.beta, "DPO")
        return weighted_mean(-F.logsigmoid(margins), found.weights)

    @torch.no_grad()
    def figures(self, batch: Sequences) -> dict[str, float]:
        """How many pairs the policy has farther in their order than the reference has."""
        _, margins = compared(batch, self.beta, "DPO")
        return {"pairs in order": float((margins > 0).sum()), "pairs in order of": float(len(margins))}


class R3M(nn.Module):
    """DPO in which a pair that contradicts all others too much pulls no harder than ``trust``, and can be told.

    Args:
        beta: as in DPO.
        trust: hardest pull of a pair, between 0 and 1. Near 1 it is DPO; a pair is suspect where d is below
            log(1/trust - 1), so above 0.5 none is at the start, where all d are 0, and at 0.5 or less every pair that
            is undecided already is.

    Use when: clicks are noisy. Prefer instead: DPO for judgements that somebody checked.

    Raises:
        ValueError: a number out of range.
    """

    reads: frozenset[str] = frozenset({"reference"})

    def __init__(self, beta: float = 0.1, trust: float = 0.75) -> None:
        super().__init__()
        if not beta > 0 or not 0 < trust < 1:
            raise ValueError(f"beta > 0 and 0 < trust < 1 are needed, found {beta} and {trust}")
        self.beta, self.trust = beta, trust

    def forward(self, batch: Sequences) -> Tensor:
        """The scalar loss.

        Raises:
            ValueError: a role is missing, no group has both, or there is no reference.
        """
        found, margins = compared(batch, self.beta, "R3M")
        straight = self.trust * (self._least - margins) - math.log1p(-self.trust)
        return weighted_mean(torch.where(margins >= self._least, -F.logsigmoid(margins), straight), found.weights)

    @torch.no_grad()
    def deltas(self, batch: Sequences) -> tuple[Pairs, Tensor]:
        """The pairs, by their rows in the batch, and (P,) how much each looks flipped; 0: not suspect."""
        found, margins = compared(batch, self.beta, "R3M")
        return found, (self._least - margins).clamp(min=0)

    def figures(self, batch: Sequences) -> dict[str, float]:
        """How many pairs are suspect; where their share rises, the reference may be out of date."""
        _, deltas = self.deltas(batch)
        return {"suspect pairs": float((deltas > 0).sum()), "suspect pairs of": float(len(deltas))}

    @property
    def _least(self) -> float:
        """Below this a pair is suspect."""
        return math.log(1 / self.trust - 1)


def compared(batch: Sequences, beta: float, asked: str) -> tuple[Pairs, Tensor]:
    """The pairs of POSITIVE and NEGATIVE in a group, and their d (P,)."""
    found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, asked)
    gains = batch.gains
    return found, beta * (gains[found.better] - gains[found.worse])
