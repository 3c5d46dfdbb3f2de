"""Mean reciprocal rank.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked


class MRR:
    """``mrr@k``: 1 / rank of the best target, 0 if it is not within k (papers such as SLMRec's have no cut-off).

    The best target is at rank j of its group with chance C(size - j, hits - 1) / C(size, hits).
    """

    name = "mrr"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        best = np.flatnonzero(ranked.first)
        above, size, hits = ranked.above[best], ranked.size[best], ranked.hits[best]
        within = ranked.filled(k)[best]
        chance, value = hits / size, np.zeros(len(best))
        active = np.flatnonzero(within > 0)
        rank = 1
        while len(active):
            value[active] += chance[active] / (above[active] + rank)
            active = active[within[active] > rank]
            left = np.maximum(size[active] - rank - hits[active] + 1, 0)
            chance[active] *= left / (size[active] - rank)
            rank += 1
        result = np.zeros(len(ranked))
        result[ranked.user[best]] = value
        return result
