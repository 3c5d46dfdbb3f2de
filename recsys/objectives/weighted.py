"""Losses of targets times their weights, which is what every objective sums.

Legend: T targets.
"""

from __future__ import annotations

from torch import Tensor


def weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The scalar sum of losses (T,) times weights (T,), or of the losses alone where ``weights`` is None."""
    return weighted(losses, weights).sum()


def weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses (T,) times weights (T,): the losses themselves, to the last bit of their gradient, if all weights are 1.

    A product with ones would lay the gradient out otherwise, and some kernels round by how it is laid out.
    """
    return losses if weights is None or bool((weights == 1).all()) else losses * weights
