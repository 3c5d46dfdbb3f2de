from __future__ import annotations

import pytest
import torch

from recsys.data.batch import Batch
from recsys.data.targets import LastItem, NextItem


def batch_of(rows, weights=None, times=None):
    width = max(1, *(len(row) for row in rows))

    def pad(values):
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in values])

    count = torch.arange(len(rows))
    return Batch(
        rows=count,
        users=count,
        ids=pad(rows),
        lengths=torch.tensor([len(row) for row in rows]),
        weights=None if weights is None else pad(weights),
        times=None if times is None else pad(times),
    )


def test_next_item_predicts_at_every_position():
    found = NextItem().train(batch_of([[1, 2, 3], [4, 5]], [[0.1, 0.2, 0.3], [0.4, 0.5]], [[7, 8, 9], [5, 6]]))
    assert found.ids.tolist() == [[1, 2], [4, 0]]
    assert found.targets.tolist() == [[2, 3], [5, 0]]
    assert found.lengths.tolist() == [2, 1]
    assert torch.allclose(found.weights, torch.tensor([[0.2, 0.3], [0.5, 0.0]]))
    assert found.times.tolist() == [[7, 8], [5, 0]]


def test_last_item_predicts_once():
    found = LastItem().train(batch_of([[1, 2, 3], [4, 5]], [[0.1, 0.2, 0.3], [0.4, 0.5]]))
    assert found.ids.tolist() == [[1, 2], [4, 0]]
    assert found.targets.tolist() == [[0, 3], [5, 0]]
    assert torch.allclose(found.weights, torch.tensor([[0.0, 0.3], [0.5, 0.0]]))


@pytest.mark.parametrize("targets", [NextItem(), LastItem()])
def test_rows_that_predict_nothing_are_safe(targets):
    for rows in ([[7]], [[]], [[7], [1, 2]]):
        batch = batch_of(rows) if rows != [[]] else batch_of([[0]]).replace(lengths=torch.zeros(1, dtype=torch.long))
        found = targets.train(batch)
        assert found.ids.shape == found.targets.shape
        assert found.ids.shape[1] >= 1
        assert int(found.lengths[0]) == 0
        assert not found.targets[0].any()
        assert (found.flatten(found.targets) > 0).sum() == (1 if len(rows) == 2 else 0)


@pytest.mark.parametrize("targets", [NextItem(), LastItem()])
def test_batch_of_no_rows(targets):
    empty = torch.zeros(0, dtype=torch.long)
    found = targets.train(Batch(rows=empty, users=empty, ids=torch.zeros(0, 1, dtype=torch.long), lengths=empty))
    assert found.flat.tolist() == []
    assert found.positions.tolist() == []


@pytest.mark.parametrize("targets", [NextItem(), LastItem()])
def test_query_is_the_history_and_the_batch_is_never_changed(targets):
    batch = batch_of([[1, 2, 3], [4, 5]])
    before = batch.ids.clone()
    assert targets.query(batch) is batch
    targets.train(batch)
    assert torch.equal(batch.ids, before)
    assert batch.targets is None
