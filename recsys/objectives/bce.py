"""Binary cross-entropy with sampled negatives, the original SASRec loss.

loss_t = softplus(-s_target) + sum_k softplus(s_k), with one uniform negative outside the history by default
(Kang & McAuley 2018; the two terms are summed, as in the authors' code, not averaged over 1 + K logits).

Use when: reproducing old tables. Prefer instead: the full or the sampled softmax, or gBCE; BCE with one negative is
overconfident and clearly worse (Klenitskiy & Vasilev 2023; Petrov & Macdonald 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.negatives import InBatchNegatives, UniformNegatives
from recsys.objectives.sampled import positive_and_negative, softplus_sum
from recsys.seams import Encoded, ItemTable


class BCE(nn.Module):
    """Binary cross-entropy of the target against sampled items.

    Args:
        negatives: where they come from (default: one per position, uniform, outside the history).
        mean: average over the 1 + K logits instead of summing (gSASRec's and TD's reduction).
    """

    def __init__(self, negatives: UniformNegatives | InBatchNegatives | None = None, mean: bool = False) -> None:
        super().__init__()
        default = UniformNegatives(1, per="position", exclude_history=True)
        self.negatives = default if negatives is None else negatives
        self.mean = mean

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """(T,) losses."""
        hidden, targets, _ = encoded.at_targets(batch)
        positive, negative = positive_and_negative(hidden, targets, batch, items, self.negatives, generator)
        losses = F.softplus(-positive) + softplus_sum(negative)
        return losses / (1 + negative.shape[1]) if self.mean else losses
