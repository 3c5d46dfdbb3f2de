"""Columns of item and user tables, from the file to the split and back from disk."""

import json

import numpy as np
import polars as pl
import pytest

import recsys as rs
from recsys.errors import DataError, DataWarning
from recsys.features.features import Features
from recsys.features.tables import align, align_features, read_items
from recsys.features.typed import column_of, kind_of
from recsys.ids.vocabulary import Vocabulary
from recsys.runs.split import remember_split, split_of

IDS = Vocabulary(np.array([1, 2, 3]), first=1)
ITEMS = "item,title,price,genre,tags,year\n3,three,9.99, Rock ,a|b,1999\n1,one,,Jazz,b,2001\n9,nine,1,Folk,c,1980\n"
KINDS = {"price": "number", "genre": "category", "tags": "list", "year": "number"}


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user,item,time\nu,1,1\nu,2,2\nu,3,3\nv,3,1\nv,1,2\nv,2,3\n")
    return path


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text(ITEMS)
    return path


def test_columns_of_a_text_table_get_the_kinds_that_are_named(items):
    found, remarks = align_features(read_items(items, kinds=KINDS), IDS)
    assert found.kinds == {"title": "text", **KINDS} and found.rows == 4
    np.testing.assert_array_equal(found["price"].values, np.float32([np.nan, np.nan, np.nan, 9.99]))
    assert found["genre"].categories.ids.tolist() == ["Jazz", "Rock"]  # Folk is of no item of the catalogue
    assert found["genre"].values.tolist() == [0, 1, 0, 2]
    assert found["tags"].strings().tolist() == ["", "b", "", "a, b"]
    assert "item column price: number, 9.99 to 9.99, 75.0% missing" in remarks
    assert "items.csv: 1 of 3 items have no row" in remarks


def test_kinds_are_told_by_type_where_the_file_has_types(tmp_path):
    table = pl.DataFrame(
        {
            "item": [1, 2], "price": [2.5, None], "stock": [3, 4], "ean": [4006381333931, 4006381333948],
            "tags": [["x", "y"], None], "sold": [True, None], "name": ["a", "b"], "sizes": [[1.5], [2.5]],
        }
    )  # fmt: skip
    table.write_parquet(tmp_path / "items.parquet")
    found, _ = align_features(read_items(tmp_path / "items.parquet"), IDS)
    assert {name: kind for name, kind in found.kinds.items() if name != "title"} == {
        "price": "number", "stock": "number", "ean": "text", "tags": "list", "sold": "category", "name": "text",
        "sizes": "text",
    }  # fmt: skip
    written, _ = align(read_items(tmp_path / "items.parquet"), IDS)
    assert {name: one.strings().tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in written.items()
    }


def test_named_kinds_are_kept_beside_the_texts_that_are_named(items):
    found, _ = align_features(read_items(items, text=["title"], kinds={"price": "number"}), IDS)
    assert found.kinds == {"title": "text", "price": "number"}
    with pytest.raises(DataError, match=r"no column 'prize'.*did you mean 'price'"):
        align_features(read_items(items, kinds={"prize": "number"}), IDS)
    with pytest.raises(ValueError, match="'price' must be one of text, category, number, list, found 'float'"):
        read_items(items, kinds={"price": "float"})


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (["1", "cheap", "2", "free"], "number", r"2 of 4 values of column 'x'.*'cheap' \(row 2\), 'free' \(row 4\)"),
        ([1.0, float("inf")], "number", "not finite numbers, such as inf"),
        ([["a"]], "number", "which is not a number"),
        ([["a"]], "category", 'a category is one value: its kind is "list"'),
        ([1, 2], "list", 'not a list: its kind may be "category"'),
        (["a, b", "c"], "list", r"have ',', such as 'a, b': pass list_separator=','"),
    ],
)
def test_what_does_not_fit_a_kind_is_shown(values, kind, message):
    with pytest.raises(DataError, match=message):
        column_of(pl.Series("x", values), kind, "items.csv")


