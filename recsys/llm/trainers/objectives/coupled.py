"""Coupled estimation (CET) of sequences: negatives that may be unlabelled positives count less, by a second scorer.

f is the policy, whose score of a completion is its log-probability; h, the selector, says how likely the completion was
shown at all. For pairs of a POSITIVE p and a NEGATIVE q in a group,

    L_f = mean w(h(q)) softplus(f(q) - f(p))
    L_h = mean w(f(q)) softplus(h(q) - h(p)),   w(s) = 1 / (1 - sigmoid(s / tau))

and no gradient goes through weights. Source, reading and the weights themselves: :mod:`recsys.objectives.coupled`,
which does this for item scores.

Log-probabilities are negative, so weights from a policy lie between 1 and 2: the selector hears less of f than it would
of scores that can be large. Give the selector what f does not read (how often an item was shown, its rank, its age):
with the same inputs the two mirror each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import pairs
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean
from recsys.objectives.coupled import coupled_weights


class Coupled(nn.Module):
    """Two scorers of pairs that weigh each other's negatives. A pair counts by the product of its sequences' weights.

    Args:
        selector: h, from the batch to (N,) scores with gradient, or to the same sequences under another policy. If it
            is a module its parameters are this objective's; if it has ``reads``, those fields are read too.
        tau: temperature of the weights; large values make all of them 2.
        cap: largest weight.
        normalised: divide weights by their mean over the batch, so that the scale of the losses stays.
        weight: of L_h.

    Use when: negatives are what a strong retriever found and nobody judged. Prefer instead: DPO for judged ones.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        selector: Callable[[Sequences], Tensor | Sequences],
        tau: float = 10.0,
        cap: float = 10.0,
        normalised: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not tau > 0 or not cap >= 1 or not weight >= 0:
            raise ValueError(f"tau > 0, cap >= 1 and weight >= 0 are needed, found {tau}, {cap} and {weight}")
        self.selector, self.tau, self.cap, self.normalised, self.weight = selector, tau, cap, normalised, weight
        self.reads: frozenset[str] = getattr(selector, "reads", frozenset())

    def forward(self, batch: Sequences) -> dict[str, Tensor]:
        """L_f as ``policy`` and ``weight`` times L_h as ``selector``.

        Raises:
            ValueError: a role is missing, no group has both, or the selector answers for another number of sequences.
        """
        found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, "Coupled")
        told = self.selector(batch)
        mine, theirs = batch.totals, told.totals if isinstance(told, Sequences) else told
        if theirs.shape != mine.shape:
            raise ValueError(
                f"the selector gives a score per sequence, {tuple(mine.shape)}; found {tuple(theirs.shape)}"
            )

        def loss(scores: Tensor, others: Tensor) -> Tensor:
            apart = F.softplus(scores[found.worse] - scores[found.better])
            weights = coupled_weights(others[found.worse], self.tau, self.cap, self.normalised)
            return weighted_mean(weights * apart, found.weights)

        return {"policy": loss(mine, theirs), "selector": self.weight * loss(theirs, mine)}
