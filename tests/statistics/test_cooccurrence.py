"""Item-item similarity, in blocks, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from recsys.statistics.cooccurrence import item_similarity, largest

SEEN = (np.random.default_rng(3).random((30, 12)) < 0.3).astype(np.float32)


def dense(blocks, count: int) -> np.ndarray:
    found = np.zeros((count + 1, count + 1))
    last = 0
    for item, other, value in blocks:
        assert (np.diff(item) >= 0).all() and (not len(item) or item[0] > last)  # an item in one block only
        last = item[-1] if len(item) else last
        found[item, other] = value
    return found[1:, 1:]


@pytest.mark.parametrize("pairs", [20, 2**25])
@pytest.mark.parametrize("shrink", [0.0, 3.0])
def test_cosines_of_sets_of_users(pairs: int, shrink: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.statistics.cooccurrence.PAIRS", pairs)
    users, shared = SEEN.sum(0), SEEN.T @ SEEN
    expected = shared / (np.sqrt(users[:, None] * users) + shrink)
    np.fill_diagonal(expected, 0)
    found = dense(item_similarity(sparse.csr_matrix(SEEN), shrink=shrink), 12)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weighted_users_and_plain_counts() -> None:
    weights = np.random.default_rng(4).random((30, 1))
    expected = SEEN.T.astype(float) @ (SEEN * weights)
    np.fill_diagonal(expected, 0)
    weighted = sparse.csr_matrix(SEEN * weights)
    found = dense(item_similarity(sparse.csr_matrix(SEEN), weighted, cosine=False), 12)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_largest_of_each_item_and_the_first_of_equal_ones() -> None:
    item, value = np.array([1, 1, 1, 1, 4, 6, 6]), np.array([0.1, 0.5, 0.2, 0.5, 0.3, 0.7, 0.9])
    chosen, rank = largest(item, value, 2)
    assert chosen.tolist() == [1, 3, 4, 6, 5] and rank.tolist() == [0, 1, 0, 0, 1]
    assert all(len(one) == 0 for one in largest(item[:0], value[:0], 2))
