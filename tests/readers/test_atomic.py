from __future__ import annotations

import gzip

import polars as pl
import pytest

from recsys.errors import DataError
from recsys.readers.atomic import read_header, scan_atomic, write_atomic

INTER = (
    "user_id:token\titem_id:token\trating:float\tnote:token_seq\tvector:float_seq\n"
    'u1\t07\t3.5\ta "b\t1 2.5\n'
    "u2\t8\t\t\t\n"
)


def test_types_are_those_of_the_header(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text(INTER, encoding="utf-8")
    frame = scan_atomic(path).collect()
    assert frame.rows() == [("u1", "07", 3.5, ["a", '"b'], [1.0, 2.5]), ("u2", "8", None, None, None)]


def test_written_is_read_back(tmp_path):
    path, copy = tmp_path / "x.inter", tmp_path / "y.inter"
    path.write_text(INTER, encoding="utf-8")
    frame = scan_atomic(path).collect()
    write_atomic(frame, copy)
    assert read_header(copy) == read_header(path)
    assert scan_atomic(copy).collect().equals(frame)
    assert not list(tmp_path.glob("*.partial"))


def test_types_can_be_chosen(tmp_path):
    write_atomic(pl.DataFrame({"user_id": [1], "age": [30]}), tmp_path / "x.user", {"age": "float"})
    assert (tmp_path / "x.user").read_text() == "user_id:token\tage:float\n1\t30\n"


def test_gzip_header(tmp_path):
    path = tmp_path / "x.inter.gz"
    path.write_bytes(gzip.compress(INTER.encode()))
    assert list(read_header(path)) == ["user_id", "item_id", "rating", "note", "vector"]


def test_gzip_and_empty_tables_are_read_back(tmp_path):
    frame = pl.DataFrame({"item_id": ["1", "2"], "tags": [["a", "b"], None]})
    write_atomic(frame, tmp_path / "x.item.gz")
    assert scan_atomic(tmp_path / "x.item.gz").collect().equals(frame)
    write_atomic(frame.head(0), tmp_path / "y.item")
    assert scan_atomic(tmp_path / "y.item").collect().equals(frame.head(0))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise pl.exceptions.ComputeError("No space left on device")

    write_atomic(pl.DataFrame({"item_id": ["1"]}), tmp_path / "x.item")
    monkeypatch.setattr(pl.DataFrame, "write_csv", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(pl.DataFrame({"item_id": ["2"]}), tmp_path / "x.item")
    assert (tmp_path / "x.item").read_text() == "item_id:token\n1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.item"]


@pytest.mark.parametrize("first", ["user_id,item_id\n", "user_id:tokn\titem_id:token\n", "a:token\ta:token\n"])
def test_header_without_types_is_refused(tmp_path, first):
    path = tmp_path / "x.inter"
    path.write_text(first)
    with pytest.raises(DataError):
        read_header(path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_header(tmp_path / "x.inter")


@pytest.mark.parametrize(
    ("frame", "types"),
    [
        ({"a": ["x\ty"]}, {}),
        ({"a": [["two words"]]}, {}),
        ({"a": ["x"]}, {"a": "token_seq"}),
        ({"a": [["x", None]]}, {}),
        ({"a": [["x", ""]]}, {}),
        ({"a\tb": ["x"]}, {}),
        ({"a": ["x"]}, {"a": "float"}),
        ({"a": ["x"]}, {"a": "text"}),
        ({"a": ["x"]}, {"b": "token"}),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, frame, types):
    with pytest.raises(DataError):
        write_atomic(pl.DataFrame(frame), tmp_path / "x.item", types)
    assert not (tmp_path / "x.item").exists()
