from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.clean import CleaningReport, Plan, apply, core, drop_missing, newest
from recsys.errors import DataError
from recsys.readers.events import MISSING_TIME, Events

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)


def events(rows, time=None, rating=None):
    user, item = (np.array([row[at] for row in rows], dtype=np.int32) for at in (0, 1))
    return Events(
        user=user,
        item=item,
        user_ids=np.arange(10),
        item_ids=np.arange(10),
        time=None if time is None else np.array(time, dtype=np.int64),
        rating=None if rating is None else np.array(rating, dtype=np.float32),
    )


def brute_core(rows, min_user, min_item):
    while True:
        users, items = Counter(user for user, _ in rows), Counter(item for _, item in rows)
        left = [row for row in rows if users[row[0]] >= min_user and items[row[1]] >= min_item]
        if len(left) == len(rows):
            return left
        rows = left


@given(rows=pairs, min_user=st.integers(0, 5), min_item=st.integers(0, 5))
def test_core_equals_dropping_by_hand(rows, min_user, min_item):
    log = events(rows)
    keep = core(log.user, log.item, min_user, min_item)
    assert [row for row, kept in zip(rows, keep, strict=True) if kept] == brute_core(rows, min_user, min_item)


@given(rows=pairs, count=st.integers(1, 4))
def test_newest_equals_slicing_by_hand(rows, count):
    rows = sorted(rows, key=lambda row: row[0])
    log = events(rows)
    expected = [row for user in range(7) for row in [row for row in rows if row[0] == user][-count:]]
    assert [row for row, kept in zip(rows, newest(log.user, count), strict=True) if kept] == expected


@pytest.mark.parametrize(("which", "kept"), [("all", [0, 1, 2, 3]), ("first", [0, 1, 3]), ("last", [1, 2, 3])])
def test_duplicates(which, kept):
    log = events([(0, 1), (0, 2), (0, 1), (1, 1)], time=[0, 1, 2, 3])
    left = apply(Plan(duplicates=which), log, CleaningReport())
    assert left.time.tolist() == kept


def test_each_step_is_counted():
    log = events([(0, 1), (0, 1), (0, 2), (1, 1), (1, 2), (2, 3)], rating=[5, 5, 4, 4, 5, np.nan])
    report = CleaningReport()
    plan = Plan(duplicates="first", min_rating=4, min_user=2, min_item=2, max_history=1)
    left = apply(plan, log, report)
    assert [(step.rows_in, step.rows_out) for step in report] == [(6, 5), (5, 4), (4, 4), (4, 2)]
    assert (report.steps[1].users_in, report.steps[1].users_out) == (3, 2)
    assert left.item.tolist() == [2, 2]
    table = str(report).splitlines()
    assert len(table) == 5 and "without rating" in table[2]
    assert CleaningReport.from_dict(report.to_dict()) == report


def test_missing_ids_and_times_are_counted_or_refused():
    log = events([(0, 1), (-1, 1), (1, -1), (1, 1)], time=[1, 2, 3, MISSING_TIME])
    report = CleaningReport()
    assert len(drop_missing(log, True, report)) == 1
    assert "1 without user" in report.steps[0].note and "1 without time" in report.steps[0].note
    with pytest.raises(DataError, match="clean"):
        drop_missing(log, False, report)
    with pytest.raises(DataError, match="left"):
        drop_missing(log.take(np.array([1, 2])), True, report)


def test_an_emptied_core_names_what_would_leave_something():
    log = events([(0, 1), (0, 2), (1, 1), (1, 2)])
    with pytest.raises(DataError, match="min_user=2, min_item=2"):
        apply(Plan(min_user=9, min_item=9), log, CleaningReport())


def test_rating_threshold_needs_ratings_and_events():
    with pytest.raises(DataError, match="rating="):
        apply(Plan(min_rating=4), events([(0, 1)]), CleaningReport())
    with pytest.raises(DataError, match="highest is 3"):
        apply(Plan(min_rating=4), events([(0, 1)], rating=[3]), CleaningReport())


@given(rows=pairs, most=st.integers(1, 8))
def test_users_with_more_events_than_max_user_are_dropped(rows, most):
    rows = sorted(rows, key=lambda row: row[0])
    counts = Counter(user for user, _ in rows)
    expected = [row for row in rows if counts[row[0]] <= most]
    if not rows:
        return
    report = CleaningReport()
    if not expected:
        with pytest.raises(DataError, match=f"shortest user has {min(counts.values())}"):
            apply(Plan(max_user=most), events(rows), report)
        return
    left = apply(Plan(max_user=most), events(rows), report)
    assert list(zip(left.user.tolist(), left.item.tolist(), strict=True)) == expected
    bots = [count for count in counts.values() if count > most]
    assert (f"{len(bots)} users, the longest with {max(bots)}" if bots else "") == report.steps[-1].note


def test_a_bot_goes_before_the_core_is_made():
    rows = [(0, item) for item in range(5)] + [(1, 0), (1, 1), (2, 0), (2, 1)]
    left = apply(Plan(max_user=4, min_item=2), events(rows), CleaningReport())
    assert left.user.tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="max_user"):
        Plan(min_user=5, max_user=4)


@pytest.mark.parametrize(
    "wrong", [{"max_user": 0}, {"max_user": True}, {"duplicates": []}, {"duplicates": ["exact", "x"]}]
)
def test_further_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


@pytest.mark.parametrize("wrong", [{"duplicates": "none"}, {"min_user": -1}, {"max_history": 0}, {"min_item": 2.5}])
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)
