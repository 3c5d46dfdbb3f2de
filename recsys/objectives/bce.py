"""Binary cross-entropy with sampled negatives, the original SASRec loss.

loss_t = softplus(-s_target) + sum_k softplus(s_k), with one uniform negative outside the history by default
(Kang & McAuley 2018; the two terms are summed, as in the authors' code, not averaged over 1 + K logits).

Under a weighting that is not normalised (``InversePropensity(..., normalised=False)``) a target of weight w gives
(Saito et al. 2020, arXiv 1909.03601; d1 = softplus(-s_target), d0 = softplus(s_target), n = the negatives' sum)

- "positive": w d1 + n, the default: stable, and the larger w is the more the target is pulled up;
- "exact": w d1 + (1 - w) d0 + n: with ``scale`` = unlabelled items per sampled one, the unbiased estimate of the
  pointwise loss over all items. The middle term is negative for w > 1, so scores count only up to ``LARGEST`` here;
- "all": w (d1 + n), what every other objective does.

A target of weight 0 is left out: it gives 0 under each of the three. Inverse propensities are never below 1.

Use when: reproducing old tables. Prefer instead: the full or the sampled softmax, or gBCE; BCE with one negative is
overconfident and clearly worse (Klenitskiy & Vasilev 2023; Petrov & Macdonald 2023).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import Scored, scored, softplus_sum
from recsys.objectives.weighted import weighted
from recsys.protocols import Encoded, ItemTable

IMPORTANCE = ("positive", "exact", "all")
LARGEST = 15.0  # a score beyond it, either way, has no gradient under importance="exact"


class BCE(nn.Module):
    """Binary cross-entropy of the target against sampled items.

    Args:
        negatives: where they come from (default: one per position, uniform, outside the history).
        mean: average over the 1 + K logits instead of summing (gSASRec's and TD's reduction).
        importance: what weights that are not normalised multiply; see the top of this file.
        scale: of the negatives' sum.

    Raises:
        ValueError: an unknown ``importance``, or a ``scale`` that is not positive.
    """

    def __init__(
        self,
        negatives: UniformNegatives | InBatchNegatives | None = None,
        mean: bool = False,
        importance: str = "positive",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if importance not in IMPORTANCE or not scale > 0:
            raise ValueError(
                f"importance is one of {', '.join(IMPORTANCE)} and scale positive; found {importance!r}, {scale}"
            )
        default = UniformNegatives(1, per="position", exclude_history=True)
        self.negatives = default if negatives is None else negatives
        self.mean, self.importance, self.scale = mean, importance, scale

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss."""
        return self.of_scores(scored(encoded, batch, items, self.negatives, generator), items.num_items).sum()

    def of_scores(self, found: Scored, num_items: int) -> Tensor:
        """(T,) losses times the weights of their targets; a sampled item of weight w counts w times."""
        negative = softplus_sum(found.negative, found.weights)
        negative = negative if self.scale == 1.0 else negative * self.scale
        if found.importance is None or self.importance == "all":
            losses = F.softplus(-found.positive) + negative
        else:
            losses = self._important(found.positive, negative, found.importance)
            found = replace(found, importance=None)
        return found.weighted(losses / (1 + found.negative.shape[1]) if self.mean else losses)

    def _important(self, positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
        """(T,) losses of targets with the importance ``weight`` (T,), 0 where that is 0."""
        negative = negative.masked_fill(weight == 0, 0.0)
        if self.importance == "positive":
            return weighted(F.softplus(-positive), weight) + negative
        positive = positive.clamp(-LARGEST, LARGEST)
        other = (F.softplus(positive) * (1 - weight)).masked_fill(weight == 0, 0.0)
        return weighted(F.softplus(-positive), weight) + other + negative
