from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.split import TrainingEvents
from recsys.data.splitters import LeaveLast
from recsys.errors import DataError
from recsys.targets.last_item import LastItem
from recsys.targets.next_item import NextItem
from recsys.targets.one_target import OneTarget
from recsys.train.loader import TrainBatches, last_windows, prefixes, sliding_windows

seeds = st.integers(0, 10**6)


def training_of(prepared):
    train_stop, _ = LeaveLast().apply(prepared)
    return TrainingEvents(prepared, prepared.offsets[:-1], train_stop)


def windows_by_loop(training, scheme, length, stride):
    """(user, first event, end) of every row, user by user, newest row first."""
    found = []
    for user, (start, stop) in enumerate(zip(training.start, training.stop, strict=True)):
        end = stop
        while end - start >= 2:
            found.append((user, max(start, end - length - 1), end))
            if scheme == "last" or (scheme == "sliding" and found[-1][1] == start):
                break
            end -= 1 if scheme == "prefixes" else stride
    return found


def items_of(batch):
    rows = zip(batch.rows.tolist(), batch.ids.tolist(), batch.lengths.tolist(), strict=True)
    return {row: tuple(ids[:length]) for row, ids, length in rows}


def equal(left, right):
    names = ("rows", "users", "ids", "lengths", "weights", "times", "query_time")
    for name in names:
        a, b = getattr(left, name), getattr(right, name)
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            return False
    return True


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 7), st.sampled_from(["last", "sliding", "prefixes"]), st.data())
def test_rows_against_a_loop(draw, seed, length, scheme, data):
    training = training_of(draw(seed))
    stride = data.draw(st.integers(1, length)) if scheme == "sliding" else None
    rows = {
        "last": lambda: last_windows(training, length),
        "sliding": lambda: sliding_windows(training, length, stride),
        "prefixes": lambda: prefixes(training, length),
    }[scheme]()
    user, start, stop = rows.ranges(np.arange(len(rows)))
    expected = windows_by_loop(training, scheme, length, stride)
    assert list(zip(user.tolist(), start.tolist(), stop.tolist(), strict=True)) == expected
    assert rows.lengths().tolist() == [end - begin - 1 for _, begin, end in expected]


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6), st.sampled_from(["sliding", "prefixes"]))
def test_rpg_14_9_and_semantic_ids_12_9_every_target_is_trained_exactly_once(draw, seed, length, kind):
    prepared = draw(seed)
    training = training_of(prepared)
    events = np.diff(prepared.offsets)
    assert (training.lengths[events > 2] == events[events > 2] - 2).all()  # the last two are validation and test
    scheme, windows = ("prefixes", "last") if kind == "prefixes" else ("windows", "sliding")
    batches = TrainBatches(training, scheme, length, batch_size=5, windows=windows)
    targets = LastItem() if kind == "prefixes" else NextItem()
    trained = [batch.flatten(batch.targets) for batch in map(targets.train, batches.epoch(0))]
    trained = torch.cat([row[row > 0] for row in trained]).sort().values
    wanted = [item for user in range(training.num_users) for item in training.history(user)[1:]]
    assert trained.tolist() == sorted(wanted)
    assert batches.num_targets == len(wanted)
    assert batches.truncated == 0


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 6), st.booleans())
def test_r1_a_drawn_target_lies_anywhere_in_the_history_with_the_events_before_it(draw, seed, length, late):
    training = training_of(draw(seed, longest=20))
    targets = OneTarget(late=["first"] if late else [])
    targets.on_stage("first")
    batches = TrainBatches(training, targets.scheme, length, batch_size=5, needs={"events"}, draw=targets.draw)
    users = [user for user in range(training.num_users) if training.lengths[user] > 1]
    assert batches.num_rows == batches.num_targets == len(users)
    assert batches.truncated == 0
    met = []
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            assert batch.ids.shape[1] <= length + 1  # no more of a history is read than the window
            made = targets.train(batch, torch.Generator().manual_seed(0))
            assert made.target_index is None
            for row, user in enumerate(made.users.tolist()):
                history, inputs = training.history(user).tolist(), int(made.lengths[row])
                place = int(made.events[row]) - int(training.start[user])
                assert max((len(history) - 1) // 2 if late else 1, 1) <= place < len(history)
                assert made.ids[row, :inputs].tolist() == history[max(place - length, 0) : place]
                assert made.targets[row, inputs - 1] == history[place]
                assert int((made.targets[row] > 0).sum()) == 1
                met.append(user)
    assert sorted(met) == sorted(users * 3)


def test_r1_every_event_but_the_first_is_a_target_as_often_as_another(prepare):
    """The newest window alone would leave out 36 of 41 events."""
    training = training_of(prepare([list(range(1, 10)) * 4 + list(range(1, 8))] * 60))
    batches = TrainBatches(training, OneTarget.scheme, 4, batch_size=60, needs={"events"})
    count = np.zeros(41)
    for epoch in range(80):
        for batch in batches.epoch(epoch):
            place = OneTarget().train(batch).events.numpy() - training.start[batch.users.numpy()]
            np.add.at(count, place, 1)
    assert count[0] == 0 and count[1:].min() > 0
    expected = 60 * 80 / 40
    assert ((count[1:] - expected) ** 2 / expected).sum() < 80  # chi-square, 39 degrees of freedom: one in ten thousand


def test_r1_epochs_draw_other_targets_and_windows_may_slide(prepare):
    training = training_of(prepare([[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]] * 20))
    batches = TrainBatches(training, "drawn", 3, batch_size=20, seed=1)
    first, second = (next(iter(batches.epoch(epoch))) for epoch in (0, 1))
    assert items_of(first) != items_of(second)
    sliding = TrainBatches(training, "drawn", 3, batch_size=20, windows="sliding")
    assert sliding.num_rows == sliding.num_targets == 60
    assert all(batch.target_index is None for batch in sliding.epoch(0))


CHOICES = [
    {"batch_size": 4},
    {"batch_size": 4, "order": "length"},
    {"tokens": 20},
    {"tokens": 20, "order": "length"},
    {"batch_size": 7, "scheme": "prefixes"},
    {"batch_size": 3, "windows": "sliding", "stride": 2},
    {"batch_size": 4, "scheme": "drawn"},
    {"tokens": 20, "scheme": "drawn", "order": "length"},
    {"batch_size": 4, "scheme": "drawn", "windows": "sliding"},
]


@pytest.mark.parametrize("choice", CHOICES)
def test_an_epoch_holds_each_row_once_and_steps_are_counted(draw, choice):
    batches = TrainBatches(training_of(draw(1, users=60)), max_length=5, **choice)
    found = list(batches.epoch(3))
    assert len(found) == batches.num_batches(3)
    assert torch.cat([batch.rows for batch in found]).sort().values.tolist() == list(range(batches.num_rows))
    for batch in found:
        assert batch.ids.shape[1] == int(batch.lengths.max())
        assert batch.weights is not None
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist())
    if "tokens" in choice:
        sizes = [int((batch.lengths - 1).sum()) for batch in found]
        assert max(sizes) <= 20
    else:
        assert sorted(len(batch) for batch in found)[1:] == [choice["batch_size"]] * (len(found) - 1)


