from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.audit import audit
from recsys.data.dataset import Dataset
from recsys.data.repeats import repeated_rows
from recsys.data.splitters import Given, LeaveLast
from recsys.ids.ranges import blocks

T = 1_700_000_000
K3 = [
    ("a", "x", T),
    ("a", "x", T),
    ("a", "y", T + 1),
    ("a", "x", T + 5),
    ("b", "x", T),
    ("b", "y", T + 1),
    ("b", "z", T + 2),
]
rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=25)


def scan(rows, **settings):
    frame = pl.DataFrame(rows, schema=["user", "item", "time", *settings.pop("more", [])], orient="row")
    return Dataset.scan(frame, **{"time": "time", **settings})


def histories(data):
    loaded = data.prepare()
    parts = np.split(loaded.items.raw(loaded.prepared.items), loaded.prepared.offsets[1:-1])
    return {user: part.tolist() for user, part in zip(loaded.users.ids.tolist(), parts, strict=True)}


@given(rows, st.booleans(), st.booleans())
def test_repeated_rows_by_hand(values, by_time, timed):
    values = sorted(values, key=(lambda row: (row[0], row[2])) if by_time else (lambda row: row[0]))
    owner, items, times = (np.array([row[at] for row in values], np.int64) for at in range(3))
    again, first = repeated_rows(owner, items, times if timed else None)
    expected = {}
    for at, row in enumerate(values):
        if timed:
            expected[at] = values.index(row)
        else:
            expected[at] = expected[at - 1] if at and values[at - 1][:2] == row[:2] else at
    assert dict(zip(again.tolist(), first.tolist(), strict=True)) == {a: f for a, f in expected.items() if a != f}


@given(rows)
def test_repeated_rows_without_order(values):
    values = sorted(values, key=lambda row: row[0])
    owner, items = (np.array([row[at] for row in values], np.int64) for at in range(2))
    again, _ = repeated_rows(owner, items, None, ordered=False)
    assert again.tolist() == [at for at, row in enumerate(values) if row[:2] in [one[:2] for one in values[:at]]]


@pytest.mark.parametrize(
    ("duplicates", "left"),
    [
        ("all", list("xxyx")),
        ("exact", list("xyx")),
        (["exact"], list("xyx")),
        ("first", list("xy")),
        (["exact", "first"], list("xy")),
        (["exact", "last"], list("yx")),
    ],
)
def test_k3_a_rows_logged_twice(duplicates, left):
    data = scan(K3).clean(duplicates=duplicates)
    assert histories(data) == {"a": left, "b": ["x", "y", "z"]}
    if duplicates == ["exact", "first"]:
        assert [step.rows_in - step.rows_out for step in data.report] == [0, 1, 1]
    assert histories(scan(K3).clean(duplicates="exact").clean(duplicates="last"))["a"] == ["y", "x"]


def test_k3_a_rows_logged_twice_are_counted_where_they_stay():
    data = scan(K3)
    assert any(note.startswith("1 events have the user, item and time") for note in data.report.notes)
    found = data.split(LeaveLast()).audit["rows logged twice"]
    assert found.level == "note" and found.numbers["events"] == 1
    cleaned = data.clean(duplicates="exact")
    assert not any("exact" in note for note in cleaned.report.notes)
    found = cleaned.split(LeaveLast()).audit["rows logged twice"]
    assert found.level == "ok" and found.numbers["events"] == 0


@given(rows)
def test_k3_exact_duplicates_go_and_repeats_stay(values):
    if not values:
        return
    left = scan([(user, item, T + time) for user, item, time in values]).clean(duplicates="exact").prepare()
    expected = {}
    for user, item, time in dict.fromkeys(values):
        expected.setdefault(user, []).append((time, item))
    found = np.split(left.items.raw(left.prepared.items), left.prepared.offsets[1:-1])
    for user, items in zip(left.users.ids.tolist(), found, strict=True):
        assert items.tolist() == [item for _, item in sorted(expected[user], key=lambda pair: pair[0])]


def test_k3_events_that_differ_in_the_last_digit_are_two():
    rows = [("a", "x", T * 10**6), ("a", "x", T * 10**6 + 1), ("a", "x", T * 10**6 + 1)]
    assert histories(scan(rows).clean(duplicates="exact")) == {"a": ["x", "x"]}


def test_k3_ratings_and_weights_are_not_compared_and_the_first_row_stays():
    rows = [("a", "x", T, 5, 1.0), ("a", "x", T, 1, 1.0), ("a", "y", T, 2, 2.0)]
    data = scan(rows, more=["stars", "w"], rating="stars", weight="w").clean(duplicates="exact", min_rating=2)
    assert histories(data) == {"a": ["x", "y"]}
    assert "1 of them with another rating" in data.report.steps[1].note


@pytest.mark.parametrize(("order", "left"), [("file", ["x", "y", "x"]), ("none", ["x", "y"])])
def test_k3_without_times(order, left):
    frame = pl.DataFrame({"user": list("aaaa"), "item": list("xxyx")})
    data = Dataset.scan(frame, order=order)
    assert histories(data.clean(duplicates="exact")) == {"a": left}
    assert any("exact" in note for note in data.report.notes)


def test_k3_days_in_a_file_of_its_own_order():
    rows = [("a", "x", T + 9), ("a", "y", T), ("a", "x", T + 9)]
    assert histories(scan(rows, order="file").clean(duplicates="exact")) == {"a": ["x", "y"]}


def parts(train, valid, test):
    frames = (pl.DataFrame(part, schema=["user", "item", "time"], orient="row") for part in (train, valid, test))
    return Dataset.scan(splits=dict(zip(("train", "valid", "test"), frames, strict=True)), time="time")


def test_k3_one_event_in_two_parts_is_named():
    data = parts(
        [("a", "x", T), ("a", "y", T + 1), ("b", "x", T)],
        [("a", "y", T + 1), ("b", "z", T + 3)],
        [("a", "z", T + 9), ("b", "z", T + 3), ("b", "z", T + 3), ("b", "x", T + 8)],
    )
    found = data.split(Given(global_time=False)).audit["rows logged twice"]
    assert found.level == "note" and found.numbers == {"events": 3, "in two parts": 3, "targets": 2}
    cleaned = data.clean(duplicates="exact")
    assert histories(cleaned) == {"a": ["x", "y", "z"], "b": ["x", "z", "x"]}
    assert cleaned.prepare().prepared.parts.tolist() == [0, 1, 2, 0, 2, 2]
    assert "3 of them with another part" in cleaned.report.steps[1].note


def test_the_audit_counts_block_by_block(monkeypatch):
    log = [(user, item, T + time) for user in range(9) for item in range(2) for time in (0, 0, user % 2)]
    split = scan(log).split(LeaveLast(), audit=False)
    whole = audit(split)["rows logged twice"]
    monkeypatch.setattr("recsys.data.audit.blocks", lambda sizes: blocks(sizes, budget=7))
    assert audit(split)["rows logged twice"] == whole and whole.numbers["events"] == 9 * 2 + 5 * 2


def test_k3_a_genuine_repeat_in_another_part_is_none():
    data = parts([("a", "x", T)], [("a", "y", T + 1)], [("a", "x", T + 2)])
    assert data.split(Given()).audit["rows logged twice"].numbers["in two parts"] == 0
