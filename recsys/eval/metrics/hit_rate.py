"""Hit rate.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked


class HitRate:
    """``hr@k``: the chance that at least one target is among the first k.

    Only the best tie group of a user decides; within it the number of hits in m drawn ranks is hypergeometric.
    """

    name = "hr"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        size, hits = ranked.size[ranked.first], ranked.hits[ranked.first]
        drawn = ranked.filled(k)[ranked.first]
        none = np.ones(len(size))  # C(size - hits, drawn) / C(size, drawn), symmetric in hits and drawn
        few, many = np.minimum(hits, drawn), np.maximum(hits, drawn)
        for draw in range(int(few.max(initial=0))):
            left = np.maximum(size - many - draw, 0) / np.maximum(size - draw, 1)
            none = np.where(draw < few, none * left, none)
        result = np.zeros(len(ranked))
        result[ranked.user[ranked.first]] = 1.0 - none
        return result
