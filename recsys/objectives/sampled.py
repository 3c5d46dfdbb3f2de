"""Sampled softmax: cross-entropy over the target and K sampled items (SASRec+ K, eSASRec).

loss_t = log( exp s_target + sum_k exp s_k ) - s_target, the sampled items being uniform and not corrected (no logQ),
as in Klenitskiy & Vasilev 2023 (arXiv 2309.07602, K shared by a user's positions) and eSASRec (arXiv 2508.06450, K per
position, 256). Items that hit the target are left out of the sum.

Use when: the catalogue is too large for :class:`recsys.objectives.softmax.FullSoftmax`. Prefer negatives shared by the
batch (``per="batch"``): they cost one matrix product; K per position gathers (K + 1) D numbers per token, more than
the full softmax below about (K + 1) D items. Pure in-batch negatives collapsed in the eSASRec study.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.data.negatives import InBatchNegatives, UniformNegatives
from recsys.nn.scoring import score_ids, score_targets
from recsys.seams import Encoded, ItemTable


class SampledSoftmax(nn.Module):
    """Cross-entropy over the target and sampled items.

    Args:
        negatives: where the items come from (default: 256 uniform ones, shared by the batch).
        temperature: divides the scores.
    """

    def __init__(self, negatives: UniformNegatives | InBatchNegatives | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.negatives = UniformNegatives(256, per="batch") if negatives is None else negatives
        self.temperature = temperature

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """(T,) losses."""
        hidden, targets, _ = encoded.at_targets(batch)
        positive, negative = positive_and_negative(hidden, targets, batch, items, self.negatives, generator)
        scores = torch.cat([positive[:, None], negative], 1) / self.temperature
        return torch.logsumexp(scores, 1) - scores[:, 0]


def positive_and_negative(
    hidden: Tensor,
    targets: Tensor,
    batch: Batch,
    items: ItemTable,
    negatives: UniformNegatives | InBatchNegatives,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Scores of the targets (T,) and of sampled items (T, K), fp32, -inf where a sample must not count."""
    drawn = negatives.sample(batch, targets, items.num_items, generator)
    ids, mask = drawn.for_targets()
    negative = score_ids(hidden, items, ids).float().masked_fill(mask, -torch.inf)
    return score_targets(hidden, items, targets).float(), negative


def softplus_sum(negative: Tensor) -> Tensor:
    """(T,) sum over the sampled items of softplus(score); 0 for those that must not count."""
    return F.softplus(negative).sum(1)
