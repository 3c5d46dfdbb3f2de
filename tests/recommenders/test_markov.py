from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from recsys.protocols import Context
from recsys.recommenders.markov import Markov


def pairs(histories: list[np.ndarray]) -> np.ndarray:
    counts = np.zeros((31, 31))
    for items in histories:
        for before, after in pairwise(items):
            counts[before, after] += 1
    return counts


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 10.0])
def test_probabilities_equal_a_brute_force(context: Context, histories, smoothing: float) -> None:
    model = Markov(smoothing)
    model.learn(context)
    counts = pairs(histories)
    popularity = np.bincount(np.concatenate(histories), minlength=31)[1:]
    for row in range(1, 31):
        expected = counts[row, 1:] + smoothing * popularity / popularity.sum()
        total = counts[row].sum() + smoothing
        expected = expected / total if total else expected * 0
        np.testing.assert_allclose(model.scores([["i5", f"i{row}"]])[0], expected, rtol=1e-4, atol=1e-7)


def test_blocks_of_users_change_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = Markov(), Markov()
    whole.learn(context)
    from recsys.ids.ranges import blocks

    monkeypatch.setattr("recsys.recommenders.markov.blocks", lambda sizes: blocks(sizes, 20))
    parts.learn(context)
    assert all((one == parts.tensors()[name]).all() for name, one in whole.tensors().items())
    assert whole.counts.sum() == context.training.num_events - 60


def test_only_the_last_item_matters(context: Context) -> None:
    model = Markov()
    model.learn(context)
    scores = model.scores([["i1"], ["i9", "i4", "i1"]])
    assert (scores[0] == scores[1]).all()
