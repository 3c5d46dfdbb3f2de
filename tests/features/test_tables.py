from __future__ import annotations

import gzip
import json
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from recsys.errors import DataError
from recsys.features.tables import align, read_items
from recsys.ids.vocabulary import Vocabulary

INTS = Vocabulary(np.array([1, 2, 3]), first=1)
STRINGS = Vocabulary(np.array(["1", "2", "3"], dtype=object), first=1)


@pytest.mark.parametrize("items", [INTS, STRINGS], ids=["int", "str"])
def test_movielens_titles_with_colons_and_accents(tmp_path, items):
    path = tmp_path / "movies.dat"
    path.write_bytes(
        "1::Mission: Impossible (1996)::Action\n3::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1")
    )
    columns, remarks = align(read_items(path), items)
    assert columns["title"].tolist() == ["", "Mission: Impossible (1996)", "", "Misérables, Les (1995)"]
    assert columns["genres"][3] == "Drama|Musical"
    assert any("1 of 3" in remark for remark in remarks)


def test_atomic(tmp_path):
    path = tmp_path / "x.item"
    path.write_text('item_id:token\tmovie_title:token_seq\tyear:float\n1\t"Toy Story\t1995\n2\t\t\n')
    columns, _ = align(read_items(path), STRINGS)
    assert columns["title"].tolist() == columns["movie_title"].tolist() == ["", '"Toy Story', "", ""]
    assert columns["year"].tolist() == ["", "1995", "", ""]


def test_lists_and_numbers_become_text(tmp_path):
    path = tmp_path / "items.parquet"
    frame = pl.DataFrame({"sku": [3, 1], "price": [2.5, None], "tags": [["a", "b"], []], "tree": [[["x", "y"]], None]})
    frame.write_parquet(path)
    columns, _ = align(read_items(path, text=["price", "tags", "tree"], title="tags"), INTS)
    assert columns["price"].tolist() == ["", "", "", "2.5"]
    assert columns["tags"].tolist() == columns["title"].tolist() == ["", "", "", "a, b"]
    assert columns["tree"][3] == "x, y"


def test_json_object_per_item(tmp_path):
    path = tmp_path / "items.json.gz"
    path.write_bytes(
        gzip.compress(json.dumps({"1": {"title": "one", "tags": ["a", "b"]}, "2": {"title": "two"}}).encode())
    )
    columns, _ = align(read_items(path, format="json"), INTS)
    assert columns["title"].tolist() == ["", "one", "two", ""] and columns["tags"].tolist() == ["", "a, b", "", ""]


def test_table_without_header(tmp_path):
    path = tmp_path / "items.csv"
    path.write_bytes("1|café\n2|thé\n".encode("latin-1"))
    file = read_items(path, names=["id", "title"], separator="|", encoding="latin-1")
    assert align(file, INTS)[0]["title"].tolist() == ["", "café", "thé", ""]
    with pytest.raises(DataError, match="names="):
        align(read_items(path, names=["id"], separator="|", encoding="latin-1"), INTS)


def test_ids_translated_by_another_table(tmp_path):
    (tmp_path / "movies.csv").write_text("item_id,title\n100,one\n200,two\n300,none\n")
    (tmp_path / "map.tsv").write_text("new\told\n1\t200\n2\t100\n")
    file = read_items(tmp_path / "movies.csv", via=(tmp_path / "map.tsv", "old", "new"))
    columns, remarks = align(file, INTS)
    assert columns["title"].tolist() == ["", "two", "one", ""]
    assert any("map.tsv: 1 items are not in its column 'old'" in remark for remark in remarks)


def test_repeated_rows_are_counted_and_the_first_kept(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\n1,first\n1,second\n2,b\n3,c\n")
    columns, remarks = align(read_items(tmp_path / "items.csv"), INTS)
    assert columns["title"][1] == "first" and any("1 repeated" in remark for remark in remarks)


def test_ids_that_differ_only_in_type(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item": [1, 2], "title": ["a", "b"]}).write_parquet(path)
    with pytest.raises(DataError, match=r"int.*str"):
        align(read_items(path), STRINGS)
    pl.DataFrame({"item": ["1"], "title": ["a"]}).write_parquet(path)
    with pytest.raises(DataError, match=r"str.*int"):
        align(read_items(path), INTS)


def test_a_table_of_other_items_is_refused(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\n7,a\n8,b\n")
    with pytest.raises(DataError, match="none of its 2 items"):
        align(read_items(tmp_path / "items.csv"), INTS)


def test_wrong_columns_and_files(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("number,words\n1,a\n")
    with pytest.raises(DataError, match="pass item="):
        align(read_items(path), INTS)
    with pytest.raises(DataError, match="words"):
        align(read_items(path, item="number", text=["word"]), INTS)
    with pytest.raises(DataError, match="no file"):
        read_items(tmp_path / "item.parquet")
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read"):
        align(read_items(tmp_path / "x.parquet"), INTS)


def test_a_text_column_may_be_called_item_and_rows_without_id_are_counted(tmp_path):
    path = tmp_path / "products.csv"
    path.write_text("sku,item,price\na,Blue mug,3\n,Nameless,4\nb,Red mug,5\n")
    items = Vocabulary(np.array(["a", "b"], dtype=object), first=1)
    columns, remarks = align(read_items(path, item="sku"), items)
    assert columns["item"].tolist() == ["", "Blue mug", "Red mug"] and list(columns) == ["item", "price"]
    assert remarks == ["products.csv: 1 rows without an item id"]


@pytest.mark.parametrize(
    "columns",
    [
        {"item": ["a", "b"], "title": ["x", "y"], "picture": [b"\xff\xfe", b"\x00"]},
        {"item": ["a", "b"], "title": ["x", "y"], "shown": [timedelta(1), timedelta(2)]},
        {"item": [1.0, float("inf")], "title": ["x", "y"]},
    ],
)
def test_a_column_that_is_no_text_is_a_data_error(tmp_path, columns):
    pl.DataFrame(columns).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="text="):
        read_items(tmp_path / "items.parquet").read()
    if "picture" in columns:
        assert read_items(tmp_path / "items.parquet", text=["title"]).read()[0].width == 2
