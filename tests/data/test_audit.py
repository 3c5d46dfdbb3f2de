from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.audit import audit
from recsys.data.findings import Audit
from recsys.data.split import Split
from recsys.data.splitters import Given, GlobalTime, LeaveLast
from recsys.errors import LeakageError


def split_of(prepared, splitter, **changes):
    return Split(**{**Split.of(prepared, splitter, None, None).__dict__, **changes})


def by_loop(split):
    """The counted findings of a leave-last split, one event at a time."""
    p, found = split.prepared, {"ties": 0, "decided": 0, "repeats": 0, "cold": 0, "future": []}
    trained = [e for u in range(p.num_users) for e in range(p.offsets[u], split.train_stop[u])]
    known = {int(p.items[e]) for e in trained}
    for u in range(p.num_users):
        start, end, cut = int(p.offsets[u]), int(p.offsets[u + 1]), int(split.valid_stop[u])
        for e in range(start, end):
            near = [f for f in (e - 1, e + 1) if start <= f < end]
            found["ties"] += any(p.times[f] == p.times[e] for f in near)
        if cut < end:
            found["decided"] += p.times[cut] == p.times[cut - 1]
            found["repeats"] += p.items[cut] in p.items[start:cut]
            found["cold"] += int(p.items[cut]) not in known
            found["future"].append(np.mean([p.times[e] > p.times[cut] for e in trained]))
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_counts_against_a_loop(draw, seed):
    split = split_of(draw(seed, num_items=30), LeaveLast())
    found, expected = audit(split), by_loop(split)
    assert found["ties"].numbers["events"] == expected["ties"]
    assert found["ties"].numbers["targets"] == expected["decided"]
    assert found["repeats"].numbers["targets"] == expected["repeats"]
    assert found["cold items"].numbers["targets"] == expected["cold"]
    assert found["future in training"].numbers["share"] == pytest.approx(np.mean(expected["future"]))
    assert found["untested users"].numbers["users"] == split.num_users - len(split.test)


def test_a_clean_global_split_has_no_future(draw):
    found = audit(split_of(draw(1, users=40, span=300), GlobalTime(0.2, 0.2)))
    assert found["future in training"].level == "ok"
    assert not found.leaks


def test_other_users_future_is_a_note_under_leave_last(prepare):
    prepared = prepare([[1, 2, 3], [1, 2, 3]], times=[[1, 2, 3], [11, 12, 13]])
    found = audit(split_of(prepared, LeaveLast()))
    assert found["future in training"].level == "note"
    assert found["future in training"].numbers == {"share": 0.25, "users": 1}


def test_future_in_a_given_split_is_a_leak_unless_declared(prepare):
    prepared = prepare([[1, 2, 3], [1, 2, 3]], times=[[1, 2, 3], [11, 12, 13]], parts=[[0, 1, 2], [0, 1, 2]])
    with pytest.raises(LeakageError, match="later"):
        audit(split_of(prepared, Given()))
    assert audit(split_of(prepared, Given(global_time=False)))["future in training"].level == "note"
    aligned = prepare([[1, 2, 3], [1, 2, 3]], times=[[1, 5, 9], [2, 6, 9]], parts=[[0, 1, 2], [0, 1, 2]])
    assert audit(split_of(aligned, Given()))["future in training"].level == "ok"


def test_a_users_own_future_is_a_leak(prepare):
    prepared = prepare([[1, 2, 3], [1, 2, 3]], times=[[1, 2, 3], [4, 9, 8]], parts=[[0, 0, 2], [0, 0, 2]])
    with pytest.raises(LeakageError, match="1 users"):
        audit(split_of(prepared, Given(global_time=False)))


class Own:
    """A splitter of one's own: the last event of each user is test, or the last share of each user's."""

    def __init__(self, share=None, **protocol):
        self.share, self.kept = share, protocol

    def apply(self, prepared):
        end, lengths = prepared.offsets[1:], np.diff(prepared.offsets)
        held = np.minimum(lengths, 1) if self.share is None else np.floor(lengths * self.share).astype(np.int64)
        return end - held, end - held

    def protocol(self, prepared):
        return {"name": "my own", **self.kept}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 0.3]))
