"""Numbers about all lists together: how much of the catalogue is shown, and how evenly.

They come from how often each item stands in a list (``exposure``), so they are not means over users and have no
per-user column. Legend: N items, k cut-off.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Aggregate(Protocol):
    """One number from how often each item stands among the first k of the lists, (N,) int64."""

    name: str
    exposure: bool  # True: tells an aggregate from a metric

    def __call__(self, exposure: np.ndarray, k: int) -> float: ...


class Coverage:
    """``coverage@k``: the share of the catalogue that stands in at least one list of length k."""

    name = "coverage"
    exposure = True

    def __call__(self, exposure: np.ndarray, k: int) -> float:
        return float(np.count_nonzero(exposure) / len(exposure))


class Gini:
    """``gini@k``: inequality of exposure over the whole catalogue, 0 = every item shown equally often, 1 = one item.

    sum_i (2 i - N - 1) x_i / (N sum x) with exposures x in ascending order, scaled by N / (N - 1) so that a single
    shown item gives 1 for any N.
    """

    name = "gini"
    exposure = True

    def __call__(self, exposure: np.ndarray, k: int) -> float:
        items, total = len(exposure), float(exposure.sum())
        if items < 2 or total == 0:
            return 0.0
        rank = np.arange(1, items + 1)
        return float(((2 * rank - items - 1) * np.sort(exposure)).sum() / (total * (items - 1)))
