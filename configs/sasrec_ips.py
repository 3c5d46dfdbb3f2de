"""SASRec with inverse-propensity weights on its targets: MovieLens-100K, MovieLens-1M or Amazon Beauty, leave-last.

Run: ``recsys fit configs/sasrec_ips.py`` (others: ``--data ml-1m``, ``--data amazon-beauty``, which need
``RECSYS_MIRROR``). Each target of ``configs/sasrec.py`` counts 1 / max(theta, clip), theta the square root of its
item's share of the most popular item's clicks (Saito et al. 2020, arXiv 1909.03601), and the loss is divided by the
sum of the weights. ``--power 0`` is that backbone, bit for bit. Best epochs are still chosen by plain validation
metrics, which favour popular items, as the test clicks do; ``recsys.eval.unbiased`` has the reweighted ones.
"""

from __future__ import annotations

from typing import Literal

from sasrec import backbone

import recsys as rs
from recsys.weighting.propensity import InversePropensity, PopularityPropensity


def run(
    data: Literal["ml-100k", "ml-1m", "amazon-beauty"] = "ml-100k",
    power: float = 0.5,
    clip: float = 0.01,
    dim: int = 64,
    dropout: float | None = None,
    max_length: int | None = None,
    exclude: Literal["history", "none"] = "history",
    epochs: int = 60,
    patience: int = 8,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
) -> rs.Run:
    """A knob that is None takes the data set's value."""
    return backbone(
        data, weightings=[InversePropensity(PopularityPropensity(power), clip)], dim=dim, dropout=dropout,
        max_length=max_length, exclude=exclude, epochs=epochs, patience=patience, batch_size=batch_size,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