@pytest.mark.parametrize("choice", CHOICES)
def test_seed_and_epoch_decide_the_batches(draw, choice):
    training = training_of(draw(1, users=60))
    first = list(TrainBatches(training, max_length=5, seed=4, **choice).epoch(2))
    torch.manual_seed(99)
    np.random.seed(99)
    again = TrainBatches(training, max_length=5, seed=4, **choice)
    list(again.epoch(0))
    assert all(equal(a, b) for a, b in zip(first, again.epoch(2), strict=True))
    assert [b.rows.tolist() for b in first] != [b.rows.tolist() for b in again.epoch(3)]
    other = TrainBatches(training, max_length=5, seed=5, **choice)
    assert [b.rows.tolist() for b in first] != [b.rows.tolist() for b in other.epoch(2)]


def test_workers_change_nothing(draw, tmp_path):
    prepared = draw(2, users=40)
    prepared.save(tmp_path / "cache")
    training = training_of(type(prepared).load(tmp_path / "cache"))
    needs = frozenset({"times", "query_time"})
    alone = TrainBatches(training, max_length=5, batch_size=6, needs=needs)
    helped = TrainBatches(training, max_length=5, batch_size=6, needs=needs, workers=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert all(equal(a, b) for a, b in zip(alone.epoch(1), helped.epoch(1), strict=True))
    assert all(equal(a, b) for a, b in zip(alone.epoch(1, start=3), helped.epoch(1, start=3), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("choice", CHOICES)
def test_resuming_in_the_middle_of_an_epoch(draw, choice):
    batches = TrainBatches(training_of(draw(3, users=40)), max_length=5, **choice)
    whole = list(batches.epoch(1))
    for start in range(len(whole) + 1):
        rest = list(TrainBatches(training_of(draw(3, users=40)), max_length=5, **choice).epoch(1, start=start))
        assert len(rest) == len(whole) - start
        assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_together_hold_the_batch_of_one(draw, choice, world_size):
    training = training_of(draw(4, users=40))
    whole = list(TrainBatches(training, max_length=5, **choice).epoch(0))
    ranks = [TrainBatches(training, max_length=5, **choice) for _ in range(world_size)]
    assert {batches.num_batches(0) for batches in ranks} == {len(whole)}
    shares = (batches.epoch(0, rank=rank, world_size=world_size) for rank, batches in enumerate(ranks))
    for step in zip(whole, *shares, strict=True):
        parts: dict[int, tuple[int, ...]] = {}
        for share in step[1:]:
            assert share.ids.shape[1] >= 1
            parts |= items_of(share)
        assert parts == items_of(step[0])
        assert sum(len(share) for share in step[1:]) == len(step[0])
        assert max(len(share) for share in step[1:]) - min(len(share) for share in step[1:]) <= 1


def test_a_rank_without_rows_gets_an_empty_batch(prepare):
    training = training_of(prepare([[1, 2, 3, 4]] * 5, times=[[1, 2, 3, 4]] * 5))
    needs = frozenset({"times", "query_time"})
    batches = TrainBatches(training, batch_size=4, needs=needs)
    *_, last = batches.epoch(0, rank=1, world_size=2)
    assert len(last) == 0
    prepared = NextItem().train(last)
    assert prepared.flat.numel() == prepared.positions.numel() == prepared.flatten(prepared.targets).numel() == 0


def test_length_order_wastes_less_padding(draw):
    training = training_of(draw(7, users=400, longest=60))

    def padding(order):
        batches = list(TrainBatches(training, max_length=60, batch_size=8, order=order).epoch(0))
        return sum(batch.ids.numel() for batch in batches) / sum(int(batch.lengths.sum()) for batch in batches)

    assert padding("length") < 1.1 < padding("random")


def test_what_is_left_out_is_counted(prepare):
    training = training_of(prepare([[1] * 12, [1] * 5, [1, 1, 1], []]))
    batches = TrainBatches(training, max_length=4, batch_size=2)
    assert batches.truncated == 10 - 5
    assert batches.short_users == 1
    assert batches.num_rows == 2
    assert batches.num_targets == 4 + 2
    assert TrainBatches(training, max_length=4, batch_size=2, windows="sliding").truncated == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({}, "batch_size"),
        ({"batch_size": 2, "tokens": 20}, "batch_size"),
        ({"tokens": 3}, "history"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2, "max_length": 0}, "max_length"),
        ({"batch_size": 2, "order": "sorted"}, "order"),
        ({"batch_size": 2, "windows": "all"}, "windows"),
        ({"batch_size": 2, "scheme": "cloze"}, "scheme"),
        ({"batch_size": 2, "stride": 3}, "stride"),
        ({"batch_size": 2, "windows": "sliding", "stride": 51}, "stride"),
    ],
)
def test_bad_arguments(draw, arguments, word):
    with pytest.raises(ValueError, match=word):
        TrainBatches(training_of(draw(1)), **arguments)


def test_a_rank_that_is_not_there_is_refused(draw):
    with pytest.raises(ValueError, match="rank"):
        next(TrainBatches(training_of(draw(1)), batch_size=2).epoch(0, rank=2, world_size=2))


def test_data_that_cannot_be_trained_on(prepare):
    with pytest.raises(DataError, match="two training events"):
        TrainBatches(training_of(prepare([[1, 2, 3], [4, 5, 6]])), batch_size=2)
    with pytest.raises(DataError, match="times"):
        TrainBatches(training_of(prepare([[1, 2, 3, 4]])), batch_size=2, needs=frozenset({"times"}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "labels"), [("amazon-beauty", 131_413), ("amazon-sports", 189_543)])
def test_rpg_14_9_the_published_number_of_labels(name, labels):
    if not (Path(os.environ.get("RECSYS_MIRROR", "nowhere")) / name).is_dir():
        pytest.skip(f"{name} is not here: RECSYS_MIRROR names a folder of data sets")
    training = rs.load(name).split(rs.LeaveLast()).train
    for scheme, windows in (("prefixes", "last"), ("windows", "sliding")):
        assert TrainBatches(training, scheme, 50, batch_size=256, windows=windows).num_targets == labels
