import subprocess
import sys

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.ids.vectors import GrowingMatrix, Vectors
from recsys.ids.vocabulary import Vocabulary


def slowly(vectors, vocabulary):
    """Reference: one id at a time."""
    at = {key: row for row, key in enumerate(vectors.ids.tolist())}
    matrix = np.zeros((vocabulary.first + len(vocabulary), vectors.width), np.float32)
    known = np.zeros(len(matrix), bool)
    for row, key in enumerate(vocabulary.ids.tolist(), vocabulary.first):
        if key in at:
            matrix[row], known[row] = vectors.array[at[key]], True
    return matrix, known


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_aligned_equals_one_at_a_time(monkeypatch, kind, first):
    monkeypatch.setattr("recsys.ids.vectors._CHUNK", 7)
    random = np.random.default_rng(0)
    have, ask = random.permutation(60)[:40], random.permutation(60)[:30]
    if kind == "str":
        have, ask = (np.array([f"i{key}" for key in keys], object) for keys in (have, ask))
    vectors = Vectors.of(have, random.standard_normal((40, 5)))
    vocabulary = Vocabulary(ask, first)
    matrix, known = vectors.aligned(vocabulary)
    expected, there = slowly(vectors, vocabulary)
    assert matrix.dtype == np.float32 and 0 < known.sum() < 30
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_array_equal(known, there)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_save_and_load(tmp_path, dtype):
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(dtype)
    saved = Vectors.of(["a", "b", "c", "d", "é"], array, of="items", model="mine").save(tmp_path / "own")
    loaded = Vectors.load(tmp_path / "own", verify=True)
    for vectors in (saved, loaded):
        assert isinstance(vectors.array, np.memmap) and vectors.array.dtype == dtype
        np.testing.assert_array_equal(vectors.array, array)
        assert vectors.ids.tolist() == ["a", "b", "c", "d", "é"] and vectors.manifest["model"] == "mine"
    text = str(loaded)
    assert "5 items" in text and "3 wide" in text and "mine" in text and str(tmp_path / "own") in text
    again = loaded.save(tmp_path / "copy")
    assert again.manifest["model"] == "mine" and len(again) == 5


def test_other_numbers_become_float32():
    assert Vectors.of([1, 2], np.ones((2, 2), np.int64)).array.dtype == np.float32
    assert Vectors.of([1, 2], [[0.5, 1], [2, 3]]).array.dtype == np.float32
    kept = np.ones((2, 2), np.float32)
    assert Vectors.of(np.array([1, 2]), kept).array is kept


@pytest.mark.parametrize(
    ("ids", "array", "match"),
    [
        ([1, 2, 1], np.ones((3, 2)), "more than one vector, such as 1"),
        (["a", "a"], np.ones((2, 2)), "such as 'a'"),
        ([1, "1"], np.ones((2, 2)), "all ints or all strings"),
        ([1, 2], np.ones((3, 2)), "3 vectors"),
        ([1, 2], np.ones(2), "shape"),
        ([], np.ones((0, 2)), "shape"),
        ([1, 2], np.array([[1.0, 2], [np.nan, 1]]), "vector of 2"),
        ([7, 8], np.array([[np.inf, 2], [1, 1]]), "vector of 7"),
        ([1, 2], [["a", "b"], ["c", "d"]], "numbers"),
        ([1, 2], [[1.0], [1.0, 2.0]], "numbers"),
    ],
)
def test_bad_vectors(ids, array, match):
    with pytest.raises(DataError, match=match):
        Vectors.of(ids, array)


def test_alignment_with_other_data():
    vectors = Vectors.of([1, 2], np.eye(2))
    with pytest.raises(DataError, match="of other data"):
        vectors.aligned(Vocabulary(np.array([3, 4]), 1))
    with pytest.raises(DataError, match="convert them"):
        vectors.aligned(Vocabulary(np.array(["1", "2"], object), 1))


def test_damaged_and_foreign(tmp_path):
    vectors = Vectors.of([1, 2], np.eye(2))
    vectors.save(tmp_path / "a")
    with (tmp_path / "a" / "vectors.npy").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match="bytes"):
        Vectors.load(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"does not exist.*folder of vectors"):
        Vectors.load(tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(FileExistsError, match="another folder"):
        vectors.save(tmp_path / "mine")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_growing_matrix_equals_saving_at_once(tmp_path, dtype):
    whole = np.random.default_rng(0).standard_normal((10, 4)).astype(dtype)
    GrowingMatrix(tmp_path, 10, np.dtype(dtype)).append(whole[:3], 1)
    second = GrowingMatrix(tmp_path, 10, np.dtype(dtype))
    second.append(whole[3:7], 0)
    with (tmp_path / "vectors.npy").open("ab") as stream:
        stream.write(b"half a piece that nobody vouches for")
    third = GrowingMatrix(tmp_path, 10, np.dtype(dtype))
    assert (third.done, third.width, third.truncated) == (7, 4, 1)
    with pytest.raises(ValueError, match="width"):
        third.append(np.ones((3, 5), dtype), 0)
    third.append(whole[7:], 2)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), whole)
    np.save(tmp_path / "expected.npy", whole)
    assert (tmp_path / "vectors.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    with (tmp_path / "vectors.npy").open("r+b") as stream:  # less than was recorded: start over
        stream.truncate(100)
    assert GrowingMatrix(tmp_path, 10, np.dtype(dtype)).done == 0


def test_import_is_light():
    heavy = {"polars", "faiss", "torch", "sentence_transformers"}
    code = f"import sys, recsys.ids.vectors; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_growing_matrix_starts_over_where_a_power_cut_emptied_its_record(tmp_path):
    GrowingMatrix(tmp_path, 4, np.dtype("float32")).append(np.ones((2, 3), np.float32), 0)
    for record in ("", "[1, 2", "3", "null"):
        (tmp_path / ".done.json").write_text(record)
        assert GrowingMatrix(tmp_path, 4, np.dtype("float32")).done == 0


def test_full_disk_names_the_file_and_what_is_kept(tmp_path, monkeypatch):
    matrix = GrowingMatrix(tmp_path, 9, np.dtype("float32"))
    matrix.append(np.ones((2, 3), np.float32), 0)

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"2 of 9 rows are kept.*vectors.npy") as caught:
            matrix.append(np.ones((2, 3), np.float32), 0)
    assert caught.value.errno == 28 and matrix.done == GrowingMatrix(tmp_path, 9, np.dtype("float32")).done == 2


def test_complex_numbers_are_refused():
    with pytest.raises(DataError, match="complex"):
        Vectors.of([1, 2], np.array([[1j, 0], [0, 1]]))


@pytest.mark.parametrize("wrong", ["3", None])
def test_manifest_edited_by_hand_can_be_shown(wrong):
    assert "mine" in str(Vectors.of([1, 2], np.eye(2), model="mine", missing=wrong))
