"""Blanks around ids and names of columns, in every form of file."""

from __future__ import annotations

import gzip
import json

import numpy as np
import polars as pl
import pytest

from recsys.data.dataset import Dataset
from recsys.errors import DataError, DataWarning
from recsys.features.tables import align, read_items
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.readers.blanks import BLANKS, stripped

ROWS = [("a", " x", 1), ("a ", "x ", 2), ("\u00a0a", "x", 3), ("b", "\u2003y z\ufeff", 4), (" b", "x", 5)]
EXPECTED = {"a": ["x", "x", "x"], "b": ["y z", "x"]}


def histories(data):
    loaded = data.prepare()
    parts = np.split(loaded.items.raw(loaded.prepared.items), loaded.prepared.offsets[1:-1])
    return {user: part.tolist() for user, part in zip(loaded.users.ids.tolist(), parts, strict=True)}


def csv(folder, separator=",", name="log.csv"):
    lines = [separator.join(map(str, row)) for row in [("user ", " item", "\u00a0time"), *ROWS]]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def parquet(folder):
    frame = pl.DataFrame(ROWS, schema=["user", " item", "time\u00a0"], orient="row")
    frame.write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def categorical(folder):
    frame = pl.DataFrame(ROWS, schema=["user", " item", "time"], orient="row")
    frame.with_columns(pl.col("user", " item").cast(pl.Categorical)).write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def ndjson(folder):
    lines = [json.dumps(dict(zip((" user", "item", "time "), row, strict=True))) for row in ROWS]
    (folder / "log.ndjson").write_text("\n".join(lines))
    return folder / "log.ndjson"


def frame(folder):
    return pl.read_parquet(parquet(folder))


FORMS = {
    "csv": csv,
    "tsv": lambda folder: csv(folder, "\t", "log.tsv"),
    "semicolon": lambda folder: csv(folder, ";"),
    "parquet": parquet,
    "categorical": categorical,
    "ndjson": ndjson,
    "frame": frame,
}


@pytest.mark.parametrize("form", FORMS)
def test_k16_blanks_make_no_other_ids(tmp_path, form):
    data = Dataset.scan(FORMS[form](tmp_path), time="time", time_unit="s")
    assert histories(data) == EXPECTED
    notes = "\n".join(data.report.notes)
    assert "3 user ids had blanks" in notes and "3 item ids had blanks" in notes
    rows = data.prepare().items.rows(["x", " x"])
    assert rows[0] > 0 and rows[1] == -1  # only reading strips


