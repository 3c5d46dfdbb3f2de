from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.auxiliaries.contrast import newest_target
from recsys.data.batch import Batch
from recsys.protocols import Context
from recsys.targets.last_item import LastItem
from recsys.targets.masked_items import MaskedItems
from recsys.targets.next_item import NextItem
from recsys.targets.one_target import OneTarget
from recsys.testing import check_targets, toy_context


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


def masked(num_items=9, **settings):
    targets = MaskedItems(**settings)
    targets.bind(Context(num_items))
    return targets


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("last", [0.0, 0.5, 1.0])
def test_masked_items_conform(last):
    check_targets(MaskedItems(0.5, last))


def test_masked_items_are_targets_where_the_mask_stands():
    batch = batch_of([[1, 2, 3, 4], [5, 6]], [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6]], [[7, 8, 9, 10], [5, 6]])
    found = masked(probability=0.5, last=0.0).train(batch, seeded())
    places = found.ids == 10
    assert places.any(1).all()
    assert torch.equal(found.targets, batch.ids * places)
    assert torch.equal(found.ids[~places], batch.ids[~places])
    assert torch.equal(found.weights, batch.weights * places)
    assert found.lengths.tolist() == [4, 2]
    assert found.target_times.tolist() == found.times.tolist() == [[7, 8, 9, 10], [5, 6, 0, 0]]


def test_masked_items_by_hand():
    """The draws of a generator, repeated here: below the share is masked; a row with none masks its lowest draw."""
    batch = batch_of([[1, 2, 3, 4, 5], [6, 7, 8], [9]])
    draws = torch.rand(3, 5, generator=seeded(4))
    share = float(draws[1, :3].min()) - 1e-4  # the second row has no draw below it
    expected = [[draw < share for draw in row[:n]] for row, n in zip(draws.tolist(), (5, 3, 1))]
    for row, own in enumerate(expected):
        if not any(own):
            own[int(draws[row, : len(own)].argmin())] = True
    found = masked(probability=share, last=0.0).train(batch, seeded(4))
    assert [(ids == 10)[:n].tolist() for ids, n in zip(found.ids, (5, 3, 1))] == expected
    assert sum(expected[1]) == 1


def test_masked_share_and_seeds():
    batch = batch_of([list(range(1, 41))] * 200)
    targets = masked(40, probability=0.3, last=0.0)
    first, same, other = (targets.train(batch, seeded(seed)).targets for seed in (1, 1, 2))
    assert float((first > 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_share_of_rows_that_mask_only_the_newest_item():
    batch = batch_of([list(range(1, 41)), list(range(1, 21))] * 200)
    count = (masked(40, probability=0.9, last=0.25).train(batch, seeded()).targets > 0).sum(1)
    assert float((count == 1).float().mean()) == pytest.approx(0.25, abs=0.05)
    found = masked(40, last=1.0).train(batch, seeded())
    assert found.targets.gather(1, found.lengths[:, None] - 1).squeeze(1).tolist() == [40, 20] * 200
    assert (found.targets > 0).sum() == 400


def test_masked_query_appends_the_mask():
    batch = batch_of([[1, 2, 3], [4]], times=[[7, 8, 9], [5]])
    found = masked().query(batch)
    assert found.ids.tolist() == [[1, 2, 3, 10], [4, 10, 0, 0]]
    assert found.lengths.tolist() == [4, 2]
    assert found.times.tolist() == [[7, 8, 9, 9], [5, 5, 0, 0]]
    asked = masked().query(batch.replace(query_time=torch.tensor([20, 0])))  # 0: not known
    assert asked.times.tolist() == [[7, 8, 9, 20], [5, 5, 0, 0]]
    assert batch.ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    empty = masked().query(batch.replace(ids=batch.ids * 0, lengths=batch.lengths * 0))
    assert empty.ids[:, 0].tolist() == [10, 10]


def test_masked_items_of_empty_rows_and_of_no_rows():
    batch = batch_of([[0], [3]]).replace(lengths=torch.tensor([0, 1]))
    found = masked().train(batch, seeded())
    assert found.targets.tolist() == [[0], [3]]
    assert found.ids.tolist() == [[0], [10]]
    empty = torch.zeros(0, dtype=torch.long)
    none = Batch(rows=empty, users=empty, ids=torch.zeros(0, 1, dtype=torch.long), lengths=empty)
    assert masked().train(none, seeded()).targets.shape == (0, 1)


@pytest.mark.parametrize(
    ("settings", "word"), [({"probability": 0.0}, "probability"), ({"probability": 1.0}, "prob"), ({"last": 2}, "last")]
)
def test_masked_items_refuse(settings, word):
    with pytest.raises(ValueError, match=word):
        MaskedItems(**settings)


def test_masked_items_must_know_the_items():
    with pytest.raises(ValueError, match="bind"):
        MaskedItems().query(batch_of([[1]]))


def test_one_target_has_the_time_of_its_target():
    rows = batch_of([[1, 2, 3, 4], [5, 6]], times=[[7, 8, 9, 10], [5, 6]])
    for seed in range(5):
        found = OneTarget().train(rows, torch.Generator().manual_seed(seed))
        last = (found.lengths - 1)[:, None]
        assert torch.equal(found.target_times.gather(1, last), rows.times.gather(1, last + 1))
        assert torch.equal(found.targets.gather(1, last), rows.ids.gather(1, last + 1))


@pytest.mark.parametrize("targets", [NextItem(), LastItem(), OneTarget(), OneTarget(late=[""])])
def test_event_and_time_that_come_along_are_those_of_the_newest_target(targets):
    training = toy_context().training
    rows = training.gather(np.arange(40), 9, needs=frozenset({"events", "times", "query_time"}))
    made = targets.train(rows, torch.Generator().manual_seed(0))
    place = torch.as_tensor(made.events.numpy() - training.start[:40])
    wanted = newest_target(made)
    known = wanted > 0
    assert known.sum() > 30
    assert torch.equal(training.gather(np.arange(40)).ids.gather(1, place[:, None]).squeeze(1)[known], wanted[known])
    at = (made.lengths - 1).clamp(min=0)[:, None]
    assert torch.equal(made.query_time[known], made.target_times.gather(1, at).squeeze(1)[known])
