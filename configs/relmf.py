"""Rel-MF (Saito et al. 2020, arXiv 1909.03601) on MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/relmf.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Clicks count by the inverse of their item's exposure, estimated as the square root of its share of
the most popular item's clicks. ``--clip 1`` or ``--power 0`` is plain matrix factorisation, fitted in the same way.

Held-out clicks are as biased as the training ones, so plain metrics are expected to favour the plain model; see
``recsys.eval.unbiased`` for the reweighted ones. Deviations: the paper's sets (Yahoo! R3, Coat) may not be passed on;
least squares on raw scores, solved exactly, instead of sampled squares of the sigmoid (``--loss squared-sigmoid`` is
the paper's loss, over all pairs); ``dim`` and ``l2`` were not tuned.
"""

from __future__ import annotations

from typing import Literal

import recsys as rs
from recsys.recommenders.relmf import RelMF
from recsys.weighting.propensity import PopularityPropensity


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    dim: int = 64,
    l2: float | None = None,
    power: float = 0.5,
    clip: float = 0.01,
    loss: Literal["squared", "logistic", "squared-sigmoid"] = "squared",
    steps: int | None = None,
    exclude: Literal["history", "none"] = "history",
    seed: int = 0,
) -> rs.Run:
    """Matrix factorisation with inverse-propensity labels.

    Args:
        data: data set; all but ml-100k are copied from RECSYS_MIRROR.
        dim: number of factors.
        l2: L2 regularisation of the loss summed over all pairs (default: 50, 20 or 5 by loss).
        power: exponent of the propensity, (clicks / clicks of the most popular item) ** power; 0 for no weighting.
        clip: smallest propensity, which bounds the weights.
        loss: loss of each user-item pair.
        steps: alternations of least squares, or optimizer steps of the other losses (default: 30, or 300).
        exclude: seen items when ranking: "history" leaves out the items of the user's history, "none" ranks them too.
        seed: random seed of the initial factors.
    """
    model = RelMF(dim, l2, PopularityPropensity(power), clip, loss, steps)
    return rs.Run(model, rs.load(data).split(rs.LeaveLast()), {"seed": seed}, evaluate={"exclude": exclude})
