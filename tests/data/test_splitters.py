from __future__ import annotations

import json
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.splitters import Given, GlobalTime, LeaveLast
from recsys.errors import DataError, LeakageError

DAY = 86_400_000


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 2), st.integers(1, 2), st.integers(0, 3))
def test_leave_last_against_slices(draw, seed, valid, test, min_train):
    prepared = draw(seed)
    train_stop, valid_stop = LeaveLast(valid, test, min_train).apply(prepared)
    short = 0
    for user in range(prepared.num_users):
        start, end = prepared.offsets[user : user + 2]
        events = list(range(start, end))
        if len(events) < min_train + valid + test:
            expected = (events, [], [])
            short += 1
        else:
            cut = len(events) - test
            expected = (events[: cut - valid], events[cut - valid : cut], events[cut:])
        found = (
            range(start, train_stop[user]),
            range(train_stop[user], valid_stop[user]),
            range(valid_stop[user], end),
        )
        assert tuple(list(part) for part in found) == expected
    assert LeaveLast(valid, test, min_train).protocol(prepared)["users_too_short"] == short


def test_leave_last_needs_order_and_length(prepare):
    with pytest.raises(DataError, match="order"):
        LeaveLast().apply(prepare([[1, 2, 3]], order="none"))
    with pytest.raises(DataError, match="longest history has 2"):
        LeaveLast().apply(prepare([[1, 2], [1]]))
    with pytest.raises(ValueError, match="test"):
        LeaveLast(test=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(0.1, 0.1), (0.2, 0.3), (0.0, 0.4)]))
def test_global_time_shares_against_a_loop(draw, seed, shares):
    prepared = draw(seed, users=30, span=60)
    splitter = GlobalTime(*shares)
    valid_cut, test_cut = splitter.cuts(prepared)
    train_stop, valid_stop = splitter.apply(prepared)
    for user in range(prepared.num_users):
        start, end = prepared.offsets[user : user + 2]
        times = prepared.times[start:end]
        assert train_stop[user] == start + sum(times < valid_cut)
        assert valid_stop[user] == start + sum(times < test_cut)
    # The cut is the latest that gives at least the share, equal times staying together.
    tested = prepared.times >= test_cut
    assert tested.mean() >= shares[1] - 1e-9
    assert (prepared.times > test_cut).mean() < shares[1]


def test_global_time_by_date(prepare):
    first = 1_420_070_400_000  # 2015-01-01
    prepared = prepare([[1, 2, 3], [4]], times=[[first, first + DAY, first + 2 * DAY], [first + 2 * DAY]])
    train_stop, valid_stop = GlobalTime("2015-01-02", "2015-01-03").apply(prepared)
    assert (train_stop.tolist(), valid_stop.tolist()) == ([1, 3], [2, 3])
    assert (
        GlobalTime("2015-01-02", "2015-01-03T00:00:00+00:00").protocol(prepared)["test_from"].startswith("2015-01-03")
    )
    json.dumps(GlobalTime(0.2, "2015-01-03").protocol(prepared))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("2014-01-01", "2015-01-03"), "training"), (("2015-01-02", "2016-01-01"), "test")],
)
def test_global_time_refuses_an_empty_part(prepare, arguments, word):
    first = 1_420_070_400_000
    prepared = prepare([[1, 2, 3]], times=[[first, first + DAY, first + 2 * DAY]])
    with pytest.raises(DataError, match=word):
        GlobalTime(*arguments).apply(prepared)


@pytest.mark.parametrize("arguments", [(0.1, "2015-99-01"), ("soon", 0.1), (0.1, 1.5), (0.1, date(2015, 1, 1))])
def test_global_time_refuses_what_is_no_moment_before_anything_is_read(arguments):
    with pytest.raises(ValueError, match="ISO date"):
        GlobalTime(*arguments)


def test_global_time_needs_sorted_times(prepare):
    with pytest.raises(DataError, match="times"):
        GlobalTime().apply(prepare([[1, 2, 3]], order="file"))
    with pytest.raises(DataError, match="order"):
        GlobalTime().apply(prepare([[1, 2, 3]], times=[[3, 1, 2]], order="file"))
    with pytest.raises(DataError, match="after"):
        GlobalTime("2020-01-02", "2020-01-01").cuts(prepare([[1]], times=[[5]]))
    with pytest.raises(ValueError, match="ISO"):
        GlobalTime(0.1, "soon").cuts(prepare([[1]], times=[[5]]))
    with pytest.raises(ValueError, match="share"):
        GlobalTime(0.1, 1.5)


def test_given_follows_the_parts(prepare):
    prepared = prepare([[1, 2, 3, 4], [], [5], [6, 7]], parts=[[0, 0, 1, 2], [], [2], [0, 2]])
    train_stop, valid_stop = Given().apply(prepared)
    assert train_stop.tolist() == [2, 4, 4, 6]
    assert valid_stop.tolist() == [3, 4, 4, 6]


def test_given_refuses_parts_out_of_order_or_missing(prepare):
    with pytest.raises(LeakageError, match="user row 1"):
        Given().apply(prepare([[1, 2], [1, 2, 3]], parts=[[0, 2], [0, 2, 1]]))
    with pytest.raises(DataError, match="LeaveLast"):
        Given().apply(prepare([[1, 2]]))
    with pytest.raises(DataError, match="test"):
        Given().apply(prepare([[1, 2]], parts=[[0, 1]]))
    assert Given().apply(prepare([[1, 2], [3, 4]], parts=[[0, 2], [0, 2]]))[0].dtype == np.int64
