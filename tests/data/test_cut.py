from dataclasses import replace

import numpy as np
import pytest

from recsys.data.cut import Cut
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import GlobalTime, LeaveLast
from recsys.ids.vocabulary import Vocabulary


def names(prefix, count, first):
    ids = np.empty(count, object)
    ids[:] = [f"{prefix}{i}" for i in range(count)]
    return Vocabulary(ids, first)


def split_of(splitter, seed=0, items="i", **changes):
    rng = np.random.default_rng(seed)
    offsets = np.arange(0, 61, 6, dtype=np.int64)
    times = np.sort(rng.integers(0, 10**6, (10, 6)), axis=1).ravel().astype(np.int64)
    prepared = Prepared(rng.integers(1, 8, 60).astype(np.int32), offsets, 7, times=times, **changes)
    return Split.of(prepared, splitter, names(items, 7, 1), names("u", 10, 0))


def test_b2_the_same_protocol_with_other_training_events_is_another_cut():
    split = split_of(LeaveLast())
    half = replace(split, train_stop=split.train_stop - 2, valid_stop=split.valid_stop - 2)
    assert split.protocol == half.protocol
    assert split.cut.digest != half.cut.digest
    assert split.cut.digest == split_of(LeaveLast()).cut.digest


@pytest.mark.parametrize("changed", ["items", "weights", "times", "ids"])
def test_b2_a_cut_is_decided_by_every_event_and_id(changed):
    split = split_of(LeaveLast())
    prepared = split.prepared
    if changed == "ids":
        other = split_of(LeaveLast(), items="x")
    elif changed == "weights":
        other = split_of(LeaveLast(), weights=np.ones(60, np.float32))
    else:
        array = np.array(getattr(prepared, changed))
        array[0] += 1 if changed == "times" or array[0] < 7 else -1
        other = replace(split, prepared=replace(prepared, **{changed: array}))
    assert other.cut.digest != split.cut.digest


def test_k6_targets_that_training_saw_are_counted_one_by_one():
    leave, time = split_of(LeaveLast()), split_of(GlobalTime(0.1, 0.3))
    seen = sum(
        1
        for user, start, stop in zip(time.test.users, time.test.target_start, time.test.target_stop, strict=True)
        for event in range(start, stop)
        if event < leave.train_stop[user]
    )
    assert seen > 0
    assert time.test.seen_by(leave.cut) == seen
    assert time.test.seen_by(time.cut) == 0


def test_k6_without_the_ends_of_training_only_later_targets_are_known_to_be_unseen():
    leave, time = split_of(LeaveLast()), split_of(GlobalTime(0.1, 0.3))
    bare = Cut.from_dict(leave.cut.to_dict())
    assert bare == leave.cut
    assert time.test.seen_by(bare) is None
    assert time.test.seen_by(Cut.from_dict(time.cut.to_dict())) == 0
    early = replace(bare, newest=-1)
    assert time.test.seen_by(early) == 0


def test_k1_digests_of_ids_tell_order_kind_and_borders_apart():
    def digest(ids):
        return Vocabulary(np.array(ids) if isinstance(ids[0], int) else np.array(ids, object), 1).digest

    different = [["a", "b"], ["b", "a"], ["ab", ""], ["1", "2"], [1, 2], [2, 1], ["a"], ["a", "b", "c"]]
    assert len({digest(ids) for ids in different}) == len(different)
    assert digest(["a", "b"]) == digest(["a", "b"])
