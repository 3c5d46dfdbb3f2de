"""How popular the items of the lists are.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked, list_mean


class PopularityBias:
    """``popularity@k``: mean training-popularity percentile of the first k items, 1 = only the most popular.

    The percentile of an item is (items with fewer events + half of those with as many) / N: recommending uniformly at
    random gives 0.5.
    """

    name = "popularity"
    lists = True

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return list_mean(ranked, k, "percentile")
