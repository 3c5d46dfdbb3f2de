"""Typed columns: what each kind holds, what is missing, files without pickle, and what is refused."""

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.features.column import Column
from recsys.features.features import Features

VALUES = {
    "title": ["", "Red & Blue", None, "zwölf"],
    "genre": [None, " Rock", "Jazz", "Rock"],
    "price": [None, 9.99, "", 3],
    "year": [None, 1999, 2001, None],
    "tags": [None, ["new", "sale"], [], ["sale", "", "new", "sale"]],
}
KINDS = {"genre": "category", "price": "number", "year": "number", "tags": "list"}


def features() -> Features:
    return Features.of(VALUES, KINDS)


def test_each_kind_is_coded() -> None:
    found = features()
    assert found.kinds == {"title": "text", **KINDS} and found.rows == 4
    assert found["genre"].values.tolist() == [0, 2, 1, 2] and found["genre"].values.dtype == np.int32
    assert found["genre"].categories.ids.tolist() == ["Jazz", "Rock"]
    np.testing.assert_array_equal(found["price"].values, np.float32([np.nan, 9.99, np.nan, 3]))
    assert found["tags"].values.tolist() == [1, 2, 2, 1, 2] and found["tags"].offsets.tolist() == [0, 0, 2, 2, 5]


def test_texts_come_out_of_every_kind() -> None:
    texts = {name: column.strings().tolist() for name, column in features().items()}
    assert texts == {
        "title": ["", "Red & Blue", "", "zwölf"],
        "genre": ["", "Rock", "Jazz", "Rock"],
        "price": ["", "9.99", "", "3.0"],
        "year": ["", "1999", "2001", ""],
        "tags": ["", "new, sale", "", "sale, new, sale"],
    }


def test_plain_values_make_the_same_column_again() -> None:
    found = features()
    plain = {name: column.plain() for name, column in found.items()}
    assert plain["tags"] == [[], ["new", "sale"], [], ["sale", "new", "sale"]] and plain["genre"][0] is None
    assert Features.of(plain, found.kinds)["tags"].digest == found["tags"].digest
    assert Column.of("category", plain["genre"]).digest == found["genre"].digest


def test_rows_are_taken_and_laid_out() -> None:
    found = features()
    rows = np.array([3, -1, 1])
    assert found["genre"].dense(rows).tolist() == [2, 0, 2]
    assert found["tags"].dense(rows).tolist() == [[2, 1, 2], [0, 0, 0], [1, 2, 0]]
    np.testing.assert_array_equal(found["price"].dense(rows), np.float32([3, np.nan, 9.99]))
    assert found.take(rows)["title"].strings().tolist() == ["zwölf", "", "Red & Blue"]
    with pytest.raises(DataError, match="name the kind"):
        found["title"].dense(rows)


def test_new_rows_are_coded_by_the_same_categories_and_unknown_ones_counted() -> None:
    found = features()
    genre, unknown = found["genre"].encode(["Jazz", "Folk", None])
    assert (genre.values.tolist(), unknown) == ([1, 0, 0], ["Folk"])
    tags, unknown = found["tags"].encode([["sale", "old"], None, ["old"]])
    assert (tags.values.tolist(), tags.offsets.tolist(), unknown) == ([2], [0, 1, 1, 1], ["old", "old"])


def test_saved_without_pickle_and_left_on_disk(tmp_path) -> None:
    found = features()
    found.save(tmp_path, "items")
    again = Features.load(tmp_path, "items")
    assert again is not None and again.digest == found.digest and list(again) == list(found)
    assert {type(one.values) for one in again.values()} == {np.memmap}
    assert again["tags"].strings().tolist() == found["tags"].strings().tolist()
    assert Features.load(tmp_path, "users") is None
    other = Features.of({**VALUES, "genre": [None, "Rock", "Jazz", "Jazz"]}, KINDS)
    assert other.digest != found.digest


def test_damaged_files_are_refused(tmp_path) -> None:
    features().save(tmp_path, "items")
    np.save(tmp_path / "items-1.values.npy", np.array([0, 3, 1, 2], np.int32))
    with pytest.raises(DataError, match=r"0\.\.3.*2 categories"):
        Features.load(tmp_path, "items")
    np.save(tmp_path / "items-1.values.npy", np.array([0, 1, 2], np.int32))
    with pytest.raises(DataError, match="as many rows"):
        Features.load(tmp_path, "items")


def test_what_is_printed() -> None:
    lines = str(features()).splitlines()
    assert lines[0] == "title  text, 50.0% missing"
    assert lines[1] == "genre  category, 2 categories, such as 'Jazz', 'Rock', 25.0% missing"
    assert lines[2] == "price  number, 3 to 9.99, 50.0% missing"
    assert repr(features()).startswith("Features(4 rows: title (text), genre (category)")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("number", [1, "cheap"], "number is expected in each row, found 'cheap'.*category"),
        ("number", [1.0, float("inf")], "finite.*inf"),
        ("category", [["a", "b"]], "one value, found.*list"),
        ("list", ["a, b"], "list of categories is expected in each row, found 'a, b'"),
        ("colour", [1], "one of text, category, number, list, found 'colour'"),
    ],
)
def test_values_of_another_kind_are_shown(kind, values, message) -> None:
    with pytest.raises(DataError, match=message):
        Column.of(kind, values)


def test_unknown_columns_get_a_hint() -> None:
    with pytest.raises(DataError, match="did you mean 'genre'"):
        features()["gener"]
    with pytest.raises(DataError, match="did you mean 'genre'"):
        Features.of(VALUES, {"gener": "category"})
    assert features().get("gener") is None
