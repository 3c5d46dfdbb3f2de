from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.audit import audit
from recsys.data.split import Split
from recsys.data.splitters import Given, GlobalTime, LeaveLast
from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary
from recsys.storage.folders import hashes


def split_of(prepared, splitter, **more):
    items = Vocabulary(np.arange(prepared.num_items) + 100, first=1)
    users = Vocabulary(np.array([f"u{row}" for row in range(prepared.num_users)], dtype=object), first=0)
    return Split.of(prepared, splitter, items, users, **more)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([LeaveLast(), LeaveLast(2, 2), GlobalTime(0.2, 0.2)]), st.integers(1, 6))
def test_held_out_against_slices(draw, seed, splitter, length):
    prepared = draw(seed, users=25, span=500)
    split = split_of(prepared, splitter)
    for part, begin, end in (
        (split.valid, split.train_stop, split.valid_stop),
        (split.test, split.valid_stop, prepared.offsets[1:]),
    ):
        assert part.users.tolist() == [user for user in range(prepared.num_users) if end[user] > begin[user]]
        index = np.random.default_rng(seed).permutation(len(part))
        batch = part.batch(index, length, frozenset({"times", "query_time", "weights"}))
        owner, seen = part.history(index)
        user, wanted = part.targets(index)
        for place, i in enumerate(index):
            row = part.users[i]
            history = slice(prepared.offsets[row], begin[row])
            n = min(length, history.stop - history.start)
            assert int(batch.lengths[place]) == n
            last = slice(history.stop - n, history.stop)
            assert batch.ids[place, :n].tolist() == prepared.items[last].tolist()
            assert batch.times[place, :n].tolist() == prepared.times[last].tolist()
            assert batch.weights[place, :n].tolist() == prepared.weights[last].tolist()
            assert not batch.ids[place, n:].any()
            assert int(batch.query_time[place]) == prepared.times[begin[row]] == part.query_time[i]
            assert (int(batch.rows[place]), int(batch.users[place])) == (i, row)
            assert seen[owner == place].tolist() == prepared.items[history].tolist()
            assert wanted[user == place].tolist() == sorted(set(prepared.items[begin[row] : end[row]].tolist()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_training_popularity_against_a_loop(draw, seed):
    prepared = draw(seed)
    split = split_of(prepared, LeaveLast())
    counts = np.zeros(prepared.num_items + 1, int)
    for user in range(prepared.num_users):
        for item in prepared.items[prepared.offsets[user] : split.train_stop[user]]:
            counts[item] += 1
    assert split.train.item_counts().tolist() == counts.tolist() == split.test.item_counts.tolist()
    assert split.train.num_events == counts.sum()


def test_the_test_input_contains_the_validation_item(prepare):
    split = split_of(prepare([[1, 2, 3, 4, 5], [6, 7]]), LeaveLast())
    assert split.train.history(0).tolist() == [1, 2, 3]
    assert split.valid.batch([0]).ids.tolist() == [[1, 2, 3]]
    assert split.test.batch([0]).ids.tolist() == [[1, 2, 3, 4]]
    assert split.train.history(1).tolist() == [6, 7]
    assert len(split.test) == 1


def test_held_out_events_cannot_be_gathered(prepare):
    train = split_of(prepare([[1, 2, 3, 4, 5], [6, 7, 8, 9]]), LeaveLast()).train
    users = np.array([0, 1])
    assert train.gather(users).ids.tolist() == [[1, 2, 3], [6, 7, 0]]
    assert train.gather(users, length=1).ids.tolist() == [[3], [7]]
    assert train.gather(users, start=np.array([1, 5]), stop=np.array([2, 7])).ids.tolist() == [[2, 0], [6, 7]]
    for start, stop in (([0, 5], [4, 7]), ([0, 4], [3, 7]), ([2, 5], [1, 7])):
        with pytest.raises(IndexError, match="training events"):
            train.gather(users, start=np.array(start), stop=np.array(stop))
    owner, items, times = train.events(np.array([1, 0]))
    assert (owner.tolist(), items.tolist(), times) == ([0, 0, 1, 1, 1], [6, 7, 1, 2, 3], None)
    with pytest.raises(ValueError, match="read-only"):
        train.stop[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        train.history(0)[0] = 5


def test_query_time_of_a_user_without_training_events_is_nobodys(prepare):
    prepared = prepare([[1, 2], [3]], times=[[10, 20], [30]], parts=[[0, 2], [2]])
    batch = split_of(prepared, Given()).train.gather(np.array([0, 1]), needs=frozenset({"query_time"}))
    assert batch.query_time.tolist() == [10, 0]
    assert batch.lengths.tolist() == [1, 0]


def test_cold_users_are_kept_with_an_empty_history(prepare):
    split = split_of(prepare([[1, 2], [3]], times=[[10, 20], [30]]), GlobalTime(0, 0.5))
    assert split.test.history_lengths.tolist() == [1, 0]
    batch = split.test.batch(np.array([1]), 5)
    assert (batch.ids.tolist(), batch.lengths.tolist()) == ([[0]], [0])
    assert len(split.valid) == 0
    assert len(split.test.batch(np.zeros(0, int), 5)) == 0


def test_subset_keeps_the_task(draw):
    test = split_of(draw(5), LeaveLast()).test
    some = test.subset(np.array([3, 1]))
    assert some.users.tolist() == test.users[[3, 1]].tolist()
    assert some.batch(np.array([0])).ids.tolist() == test.batch(np.array([3])).ids.tolist()
    assert len(test.subset(test.users < 5)) == (test.users < 5).sum()


def test_missing_and_unknown_fields(prepare):
    split = split_of(prepare([[1, 2, 3]], order="file"), LeaveLast())
    with pytest.raises(DataError, match="times"):
        split.test.batch([0], needs=frozenset({"times"}))
    with pytest.raises(ValueError, match="colour"):
        split.test.batch([0], needs=frozenset({"colour"}))
    assert split.test.query_time is None


def test_saved_split_comes_back_whole(draw, tmp_path):
    prepared = draw(6)
    text = {"title": np.array(["", *(f"item é {row}" for row in range(prepared.num_items))], dtype=object)}
    split = split_of(prepared, LeaveLast(), data_hash="abc", name="small", item_text=text)
    split = Split(**{**split.__dict__, "audit": audit(split)})
    split.save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split", verify=True)
    assert loaded.train_stop.tolist() == split.train_stop.tolist()
    assert loaded.valid_stop.tolist() == split.valid_stop.tolist()
    assert (loaded.protocol, loaded.data_hash, loaded.name) == (split.protocol, "abc", "small")
    assert loaded.item_text["title"].tolist() == text["title"].tolist()
    assert str(loaded.audit) == str(split.audit)
    assert loaded.items.raw(np.array([1, 2])).tolist() == [100, 101]
    assert loaded.test.batch(np.arange(3)).ids.tolist() == split.test.batch(np.arange(3)).ids.tolist()


def test_damaged_split_folder(draw, tmp_path):
    split_of(draw(6), LeaveLast()).save(tmp_path / "split")
    (tmp_path / "split" / "stops.npy").write_bytes(b"")
    with pytest.raises(DataError):
        Split.load(tmp_path / "split")


@pytest.fixture
def saved(draw, tmp_path):
    prepared = draw(3, users=12, span=200)
    split_of(prepared, LeaveLast()).save(tmp_path / "split")
    return tmp_path / "split"


def vouched(folder):
    """The manifests say that what is there now is what was written."""
    for inner in (folder / "prepared", folder):
        manifest = json.loads((inner / "manifest.json").read_text())
        apart = ("prepared", "manifest.json") if inner == folder else ("manifest.json",)
        manifest["files"] = hashes(inner, apart)
        (inner / "manifest.json").write_text(json.dumps(manifest))


def test_hostile_9_a_flipped_bit_anywhere_in_a_split_is_told(saved, tmp_path):
    for path in sorted(path for path in saved.rglob("*") if path.is_file() and path.name != "manifest.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match="SHA-256"):
            Split.load(saved)
        path.write_bytes(whole)
    Split.load(saved)


HARMS = {
    "offsets": lambda a: a[[0, 2, 1, *range(3, len(a))]], "offsets negative": lambda a: np.where(a == a[1], -1, a),
    "items": lambda a: np.where(np.arange(len(a)) == 3, a.max() + 5, a), "items zero": lambda a: a * 0,
    "items negative": lambda a: -a, "items short": lambda a: a[:-1], "items wide": lambda a: a.astype(np.int64),
    "stops": lambda a: a - 1000, "stops late": lambda a: a + 1000, "stops swapped": lambda a: a[::-1],
    "stops short": lambda a: a[:, :-1], "stops flat": lambda a: a.ravel(), "times short": lambda a: a[1:],
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("verify", [True, False])
def test_hostile_9_a_split_that_makes_no_sense_is_refused_however_it_is_hashed(saved, harm, verify):
    name = harm.split()[0]
    path = saved / "stops.npy" if name == "stops" else saved / "prepared" / f"{name}.npy"
    array = np.load(path)
    np.save(path, HARMS[harm](array).astype(array.dtype if "wide" not in harm else np.int64))
    vouched(saved)
    with pytest.raises(DataError, match=str(saved.name)):
        Split.load(saved, verify)


@pytest.mark.parametrize("change", [{"protocol": "x"}, {"protocol": None}, {"name": 7, "protocol": []}])
def test_hostile_14_facts_of_a_split_that_make_no_sense_are_refused(saved, change):
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(DataError, match="split"):
        Split.load(saved)


def test_review_a_missing_text_is_missing_after_saving(draw, tmp_path):
    prepared = draw(3, users=5)
    texts = np.array(["", None, float("nan"), "None", *["x"] * (prepared.num_items - 3)], dtype=object)
    split_of(prepared, LeaveLast(), item_text={"title": texts}).save(tmp_path / "split")
    found = Split.load(tmp_path / "split").item_text["title"].tolist()
    assert found[:4] == ["", None, None, "None"] and len(found) == prepared.num_items + 1


def test_splits_of_earlier_versions_are_loaded(saved, tmp_path):
    manifest = json.loads((saved / "manifest.json").read_text())
    inner = hashes(saved / "prepared")
    manifest["files"] |= {f"prepared/{name}": entry for name, entry in inner.items()}  # as it was written once
    (saved / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(saved, tmp_path / "copy")
    assert Split.load(tmp_path / "copy").num_users == 12
