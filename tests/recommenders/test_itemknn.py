from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.protocols import Context
from recsys.recommenders.itemknn import ItemKNN


def similarities(matrix: np.ndarray, shrink: float) -> np.ndarray:
    shared = matrix.T @ matrix
    norms = np.sqrt(np.diag(shared))
    found = shared / (norms[:, None] * norms + shrink + (shrink == 0) * 1e-30)
    np.fill_diagonal(found, 0)
    return found


def oracle(matrix: np.ndarray, history: list[int], k: int, shrink: float, decay: float) -> np.ndarray:
    found, scores, seen = similarities(matrix, shrink), np.zeros(matrix.shape[1]), set()
    for age, row in enumerate(reversed(history)):
        if row in seen:
            continue
        seen.add(row)
        near = np.argsort(-found[row - 1], kind="stable")[:k]
        scores[near] += decay**age * found[row - 1, near]
    return scores


@pytest.mark.parametrize(("k", "shrink", "decay"), [(3, 0.0, 1.0), (3, 10.0, 0.8), (50, 2.0, 1.0)])
def test_scores_equal_a_brute_force(context: Context, matrix: np.ndarray, k: int, shrink: float, decay: float) -> None:
    model = ItemKNN(k, shrink, decay)
    model.learn(context)
    history = [4, 1, 2, 4, 9, 1]
    np.testing.assert_allclose(
        model.scores([[f"i{row}" for row in history]])[0], oracle(matrix, history, k, shrink, decay), atol=1e-5
    )


def test_blocks_change_nothing(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = ItemKNN(4), ItemKNN(4)
    whole.learn(context)
    monkeypatch.setattr("recsys.statistics.cooccurrence.PAIRS", 50)
    parts.learn(context)
    assert torch.equal(whole.neighbours, parts.neighbours)
    assert torch.equal(whole.similarities, parts.similarities)
    scores = whole.scores([["i1", "i2", "i3"]])
    monkeypatch.setattr("recsys.recommenders.itemknn.PAIRS", 4)
    np.testing.assert_allclose(whole.scores([["i1", "i2", "i3"]]), scores, rtol=1e-6)


def test_too_many_neighbours_for_memory_say_so_first() -> None:
    with pytest.raises(MemoryError, match="fewer"):
        ItemKNN(k=100_000).learn(Context(num_items=10**9, training=object()))  # type: ignore[arg-type]


def test_too_many_events_for_memory_say_so_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.statistics.cooccurrence.EVENT_BYTES", 1e15)
    with pytest.raises(MemoryError, match="max_history"):
        ItemKNN(4).learn(context)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k8_a_short_list_begins_the_long_one_behind_the_neighbours_too(context: Context, k: int) -> None:
    model = ItemKNN(k)
    model.learn(context)
    histories = [[f"i{row}"] for row in range(1, context.num_items + 1)]
    longest = model.recommend(histories, k=context.num_items)
    scores = model.scores(histories)
    for cut in range(1, context.num_items):
        assert [one[:cut] for one in longest.items] == model.recommend(histories, k=cut).items
    for row, own in enumerate(longest.rows):
        seen = [item - 1 for item in own if item]
        assert seen == sorted(seen, key=lambda column: (-scores[row, column], column))
