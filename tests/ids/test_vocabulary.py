from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary, load_strings, save_strings

integers = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30)
texts = st.lists(st.text(max_size=8).filter(lambda text: text.encode("utf-8", "ignore").decode() == text), unique=True)


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@settings(max_examples=30, deadline=None)
@given(ids=integers, first=st.integers(0, 1))
def test_integers_round_trip(tmp_path_factory, ids, first):
    folder = tmp_path_factory.mktemp("vocabulary")
    written = Vocabulary(np.array(ids, dtype=np.int64), first)
    written.save(folder, "items")
    read = Vocabulary.load(folder, "items")
    rows = np.arange(first, first + len(ids))
    assert read.kind == "int" and len(read) == len(ids) and read.first == first
    assert read.raw(rows).tolist() == ids
    assert read.rows(ids).tolist() == rows.tolist()


@settings(max_examples=30, deadline=None)
@given(ids=texts, first=st.integers(0, 1))
def test_strings_round_trip(tmp_path_factory, ids, first):
    folder = tmp_path_factory.mktemp("vocabulary")
    Vocabulary(objects(ids), first).save(folder, "users")
    read = Vocabulary.load(folder, "users")
    rows = np.arange(first, first + len(ids))
    assert read.kind == "str"
    assert read.raw(rows).tolist() == ids
    assert read.rows(ids).tolist() == rows.tolist()
    assert read.ids.tolist() == ids


def test_shapes_and_unknown_ids():
    items = Vocabulary(np.array([30, 10, 20]), first=1)
    assert items.rows(np.array([[10, 99], [30, 20]])).tolist() == [[2, -1], [1, 3]]
    assert items.rows([]).tolist() == []
    assert items.rows([10, "x", None, 2.5, 20.0]).tolist() == [2, -1, -1, -1, 3]
    assert items.rows(np.array([10.0, np.nan])).tolist() == [2, -1]
    assert items.rows(np.array([10, 2**64 - 1], dtype=np.uint64)).tolist() == [2, -1]
    assert items.raw(np.array([[1], [3]])).tolist() == [[30], [20]]


def test_padding_has_no_id():
    items = Vocabulary(np.array([30, 10]), first=1)
    with pytest.raises(ValueError, match="padding"):
        items.raw(np.array([1, 0]))
    with pytest.raises(ValueError, match="row 3"):
        items.raw(np.array([3]))


def test_ids_of_the_other_type_are_refused_only_if_they_would_match():
    with pytest.raises(DataError, match="str"):
        Vocabulary(objects(["50", "172"]), 1).rows([50, 172])
    with pytest.raises(DataError, match="int"):
        Vocabulary(np.array([50, 172]), 1).rows(["50"])
    assert Vocabulary(objects(["50"]), 1).rows([7]).tolist() == [-1]
    assert Vocabulary(np.array([50]), 1).rows(["x", "7"]).tolist() == [-1, -1]


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), None, b"50", True, 10**400])
def test_odd_ids_are_unknown(odd):
    assert Vocabulary(objects(["50"]), 1).rows([odd]).tolist() == [-1]
    assert Vocabulary(np.array([50]), 1).rows([odd]).tolist() == [-1]


def test_one_id_or_lists_of_lists_are_no_list_of_ids():
    with pytest.raises(TypeError, match="one id"):
        Vocabulary(objects(["5", "0"]), 1).rows("50")
    with pytest.raises(DataError, match="a list too many"):
        Vocabulary(objects(["50"]), 1).rows([["50"]])


@pytest.mark.parametrize("ids", [np.array([1, 2, 1]), objects(["a", "a"]), objects(["a", 1]), np.zeros((2, 2), int)])
def test_what_is_no_set_of_ids_is_refused(ids):
    with pytest.raises(DataError):
        Vocabulary(ids, 1)


def test_damaged_files_are_told(tmp_path):
    Vocabulary(objects(["apple", "pear"]), 1).save(tmp_path, "items")
    blob = tmp_path / "items.blob.npy"
    blob.write_bytes(blob.read_bytes()[:-3])
    with pytest.raises(DataError):
        Vocabulary.load(tmp_path, "items")
    with pytest.raises(DataError):
        Vocabulary.load(tmp_path, "users")


def test_text_arrays_round_trip(tmp_path):
    words = objects(["", "Ünïcode", "a\nb", ""])
    save_strings(tmp_path, "title", words)
    assert load_strings(tmp_path, "title").tolist() == words.tolist()


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    Vocabulary(np.array([1, 2]), 1).save(tmp_path, "items")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError):
        Vocabulary(np.array([3, 4, 5]), 1).save(tmp_path, "items")
    assert Vocabulary.load(tmp_path, "items").ids.tolist() == [1, 2]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("ids", [["a", "b", "c", "d"], [7, 3, 9, 5]], ids=["str", "int"])
def test_removed_ids_keep_their_rows_and_may_come_again(ids: list, tmp_path) -> None:
    whole = Vocabulary(ids, 1)
    less = whole.without(whole.rows(ids[1:3]))
    assert less.rows(ids).tolist() == [1, -1, -1, 4] and whole.rows(ids).tolist() == [1, 2, 3, 4]
    assert less.raw(np.array([2, 4])).tolist() == [ids[1], ids[3]] and len(less) == 4
    assert less.alive.tolist() == [True, False, False, True] and less.digest != whole.digest
    again = less.extended([ids[2]])
    assert again.rows(ids).tolist() == [1, -1, 5, 4]
    with pytest.raises(DataError, match="already"):
        again.extended([ids[2]])
    for one in (less, again):
        one.save(tmp_path, "items")
        loaded = Vocabulary.load(tmp_path, "items")
        assert loaded.rows(ids).tolist() == one.rows(ids).tolist() and loaded.digest == one.digest
    assert again.kept().rows(ids).tolist() == [1, -1, 3, 2] and again.kept().alive.all()
    whole.save(tmp_path, "items")
    assert Vocabulary.load(tmp_path, "items").digest == whole.digest


def test_marks_of_removed_ids_belong_to_the_ids(tmp_path) -> None:
    Vocabulary(["a", "b", "a"], 0, np.array([False, True, True])).save(tmp_path, "ids")
    assert Vocabulary.load(tmp_path, "ids").rows(["a"]).tolist() == [2]
    np.save(tmp_path / "ids.alive.npy", np.array([True, True, True]))
    with pytest.raises(DataError, match="removed"):
        Vocabulary.load(tmp_path, "ids")
    with pytest.raises(DataError, match="repeat, such as 'a'"):
        Vocabulary(["a", "b", "a"], 0)
    with pytest.raises(DataError, match="marks"):
        Vocabulary(["a", "b"], 0, np.array([True]))
