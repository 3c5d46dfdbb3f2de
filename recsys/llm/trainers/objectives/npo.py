"""Negative preference optimization (NPO): sequences become improbable, and the less they are the weaker the push.

With D_n = log pi(y_n | x_n) - log pi_ref(y_n | x_n), summed over the tokens,

    L_forget = (2 / beta) mean_n softplus(beta D_n),   its gradient is that of mean_n W_n log pi(y_n | x_n),

with W_n = 2 sigmoid(beta D_n) held constant. W is 1 at the reference and goes to 0, where gradient ascent (W = 1 for
ever; the limit of beta to 0) destroys the model. Beside it, what is to stay: the mean negative log-likelihood of RETAIN
tokens, or the mean over their positions of KL(pi_ref || pi), which keeps the whole distribution.

Source: "Negative preference optimization: from catastrophic collapse to effective unlearning" (arXiv 2404.05868), and
its released code, where sums over padding in the KL term are masked here.

A completion that is forgotten by the weights is known again if its history is given back: prompts, caches and indexes
have to be cleared as well. Judge by a model trained without the forgotten, not by zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import rows_of
from recsys.llm.trainers.objectives.retain import retained
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean


class NPO(nn.Module):
    """FORGET sequences become improbable; RETAIN sequences stay as they are.

    Args:
        beta: how soon a sequence that has become improbable stops counting.
        forget, retain, kl: weights of the three terms; a term of weight 0 is not computed and needs nothing.
        normalise: D per token, so that beta means the same for texts of any length. Ours: another method than the
            paper's, of which the sum over a long text saturates at once.

    Use when: a user or an item has to be forgotten. Prefer instead: training anew without it, where that can be paid.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, beta: float = 0.1, forget: float = 1.0, retain: float = 1.0, kl: float = 0.0, normalise: bool = False
    ) -> None:
        super().__init__()
        if not beta > 0 or not forget > 0 or not retain >= 0 or not kl >= 0:
            raise ValueError(
                f"beta > 0, forget > 0, retain >= 0 and kl >= 0 are needed, found {beta}, {forget}, {retain} and {kl}"
            )
        self.beta, self.forget, self.retain, self.kl, self.normalise = beta, forget, retain, kl, normalise
        self.reads = frozenset({"reference", "divergence"} if kl else {"reference"})

    def forward(self, batch: Sequences) -> dict[str, Tensor]:
        """The terms by name, times their weights: forget, and retain and kl where they weigh something.

        Raises:
            ValueError: a role is missing, there is no reference, or kl has no divergence to read.
        """
        rows = rows_of(batch, Role.FORGET, "NPO")
        losses = 2 / self.beta * F.softplus(self.beta * self._gains(batch)[rows])
        terms = {"forget": self.forget * weighted_mean(losses, batch.weights[rows])}
        return terms | retained(batch, self.retain, self.kl, "NPO")

    @torch.no_grad()
    def figures(self, batch: Sequences) -> dict[str, float]:
        """The sum of W over what is forgotten: 1 for each at the reference, near 0 when nothing more is to be done."""
        rows = rows_of(batch, Role.FORGET, "NPO")
        weights = 2 * torch.sigmoid(self.beta * self._gains(batch)[rows])
        return {"forget weight": float(weights.sum()), "forget weight of": float(len(rows))}

    def _gains(self, batch: Sequences) -> Tensor:
        """(N,) D of each sequence."""
        return batch.gains / batch.mask.sum(1) if self.normalise else batch.gains