def test_k16_atomic(tmp_path):
    lines = ["user_id:token\t item_id:token \ttimestamp:float", *("\t".join(map(str, row)) for row in ROWS)]
    (tmp_path / "log.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert histories(Dataset.scan(tmp_path / "log.inter", time_unit="s")) == EXPECTED


@pytest.mark.parametrize(
    "text", ["1 5\n2  5\n1\t6 \n", " 1 5\n2 5 \n1 6\n", "1, 5\n2 ,5\n1,6\n", "1\t 5\n2\t5 \n1\t6\n"]
)
def test_k16_pairs(tmp_path, text):
    (tmp_path / "p.txt").write_text(text)
    assert histories(Dataset.scan(tmp_path / "p.txt", format="pairs")) == {1: [5, 6], 2: [5]}


def test_k16_pairs_with_a_later_line_that_is_none(tmp_path):
    (tmp_path / "p.txt").write_text("1  5\n" * 60 + "1 5 7\n")
    with pytest.raises(DataError, match="1 without item"):
        Dataset.scan(tmp_path / "p.txt", format="pairs").prepare()


def test_k16_sequences(tmp_path):
    (tmp_path / "s.txt").write_text(" 1  5 \u00a06\n2 5 \n")
    assert histories(Dataset.scan(tmp_path / "s.txt", format="sequences")) == {1: [5, 6], 2: [5]}
    (tmp_path / "s.json").write_text(json.dumps({" u": ["a ", "b"], "v": [" b"]}))
    assert histories(Dataset.scan(tmp_path / "s.json", format="json-sequences")) == {"u": ["a", "b"], "v": ["b"]}


def test_k16_quoted_and_padded_numbers_stay_ints(tmp_path):
    (tmp_path / "x.csv").write_text('user,item\n" 1","2 "\n3, 4\n')
    data = Dataset.scan(tmp_path / "x.csv")
    assert histories(data) == {1: [2], 3: [4]} and data.prepare().items.kind == "int"
    (tmp_path / "y.csv").write_text("user,item\n   ,2\n3,4\n")
    with pytest.raises(DataError, match="1 without user"):
        Dataset.scan(tmp_path / "y.csv").prepare()


def test_k16_blanks_around_ratings_and_weights(tmp_path):
    (tmp_path / "x.csv").write_text("user, item, stars, w\na, x, 5, 2 \na, y, , 1\n")
    data = Dataset.scan(tmp_path / "x.csv", rating="stars", weight="w")
    assert data.prepare().prepared.weights.tolist() == [2, 1]
    assert data.clean(min_rating=5).prepare().items.ids.tolist() == ["x"]


def test_k16_names_that_differ_in_blanks_only_stay_two(tmp_path):
    pl.DataFrame({"user": [1], "item": [2], " item": [3]}).write_parquet(tmp_path / "x.parquet")
    assert histories(Dataset.scan(tmp_path / "x.parquet", item=" item")) == {1: [3]}


@pytest.mark.parametrize("name", ["items.csv", "items.parquet", "items.ndjson", "items.json", "items.csv.gz", "frame"])
def test_k16_item_tables(tmp_path, name):
    table, path = pl.DataFrame({" item ": [" x", "y\u00a0", "z"], "title": ["ex ", "why", "zed"]}), tmp_path / name
    if name == "frame":
        path = table
    elif "csv" in name:
        text = table.write_csv().encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    elif name.endswith("parquet"):
        table.write_parquet(path)
    elif name.endswith("ndjson"):
        table.write_ndjson(path)
    else:
        path.write_text(json.dumps(dict(zip(table[" item "], table["title"], strict=True))))
    items = Vocabulary(np.array(["x", "y"], object), first=1)
    columns, remarks = align(read_items(path, format="json" if name.endswith(".json") else "auto"), items)
    assert columns["text" if name.endswith(".json") else "title"].tolist() == ["", "ex ", "why"]
    assert any("2 item ids had blanks" in remark for remark in remarks)


def test_k16_a_map_of_item_ids(tmp_path):
    (tmp_path / "map.csv").write_text("old ,new\n 1,x\n2, y\n")
    (tmp_path / "items.csv").write_text("item,title\n1 ,one\n2,two\n")
    items = Vocabulary(np.array(["x", "y"], object), first=1)
    columns, _ = align(read_items(tmp_path / "items.csv", via=(tmp_path / "map.csv", "old", "new")), items)
    assert columns["title"].tolist() == ["", "one", "two"]


def test_k16_vectors():
    with pytest.warns(DataWarning, match="2 of 3"):
        vectors = Vectors.of([" x", "y\u00a0", "z"], np.eye(3))
    assert vectors.ids.tolist() == ["x", "y", "z"]
    with pytest.warns(DataWarning), pytest.raises(DataError, match="more than one"):
        Vectors.of([" x", "x"], np.eye(2))


def test_blanks_hold_what_python_and_polars_call_white_space():
    spaces = "".join(chr(code) for code in range(0x3100) if chr(code).isspace())
    assert set(spaces) <= set(BLANKS) and stripped(BLANKS + "a b" + BLANKS) == "a b"
    assert pl.Series([BLANKS + "a b" + BLANKS]).str.strip_chars(BLANKS).to_list() == ["a b"]
