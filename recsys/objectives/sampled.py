"""Sampled softmax: cross-entropy over the target and K sampled items (SASRec+ K, eSASRec).

loss_t = log( exp s_target + sum_k exp s_k ) - s_target, the sampled items being uniform and not corrected (no logQ),
as in Klenitskiy & Vasilev 2023 (arXiv 2309.07602, K shared by a user's positions) and eSASRec (arXiv 2508.06450, K per
position, 256). Items that hit the target are left out of the sum.

Use when: the catalogue is too large for :class:`recsys.objectives.softmax.FullSoftmax`. Prefer negatives shared by the
batch (``per="batch"``): they cost one matrix product; K per position gathers (K + 1) D numbers per token, more than
the full softmax below about (K + 1) D items. Pure in-batch negatives collapsed in the eSASRec study.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.negatives import Negatives
from recsys.negatives.uniform import UniformNegatives
from recsys.nn.scoring import score_ids, score_targets
from recsys.objectives.weighted import weighted
from recsys.protocols import Encoded, ItemTable


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
        """The sum over the targets of weight times loss."""
        return self.of_scores(scored(encoded, batch, items, self.negatives, generator), items.num_items).sum()

    def of_scores(self, found: Scored, num_items: int) -> Tensor:
        """(T,) losses times the weights of their targets; a sampled item of weight w stands in the sum w times."""
        scores = torch.cat([found.positive[:, None], found.negative], 1) / self.temperature
        if found.weights is not None:
            scores = scores + F.pad(found.weights.log(), (1, 0))
        return found.weighted(torch.logsumexp(scores, 1) - scores[:, 0])


@dataclass(frozen=True)
class Scored:
    """Scores of the targets and of what was sampled for them: all that a sampled objective is a function of."""

    positive: Tensor  # (T,) float32
    negative: Tensor  # (T, K) float32, -inf where a sample must not count
    weights: Tensor | None = None  # (T, K) how much each sample counts (1 where None)
    importance: Tensor | None = None  # (T,) of the targets, as in the batch (1 where None)
    target_weights: Tensor | None = None  # (T,) their other weights, which the loss is divided by (1 where None)

    def weighted(self, losses: Tensor) -> Tensor:
        """Losses (T,) times the weights of their targets."""
        weights, importance = self.target_weights, self.importance
        if weights is None or importance is None:
            return weighted(losses, importance if weights is None else weights)
        return weighted(losses, weights * importance)


def scored(
    encoded: Encoded,
    batch: Batch,
    items: ItemTable,
    negatives: UniformNegatives | InBatchNegatives,
    generator: torch.Generator,
) -> Scored:
    """The targets of the batch and fresh negatives, scored."""
    hidden, targets, _ = encoded.at_targets(batch)
    return score_drawn(hidden, targets, batch, items, negatives.sample(batch, targets, items.num_items, generator))


def score_drawn(hidden: Tensor, targets: Tensor, batch: Batch, items: ItemTable, drawn: Negatives) -> Scored:
    """The targets (T,) and the items ``drawn`` for them, scored with the states ``hidden`` (T, D)."""
    ids, mask = drawn.for_targets()
    negative = score_ids(hidden, items, ids).float().masked_fill(mask, -torch.inf)
    positive = score_targets(hidden, items, targets).float()
    return Scored(positive, negative, drawn.weights, _at_targets(batch, "importance"), _at_targets(batch, "weights"))


def _at_targets(batch: Batch, name: str) -> Tensor | None:
    """The field ``name`` (B, L) of the batch at its targets (T,), None if there is none."""
    values = getattr(batch, name)
    assert batch.targets is not None
    return None if values is None else batch.flatten(values)[batch.flatten(batch.targets) > 0]


def softplus_sum(negative: Tensor, weights: Tensor | None = None) -> Tensor:
    """(T,) sum over the sampled items of (weight times) softplus(score); 0 for those that must not count."""
    losses = F.softplus(negative)
    return (losses if weights is None else losses * weights).sum(1)
