from __future__ import annotations

import numpy as np
import pytest

from recsys.eval.aggregates import Aggregate, Coverage, Gini


def gini_by_definition(values: np.ndarray) -> float:
    """Mean absolute difference of all pairs of different items, over twice the mean."""
    pairs = np.abs(values[:, None] - values[None, :]).sum() / (len(values) * (len(values) - 1))
    return float(pairs / (2 * values.mean()))


@pytest.mark.parametrize("seed", range(5))
def test_gini_equals_its_definition(seed):
    exposure = np.random.default_rng(seed).poisson(2.0, size=40)
    assert Gini()(exposure, 10) == pytest.approx(gini_by_definition(exposure), abs=1e-12)


def test_ends_of_the_scale():
    assert Gini()(np.array([3, 3, 3, 3]), 1) == pytest.approx(0.0)
    assert Gini()(np.array([0, 0, 7, 0]), 1) == pytest.approx(1.0)
    assert Gini()(np.array([5]), 1) == 0.0
    assert Gini()(np.zeros(4, dtype=np.int64), 1) == 0.0
    assert Coverage()(np.array([0, 2, 0, 1]), 1) == 0.5


def test_both_fit_the_protocol():
    assert isinstance(Coverage(), Aggregate) and isinstance(Gini(), Aggregate)
