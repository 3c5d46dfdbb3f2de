from __future__ import annotations

import numpy as np
import pytest

from recsys.protocols import Context
from recsys.recommenders.ease import EASE


def oracle(matrix: np.ndarray, l2: float) -> np.ndarray:
    inverse = np.linalg.inv(matrix.T @ matrix + l2 * np.eye(matrix.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-6), ("float32", 1e-4)])
def test_weights_equal_the_closed_form(
    context: Context, matrix: np.ndarray, precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.recommenders.ease.ROWS", 7)
    monkeypatch.setattr("recsys.statistics.cooccurrence.PAIRS", 60)
    model = EASE(l2=2.5, precision=precision)
    model.learn(context)
    expected = oracle(matrix, 2.5)
    np.testing.assert_allclose(model.weights.numpy(), expected, atol=tolerance)
    scores = model.scores([["i2", "i7", "i2"]])[0]
    np.testing.assert_allclose(scores, expected[1] + expected[6], atol=2 * tolerance)


def test_limited_to_the_most_popular(context: Context, matrix: np.ndarray) -> None:
    model = EASE(l2=2.5, limit_items=8)
    model.learn(context)
    counts = context.training.item_counts()
    kept = model.kept.numpy()
    assert counts[kept].min() >= np.delete(counts[1:], kept - 1).max()
    scores = model.scores([[f"i{kept[0]}", f"i{kept[3]}", *(f"i{row}" for row in range(1, 31) if row not in kept)]])[0]
    expected = oracle(matrix[:, kept - 1], 2.5)
    np.testing.assert_allclose(scores[kept - 1], expected[0] + expected[3], atol=1e-6)
    assert np.delete(scores, kept - 1).max() < scores[kept - 1].min()


def test_a_catalogue_that_does_not_fit_is_refused_before_work_starts() -> None:
    context = Context(num_items=1_000_000, training=object())  # type: ignore[arg-type]
    with pytest.raises(MemoryError, match=r"12\.0 TB.*ItemKNN"):
        EASE().learn(context)
