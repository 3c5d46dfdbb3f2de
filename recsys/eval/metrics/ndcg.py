"""Normalised discounted cumulative gain.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked, running_sum


class NDCG:
    """``ndcg@k``: sum of 1 / log2(rank + 1) over the targets within k, divided by its largest possible value.

    The largest possible value has min(targets, k) targets in front.
    """

    name = "ndcg"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        gain = running_sum(1.0 / np.log2(np.arange(2, k + 2)))
        start = np.minimum(ranked.above, k)
        expected = ranked.hits / ranked.size * (gain[start + ranked.filled(k)] - gain[start])
        return ranked.sum(expected) / gain[np.clip(ranked.relevant, 1, k)]
