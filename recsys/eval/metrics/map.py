"""Mean average precision.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked, running_sum


class MAP:
    """``map@k``: the precision at each target within k, summed and divided by min(targets, k).

    At rank j of a group, a target (chance hits / size) sees all targets of better groups, itself, and of the j - 1
    ranks before it the share (hits - 1) / (size - 1).
    """

    name = "map"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        harmonic = running_sum(1.0 / np.arange(1, k + 1))
        within, start = ranked.filled(k), np.minimum(ranked.above, k)
        inverse = harmonic[start + within] - harmonic[start]  # sum of 1 / rank over the ranks within k
        mates = (ranked.hits - 1) / np.maximum(ranked.size - 1, 1)
        inside = (ranked.hits_above + 1 - (ranked.above + 1) * mates) * inverse + mates * within
        return ranked.sum(ranked.hits / ranked.size * inside) / np.clip(ranked.relevant, 1, k)
