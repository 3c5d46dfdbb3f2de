"""SASRec with inverse-propensity weights on its targets: MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/sasrec_ips.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Each target of ``configs/sasrec.py`` counts 1 / max(theta, clip), theta the square root of its
item's share of the most popular item's clicks (Saito et al. 2020, arXiv 1909.03601), and the loss is divided by the
sum of the weights. ``--power 0`` is that backbone, bit for bit. Best epochs are still chosen by plain validation
metrics, which favour popular items, as the test clicks do; ``recsys.eval.unbiased`` has the reweighted ones.
"""

from __future__ import annotations

from sasrec import BackboneKnobs, backbone

import recsys as rs
from recsys.weighting.propensity import InversePropensity, PopularityPropensity


def run(power: float = 0.5, clip: float = 0.01, knobs: BackboneKnobs = BackboneKnobs()) -> rs.Run:
    """SASRec whose targets count by the inverse of their item's exposure.

    Args:
        power: exponent of the propensity, (clicks / clicks of the most popular item) ** power; 0 for no weighting.
        clip: smallest propensity, which bounds the weights.
    """
    return backbone(knobs, weightings=[InversePropensity(PopularityPropensity(power), clip)])
