from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest

from recsys.data.prepared import Prepared
from recsys.errors import DataError
from recsys.ids.ranges import blocks, spread

FIELDS = ("items", "offsets", "times", "weights", "parts")


def same(left: Prepared, right: Prepared) -> bool:
    for name in FIELDS:
        a, b = getattr(left, name), getattr(right, name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not np.array_equal(a, b))):
            return False
    return left.num_items == right.num_items and left.order == right.order


def test_saved_and_loaded_is_the_same_and_stays_on_disk(draw, tmp_path):
    prepared = draw(1)
    prepared.save(tmp_path / "cache")
    loaded = Prepared.load(tmp_path / "cache", verify=True)
    assert same(prepared, loaded)
    assert isinstance(loaded.items, np.memmap)
    assert not loaded.items.flags.writeable
    assert (loaded.num_users, loaded.num_events) == (20, len(prepared.items))


def test_optional_arrays_stay_away(prepare, tmp_path):
    prepared = prepare([[1, 2], [], [2]], order="file", parts=[[0, 2], [], [1]])
    prepared.save(tmp_path / "cache")
    loaded = Prepared.load(tmp_path / "cache")
    assert same(prepared, loaded)
    assert loaded.times is None


def test_no_events_at_all(prepare, tmp_path):
    prepare([[], []], times=[[], []]).save(tmp_path / "cache")
    assert Prepared.load(tmp_path / "cache", verify=True).num_users == 2


def test_saving_replaces_the_whole_folder(prepare, tmp_path):
    prepare([[1, 2]], times=[[1, 2]]).save(tmp_path / "cache")
    prepare([[1]], num_items=4).save(tmp_path / "cache")
    assert Prepared.load(tmp_path / "cache").times is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_worker_processes_get_the_folder_not_a_copy(draw, tmp_path):
    prepared = draw(2)
    assert same(pickle.loads(pickle.dumps(prepared)), prepared)
    prepared.save(tmp_path / "cache")
    blob = pickle.dumps(Prepared.load(tmp_path / "cache"))
    assert len(blob) < 500
    assert same(pickle.loads(blob), prepared)


@pytest.mark.parametrize("name", ["items", "offsets", "times"])
def test_truncated_file(draw, tmp_path, name):
    draw(3).save(tmp_path / "cache")
    path = tmp_path / "cache" / f"{name}.npy"
    os.truncate(path, path.stat().st_size - 3)
    with pytest.raises(DataError, match="bytes"):
        Prepared.load(tmp_path / "cache")


def test_missing_file_and_missing_folder(draw, tmp_path):
    draw(3).save(tmp_path / "cache")
    (tmp_path / "cache" / "times.npy").unlink()
    with pytest.raises(DataError, match=r"times\.npy"):
        Prepared.load(tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        Prepared.load(tmp_path / "elsewhere")


def test_changed_bytes_are_found_by_verify(draw, tmp_path):
    draw(3).save(tmp_path / "cache")
    path = tmp_path / "cache" / "items.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    Prepared.load(tmp_path / "cache")
    with pytest.raises(DataError):
        Prepared.load(tmp_path / "cache", verify=True)


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("kind", "recsys.other")])
def test_other_version_or_kind(draw, tmp_path, key, value):
    draw(3).save(tmp_path / "cache")
    path = tmp_path / "cache" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(DataError, match=str(value)):
        Prepared.load(tmp_path / "cache")


def test_full_disk_leaves_the_old_cache(draw, prepare, tmp_path, monkeypatch):
    old = draw(4)
    old.save(tmp_path / "cache")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        prepare([[1]]).save(tmp_path / "cache")
    monkeypatch.undo()
    assert same(Prepared.load(tmp_path / "cache", verify=True), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"items": np.array([1, 2, 1])}, "int32"),
        ({"offsets": np.array([0, 2], np.int64)}, "offsets"),
        ({"offsets": np.zeros(0, np.int64)}, "offsets"),
        ({"times": np.array([1], np.int64)}, "times"),
        ({"order": "random"}, "order"),
    ],
)
def test_arrays_that_do_not_fit(changes, word):
    fields = {"items": np.array([1, 2, 1], np.int32), "offsets": np.array([0, 2, 3], np.int64), "num_items": 2}
    with pytest.raises(DataError, match=word):
        Prepared(**{**fields, **changes})


def test_check_reads_the_events(prepare):
    prepare([[1, 2], [3]], times=[[2, 2], [1]]).check()
    with pytest.raises(DataError, match="rows"):
        prepare([[1, 2], [3]], num_items=2).check()
    with pytest.raises(DataError, match="backwards"):
        prepare([[1, 2], [3]], times=[[2, 1], [1]]).check()


def test_spread_and_blocks():
    start, stop = np.array([4, 0, 7]), np.array([6, 0, 8])
    owner, index = spread(start, stop)
    assert owner.tolist() == [0, 0, 2]
    assert index.tolist() == [4, 5, 7]
    sizes = np.array([3, 0, 5, 2, 9, 0, 1])
    pieces = list(blocks(sizes, budget=6))
    assert np.concatenate([np.arange(7)[piece] for piece in pieces]).tolist() == list(range(7))
    assert all(sizes[piece].sum() <= 6 or piece.stop - piece.start <= 2 for piece in pieces)
    assert list(blocks(np.zeros(0, np.int64))) == []