def test_numbers_as_categories_and_gaps(tmp_path):
    floats = column_of(pl.Series("x", [1.0, None, 3.0, float("nan")]), "category", "t")
    assert floats.strings().tolist() == ["1", "", "3", ""]
    assert column_of(pl.Series("x", [0.5, 1.0]), "category", "t").strings().tolist() == ["0.5", "1.0"]
    assert np.isnan(column_of(pl.Series("x", ["", " ", "nan", None]), "number", "t").values).all()
    lists = column_of(pl.Series("x", [["b", ""], [], None, [None, "a", "b"]]), "list", "t")
    assert (lists.values.tolist(), lists.offsets.tolist()) == ([2, 1, 2], [0, 1, 1, 1, 3])
    assert column_of(pl.Series("x", ["a;b", None]), "list", "t", ";").strings().tolist() == ["a, b", ""]
    assert kind_of(pl.Series("x", ["a"], dtype=pl.Categorical)) == "category"


def test_a_split_keeps_columns_of_items_and_users(tmp_path, events, items):
    (tmp_path / "users.csv").write_text("user_id,age,country\nv,31,SE\nw,20,DE\n")
    users = rs.read_users(tmp_path / "users.csv", kinds={"age": "number", "country": "category"})
    data = rs.Dataset.scan(events, items=rs.read_items(items, kinds=KINDS), users=users)
    split = data.split(rs.LeaveLast(), audit=False)
    assert split.user_features["country"].strings()[split.users.rows(["u", "v"])].tolist() == ["", "SE"]
    assert any("users.csv: 1 of 2 users have no row" in note for note in data.report.notes)
    assert split.item_text["title"][split.items.rows([3])].tolist() == ["three"]
    split.save(tmp_path / "split")
    again = rs.Split.load(tmp_path / "split")
    for name in ("item_features", "user_features"):
        assert getattr(again, name).digest == getattr(split, name).digest
    assert not (tmp_path / "split" / "item_text.json").exists()
    assert {name: one.tolist() for name, one in again.item_text.items()} == {
        name: one.tolist() for name, one in split.item_text.items()
    }


def test_the_cache_keeps_them_and_is_made_again_where_an_earlier_version_did_not(tmp_path, events, items):
    def scan():
        return rs.Dataset.scan(events, items=rs.read_items(items, kinds=KINDS))

    first = scan().prepare(tmp_path / "cache")
    again = scan().prepare(tmp_path / "cache")
    assert first.item_features.digest == again.item_features.digest
    other = rs.Dataset.scan(events, items=rs.read_items(items))
    assert (
        other.data_hash == scan().data_hash and other.prepare(tmp_path / "cache").item_features.kinds["price"] == "text"
    )
    folder = tmp_path / "cache" / scan()._folder_name
    manifest = json.loads((folder / "manifest.json").read_text())
    for path in folder.glob("item-features*"):
        del manifest["files"][path.name]
        path.unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(DataWarning, match="earlier version"):
        assert scan().prepare(tmp_path / "cache").item_features.digest == first.item_features.digest


def test_columns_must_have_a_row_for_each_item_and_user(tmp_path, events):
    split = rs.Dataset.scan(events).split(rs.LeaveLast(), audit=False)
    short = Features.of({"age": [1.0]}, {"age": "number"})
    with pytest.raises(DataError, match="user_features has 1 rows, and 2 are expected"):
        rs.Split(**{**vars(split), "user_features": short})
    table = rs.read_users(pl.DataFrame({"user": ["u"], "age": [3]}))
    with pytest.raises(ValueError, match="items= got a table of users: make it with read_items"):
        rs.Dataset.scan(events, items=table)


def test_a_run_finds_its_own_columns_again(tmp_path, events, items, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    split = rs.Dataset.scan(events, items=rs.read_items(items, kinds=KINDS)).split(rs.LeaveLast(), audit=False)
    model = rs.Popularity()
    rs.fit(model, split)
    remember_split(split, tmp_path / "run")
    other = rs.Dataset.scan(events, items=rs.read_items(items, kinds={"price": "number"})).split(
        rs.LeaveLast(), audit=False
    )
    (tmp_path / "other").mkdir()
    remember_split(other, tmp_path / "other")
    assert split_of(tmp_path / "run", model).item_features.kinds["genre"] == "category"
    assert split_of(tmp_path / "other", model).item_features.kinds["genre"] == "text"
