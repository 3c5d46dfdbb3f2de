"""Recall.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked


class Recall:
    """``recall@k``: the share of a user's targets among the first k. With one target it equals ``hr@k``."""

    name = "recall"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return ranked.hits_within(k) / np.maximum(ranked.relevant, 1)
