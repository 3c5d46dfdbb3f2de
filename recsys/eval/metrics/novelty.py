"""How far from the obvious the lists are.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked, list_mean


class Novelty:
    """``novelty@k``: mean self-information -log2 p(item) of the first k items, in bits; higher is less obvious.

    p is the item's share of the training events with one event added to every item, (c + 1) / (sum c + N), so that
    items never seen in training count as the rarest instead of infinitely rare.
    """

    name = "novelty"
    lists = True

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return list_mean(ranked, k, "bits")