def test_an_own_splitter_is_told_by_what_it_does(draw, seed, share):
    prepared = draw(seed, span=200)
    split = split_of(prepared, Own(share))
    owner = np.repeat(np.arange(prepared.num_users), np.diff(prepared.offsets))
    trained = np.arange(prepared.num_events) < split.train_stop[owner]
    mixed = prepared.times[trained].max() > prepared.times[~trained].min()
    found = audit(split)
    assert found["future in training"].level == ("note" if mixed else "ok")
    promised = split_of(prepared, Own(share, global_time=True))
    if mixed:
        with pytest.raises(LeakageError, match="global_time"):
            audit(promised)
    else:
        assert audit(promised)["future in training"].level == "ok"


@pytest.mark.parametrize("protocol", [{}, {"global_time": False}, {"global_time": None}])
def test_an_own_cut_per_user_is_a_note(prepare, protocol):
    prepared = prepare([[1, 2, 3], [1, 2, 3]], times=[[1, 2, 3], [11, 12, 13]])
    found = audit(split_of(prepared, Own(**protocol)))["future in training"]
    assert found.level == "note" and found.numbers["users"] == 1


def test_an_own_splitter_that_cuts_at_one_moment_is_fine(prepare):
    prepared = prepare([[1, 2], [1, 2]], times=[[1, 20], [11, 30]])
    assert audit(split_of(prepared, Own()))["future in training"].level == "ok"


@pytest.mark.parametrize(
    "stops",
    [
        {"train_stop": np.array([4, 5])},  # training runs into validation's successor
        {"valid_stop": np.array([1, 6])},
        {"train_stop": np.array([-1, 5])},
        {"valid_stop": np.array([3, 9])},
    ],
)
def test_overlapping_ranges_are_a_leak(prepare, stops):
    split = split_of(prepare([[1, 2, 3, 4], [1, 2, 3]], order="file"), LeaveLast(), **stops)
    with pytest.raises(LeakageError, match="own input"):
        audit(split)


def test_cold_users_and_items(prepare):
    prepared = prepare([[1, 2, 3], [4], [1, 5]], times=[[1, 2, 30], [31], [20, 32]])
    found = audit(split_of(prepared, GlobalTime("1970-01-01T00:00:00.010", "1970-01-01T00:00:00.025")))
    assert found["cold users"].numbers == {"users": 2, "empty histories": 1}
    assert found["cold items"].numbers == {"targets": 3, "items": 3}


def test_without_times_it_says_what_cannot_be_checked(prepare):
    found = audit(split_of(prepare([[1, 2, 1], [3]], order="file"), LeaveLast()))
    assert "cannot be checked" in found["future in training"].text
    assert "cannot" in found["ties"].text
    assert found["repeats"].numbers == {"targets": 1}
    assert found["untested users"].numbers == {"users": 1}


def test_counts_against_the_card(prepare):
    split = split_of(prepare([[1, 2, 1], [3]], order="file"), LeaveLast())
    assert audit(split, expected={"users": 2, "items": 3, "interactions": 4})["counts"].level == "ok"
    wrong = audit(split, expected={"users": 2, "items": 5})["counts"]
    assert wrong.level == "note"
    assert "5 items" in wrong.text
    assert audit(split, expected={"items": 5}, counts={"items": 5})["counts"].level == "ok"


def test_printed_in_a_few_lines_and_kept_as_json(draw):
    found = audit(split_of(draw(3), LeaveLast(), name="small"))
    lines = str(found).splitlines()
    assert len(lines) <= 10
    assert "small" in lines[0]
    assert not re.search(r"np\.|nan", str(found))
    assert str(Audit.from_dict(json.loads(json.dumps(found.to_dict())))) == str(found)
    with pytest.raises(KeyError, match="ties"):
        found["nothing"]
