"""Bayesian personalised ranking: the target above each sampled item (Rendle et al. 2009, arXiv 1205.2618).

loss_t = mean_k softplus(s_k - s_target).

Under inverse propensities this is the unbiased pairwise loss in its non-negative form (Saito, ICTIR 2020, "Unbiased
pairwise learning from biased implicit feedback"): a pair weighs w_i (1 - y_j w_j), clipped at 0. w_i is the target's
weight, by which every loss is multiplied; as weights are at least 1, the bracket is 0 for an item that was clicked and
1 for one that was not, so the clipped form is to draw no item of the history (the default here).

Use when: comparing with matrix factorisation. Prefer instead: a softmax.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import Scored, scored
from recsys.protocols import Encoded, ItemTable


class BPR(nn.Module):
    """The target against sampled items, pair by pair.

    Args:
        negatives: where they come from (default: one per position, uniform, outside the history).
    """

    def __init__(self, negatives: UniformNegatives | InBatchNegatives | None = None) -> None:
        super().__init__()
        default = UniformNegatives(1, per="position", exclude_history=True)
        self.negatives = default if negatives is None else negatives

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss."""
        return self.of_scores(scored(encoded, batch, items, self.negatives, generator), items.num_items).sum()

    def of_scores(self, found: Scored, num_items: int) -> Tensor:
        """(T,) losses times the weights of their targets; a pair of weight w counts w times."""
        return found.weighted(pairwise(found.positive, found.negative, found.weights))


def pairwise(positive: Tensor, negative: Tensor, weights: Tensor | None = None) -> Tensor:
    """(T,) mean over the samples (T, K) that count of (weight times) softplus(negative - positive (T,))."""
    counted = negative > -torch.inf
    losses = F.softplus((negative - positive[:, None]).masked_fill(~counted, -torch.inf))
    losses = losses if weights is None else losses * weights
    return losses.sum(1) / counted.sum(1).clamp(min=1)
