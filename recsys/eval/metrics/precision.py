"""Precision.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off.
"""

from __future__ import annotations

import numpy as np

from recsys.eval.metrics.ranked import Ranked


class Precision:
    """``precision@k``: targets among the first k, divided by k (also where fewer than k candidates exist)."""

    name = "precision"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return ranked.hits_within(k) / k
