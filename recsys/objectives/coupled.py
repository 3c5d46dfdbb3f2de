"""Coupled estimation (CET): sampled items that may be unlabelled positives count less, by a model of exposure.

Two scorers correct each other: the ranker f, and h, which says how likely an item was shown. For a target p and
sampled items q, with weights that carry no gradient,

    w_f = 1 / (1 - sigmoid(h(q) / tau)) = 1 + exp(h(q) / tau),   L_f = the sampled loss of f, q counting w_f times,
    w_h = 1 + exp(f(q) / tau),                                   L_h = mean_q w_h softplus(h(q) - h(p)).

A negative that was probably seen and not chosen is reliable, so f hears more of it; one that looks relevant was
probably not seen, so h does. Only f is used for ranking. Source: caiyinqiong/Coupled_Estimation_Technique and "Hard
negatives or false negatives: correcting pooling bias in training neural ranking models", CIKM 2022.

What we do differently: h reads exposure features and nothing else (with the inputs of f the two would mirror each
other), weights are capped, both are trained by one optimizer, and f's weights on h come from the training pass
(dropout included) instead of a second pass in evaluation mode.

Legend: T targets, K sampled items, N items, F features of an item.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.hooks import bind
from recsys.objectives.bpr import pairwise
from recsys.objectives.sampled import score_drawn
from recsys.protocols import Context, Encoded, ItemTable

FEATURES = 2


class Exposure(nn.Module):
    """h: how likely an item was shown, from its number of training events (standardised logarithm, and percentile).

    Args:
        hidden: units between features and score; 0 is linear.
    """

    features: Tensor  # (N+1, F) float32

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"hidden must be at least 0 (linear), found {hidden}")
        self.hidden = hidden
        last = nn.Linear(hidden or FEATURES, 1, bias=False)  # only differences of scores are trained
        self.layers = nn.Sequential(nn.Linear(FEATURES, hidden), nn.Tanh(), last) if hidden else nn.Sequential(last)
        self.register_buffer("features", torch.zeros(1, FEATURES))

    def bind(self, context: Context) -> None:
        """Initialise the layers, and count the features if there are training events."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        found = np.zeros((context.num_items + 1, FEATURES), np.float32)
        if context.training is not None:
            counts = context.training.item_counts()[1:]
            seen = np.log1p(counts)
            found[1:, 0] = (seen - seen.mean()) / max(float(seen.std()), 1e-6)
            ordered = np.sort(counts)
            below, upto = (np.searchsorted(ordered, counts, side=side) for side in ("left", "right"))
            found[1:, 1] = (below + upto) / len(counts) - 1.0
        self.features = torch.from_numpy(found)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) float32 scores of the item rows (...)."""
        scores: Tensor = self.layers(self.features[ids]).squeeze(-1)
        return scores.float()


class Coupled(nn.Module):
    """A sampled objective whose negatives count by how likely they were seen, and the loss of the model that says so.

    Args:
        objective: ``SampledSoftmax``, ``BCE``, ``GBCE`` or ``BPR``: anything with ``negatives`` and ``of_scores``.
        exposure: h.
        tau: temperature of the weights; large values make all of them 2.
        cap: largest weight.
        normalised: divide weights by their mean over the batch, so that the scale of the loss stays.
        weight: of L_h in the sum L_f + weight L_h.

    Raises:
        TypeError: the objective samples nothing.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        objective: Any,
        exposure: Exposure | None = None,
        tau: float = 10.0,
        cap: float = 10.0,
        normalised: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not hasattr(objective, "negatives") or not hasattr(objective, "of_scores"):
            raise TypeError(
                f"Coupled weighs sampled items, and {type(objective).__name__} has none: give it SampledSoftmax, BCE, "
                "GBCE or BPR"
            )
        if not tau > 0 or not cap >= 1 or not weight >= 0:
            raise ValueError(f"tau > 0, cap >= 1 and weight >= 0 are needed, found {tau}, {cap} and {weight}")
        self.objective, self.exposure = objective, Exposure() if exposure is None else exposure
        self.tau, self.cap, self.normalised, self.weight = tau, cap, normalised, weight

    def bind(self, context: Context) -> None:
        """Let the exposure model, and the objective if it wants to, learn the catalogue."""
        bind(self.exposure, context)
        bind(self.objective, context)

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of their weight times the ranker's loss plus ``weight`` times the exposure model's.

        Both losses of a target count by the weights that it has.
        """
        hidden, targets, _ = encoded.at_targets(batch)
        drawn = self.objective.negatives.sample(batch, targets, items.num_items, generator)
        found = score_drawn(hidden, targets, batch, items, drawn)
        ids, mask = drawn.for_targets()
        shown = self.exposure(ids).expand(mask.shape).masked_fill(mask, -torch.inf)
        weights = self.weights(shown) if found.weights is None else self.weights(shown) * found.weights
        losses: Tensor = self.objective.of_scores(replace(found, weights=weights), items.num_items)
        exposed = pairwise(self.exposure(targets), shown, self.weights(found.negative))
        return (losses + self.weight * found.weighted(exposed)).sum()

    def weights(self, scores: Tensor) -> Tensor:
        """(T, K) weights of samples by the other model's scores (T, K), -inf for those that do not count."""
        return coupled_weights(scores, self.tau, self.cap, self.normalised)


def coupled_weights(scores: Tensor, tau: float = 10.0, cap: float = 10.0, normalised: bool = False) -> Tensor:
    """1 / (1 - sigmoid(scores / tau)), at most ``cap``, without gradient; normalised to a mean of 1 where it counts."""
    scores = scores.detach().float()
    weights = (1 + torch.exp(scores / tau)).clamp(max=cap)
    if not normalised:
        return weights
    counted = scores > -torch.inf
    return weights * counted.sum() / (weights * counted).sum().clamp(min=1e-12)
