"""Hit rate.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked


class HitRate:
    """``hr@k``: the chance that at least one target is among the first k.

    Only the best tie group of a user decides; within it the number of hits in m drawn places is hypergeometric.
    """

    name = "hr"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        size, hits = ranked.size[ranked.first], ranked.hits[ranked.first]
        drawn = ranked.slots(k)[ranked.first]
        none = np.ones(len(size))  # C(size - hits, drawn) / C(size, drawn), symmetric in hits and drawn
        few, many = np.minimum(hits, drawn), np.maximum(hits, drawn)
        for step in range(int(few.max(initial=0))):
            left = np.maximum(size - many - step, 0) / np.maximum(size - step, 1)
            none = np.where(step < few, none * left, none)
        result = np.zeros(len(ranked))
        result[ranked.user[ranked.first]] = 1.0 - none
        return result
