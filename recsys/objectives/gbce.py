"""Generalised binary cross-entropy, gBCE (Petrov & Macdonald 2023, gSASRec, arXiv 2308.07192).

loss_t = ( beta softplus(-s_target) + sum_k softplus(s_k) ) / (K + 1), beta = 1 - t (1 - alpha), alpha = K / (N - 1).

That is the paper's -1/(K + 1) [ log sigma(s_target)^beta + sum log(1 - sigma(s_k)) ] and its
beta = alpha (t (1 - 1/alpha) + 1/alpha), simplified: stable in fp32, where the authors transform logits in float64.
t = 0 is BCE; t = 1 gives calibrated probabilities.

What we do differently from the authors' code (asash/gSASRec-pytorch), which agrees to rounding otherwise: theirs scores
an output table of its own by default, here ``IdItems(dim, scale=False, init="torch", tied=False)``; a negative of
theirs is the target once in N draws (a share of .0195 at N = 50), of ours never; and they clamp the target's
probability at 1e-10, so that below a score of -23 its loss is 23 beta and has no gradient, where ours goes on (40 beta
at -40).

Use when: many negatives per position are affordable and the catalogue is too large for a softmax. Prefer instead: the
full softmax where it fits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.negatives.in_batch import InBatchNegatives
from recsys.negatives.uniform import UniformNegatives
from recsys.objectives.sampled import Scored, scored, softplus_sum
from recsys.protocols import Encoded, ItemTable


class GBCE(nn.Module):
    """gBCE of the target against sampled items.

    Args:
        t: calibration, 0 (BCE) to 1 (calibrated).
        negatives: where they come from (default: 256 per position, uniform over the catalogue).
    """

    def __init__(self, t: float = 0.75, negatives: UniformNegatives | InBatchNegatives | None = None) -> None:
        super().__init__()
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t must lie between 0 (BCE) and 1 (calibrated), found {t}")
        self.t = t
        self.negatives = UniformNegatives(256, per="position") if negatives is None else negatives

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss."""
        return self.of_scores(scored(encoded, batch, items, self.negatives, generator), items.num_items).sum()

    def of_scores(self, found: Scored, num_items: int) -> Tensor:
        """(T,) losses times the weights of their targets; a sampled item of weight w counts w times."""
        count = found.negative.shape[1]
        positive = beta(self.t, count, num_items) * F.softplus(-found.positive)
        return found.weighted((positive + softplus_sum(found.negative, found.weights)) / (count + 1))


def beta(t: float, count: int, num_items: int) -> float:
    """The power of the positive's probability: 1 - t (1 - alpha), alpha = ``count`` / (``num_items`` - 1)."""
    alpha = min(count / max(num_items - 1, 1), 1.0)
    return 1.0 - t * (1.0 - alpha)
