"""Tables in memory give what the same tables in files give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recsys as rs
from recsys.data.dataset import Dataset
from recsys.data.splitters import Given, LeaveLast
from recsys.errors import DataError
from recsys.ids.vectors import Vectors
from recsys.readers.frames import Frame, is_frame

T = 1_700_000_000
FRAME = pl.DataFrame(
    {"uid": list("aabba"), "sku": [" x", "y", "x", "z", "y"], "ts": [T, T + 1, T + 2, T + 3, T + 9], "more": [[1]] * 5}
)
COLUMNS = {"user": "uid", "item": "sku", "time": "ts"}


class Arrow:
    """A table of a library that nobody knows here, with the Arrow interface and nothing else."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Column:
    """One column of :class:`Pandas`: what pandas' series offers, as numpy holds it."""

    def __init__(self, values):
        self.values = values
        self.dtype = values.dtype

    def to_numpy(self, dtype=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def isna(self):
        return Column(
            np.array([value is None or (isinstance(value, float) and value != value) for value in self.values.tolist()])
        )


class Pandas:
    """As much of a pandas frame as is read, so that it is tested where pandas is not installed."""

    def __init__(self, columns):
        self.data = {name: Column(values) for name, values in columns.items()}
        self.columns, self.dtypes = list(columns), None
        self.iloc = self

    def __getitem__(self, key):
        return self.data[self.columns[key[1]]]

    def isna(self):
        raise NotImplementedError


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def pandas_like():
    return Pandas(
        {name: objects(FRAME[name].to_list()) if name != "ts" else FRAME["ts"].to_numpy() for name in FRAME.columns}
    )


KINDS = {
    "polars": lambda: FRAME,
    "lazy": FRAME.lazy,
    "arrow": lambda: Arrow(FRAME),
    "pandas": pandas_like,
    "list": lambda: [FRAME[:3], FRAME[3:].lazy()],
    "tuple": lambda: (Arrow(FRAME[:2]), FRAME[2:]),
}


def same(one, other):
    for name in ("items", "offsets", "times"):
        assert getattr(one.prepared, name).tolist() == getattr(other.prepared, name).tolist()
    assert one.items.ids.tolist() == other.items.ids.tolist() and one.users.ids.tolist() == other.users.ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_read_as_files_are(tmp_path, kind):
    FRAME.write_parquet(tmp_path / "log.parquet")
    data = Dataset.scan(KINDS[kind](), **COLUMNS)
    same(data.prepare(), Dataset.scan(tmp_path / "log.parquet", **COLUMNS).prepare())
    assert data.name == "frame" and "frame" in repr(data)
    again = Dataset.scan(KINDS[kind](), **COLUMNS)
    assert data.data_hash == again.data_hash
    same(again.prepare(tmp_path / "cache"), data.prepare())
    same(Dataset.scan(KINDS[kind](), **COLUMNS).prepare(tmp_path / "cache"), data.prepare())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert data.split(LeaveLast(), audit=False).name == "frame"
    assert Dataset.scan(KINDS[kind](), name="mine", **COLUMNS).name == "mine"


def test_the_hash_is_that_of_the_contents():
    one = Dataset.scan(FRAME, **COLUMNS).data_hash
    assert Dataset.scan(FRAME.drop("more"), **COLUMNS).data_hash == one  # nobody reads it
    assert Dataset.scan(pl.concat([FRAME[:2], FRAME[2:]], rechunk=False), **COLUMNS).data_hash == one
    for column, value in (("uid", "c"), ("sku", "w"), ("ts", T + 4), ("ts", None)):
        changed = FRAME.with_columns(
            pl.when(pl.int_range(pl.len()) == 2).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
        )
        assert Dataset.scan(changed, **COLUMNS).data_hash != one
    assert Dataset.scan(FRAME[::-1], **COLUMNS).data_hash != one


DTYPES = [pl.Int32, pl.Float64, pl.String, pl.Boolean, pl.Categorical, pl.Datetime("us"), pl.List(pl.Int64), pl.Binary]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=6), st.data())
def test_contents_with_one_hash_are_equal(dtype, values, data):
    other = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=6))

    def digest(numbers):
        series = pl.Series("x", numbers, pl.Int64)
        if isinstance(dtype, pl.List):
            series = pl.Series("x", [None if n is None else [n] for n in numbers], dtype)
        elif dtype in (pl.Categorical, pl.Binary):
            series = series.cast(pl.String).cast(dtype)
        else:
            series = series.cast(dtype)
        return Frame.of(series.to_frame()).digest()

    same = [value if dtype != pl.Boolean or value is None else bool(value) for value in values]
    than = [value if dtype != pl.Boolean or value is None else bool(value) for value in other]
    assert (digest(values) == digest(other)) == (same == than)


def test_strings_that_join_to_the_same_are_told_apart():
    frames = (pl.DataFrame({"x": values}) for values in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None]))
    assert len({Frame.of(frame).digest()["sha256"] for frame in frames}) == 4


def test_parts_and_item_tables_in_frames():
    items = pl.DataFrame({"sku": ["x", "y", "q"], "title": ["ex", "why", "queue"]})
    data = rs.Dataset.scan(splits={"train": FRAME[:3], "test": FRAME[3:].lazy()}, items=items, **COLUMNS)
    split = data.split(Given())
    assert split.item_text["title"].tolist() == ["", "ex", "why", ""] and split.name == "frame"
    other = rs.Dataset.scan(FRAME, items=rs.read_items(Arrow(items), item="sku", text=["title"]), **COLUMNS)
    assert other.prepare().item_text["title"].tolist() == ["", "ex", "why", ""]
    assert (
        rs.Dataset.scan(FRAME, items=items, **COLUMNS).data_hash
        != rs.Dataset.scan(FRAME, items=items[:2], **COLUMNS).data_hash
    )


def test_a_frame_changed_later_is_another():
    frame = FRAME.clone()
    data = Dataset.scan(frame, **COLUMNS)
    before = data.data_hash
    frame[0, "uid"] = "z"
    assert data.prepare().users.ids.tolist() == ["a", "b"] and Dataset.scan(frame, **COLUMNS).data_hash != before


@pytest.mark.parametrize("wrong", [3, None, {"user": [1]}, np.eye(2), "x.parquet", ["a.csv"]])
def test_what_is_no_frame(wrong):
    assert not is_frame(wrong)
    with pytest.raises((TypeError, ValueError)):
        Dataset.scan(wrong)


def test_columns_that_are_not_there_or_mixed():
    with pytest.raises(DataError, match="did you mean 'uid'"):
        Dataset.scan(FRAME, user="uidd", item="sku").prepare()
    mixed = Pandas({"user": objects([1, "a"]), "item": np.array([1, 2])})
    with pytest.raises(DataError, match="int, str"):
        Dataset.scan(mixed)


@pytest.mark.parametrize("kind", [lambda frame: frame, pl.DataFrame.lazy, Arrow])
def test_vectors_of_a_frame(kind):
    frame = pl.DataFrame({"item": ["a", "b", "c"], "one": [1, 2, 3], "two": [0.5, 1.5, 2.5]})
    vectors = Vectors.of(kind(frame), ids="item", of="items", model="mine")
    assert vectors.ids.tolist() == ["a", "b", "c"] and vectors.array.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]]
    assert vectors.array.dtype == np.float32 and vectors.manifest == {"of": "items", "model": "mine"}
    assert Vectors.of(kind(frame), ids="item", columns=["two"]).array.tolist() == [[0.5], [1.5], [2.5]]
    for dtype in (pl.List(pl.Float32), pl.Array(pl.Float64, 2)):
        lists = pl.DataFrame(
            {"item": [7, 8], "vector": pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=dtype), "name": ["x", "y"]}
        )
        vectors = Vectors.of(kind(lists), ids="item", columns="vector")
        assert vectors.ids.tolist() == [7, 8] and vectors.array.tolist() == [[1, 2], [3, 4]]
        assert Vectors.of(kind(lists.drop("name")), ids="item").array.tolist() == [[1, 2], [3, 4]]


def test_vectors_of_lists_as_pandas_holds_them():
    frame = Pandas({"item": np.array([7, 8]), "vector": objects([np.array([1.0, 2.0]), np.array([3.0, 4.0])])})
    assert Vectors.of(frame, ids="item").array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("columns", "arguments", "word"),
    [
        ({"item": [1, 2], "v": [[1.0], [1.0, 2.0]]}, {"ids": "item"}, "equally long"),
        ({"item": [1, 2], "v": [[1.0], None]}, {"ids": "item"}, "equally long"),
        ({"item": [1, 2], "v": [[1.0], [None]]}, {"ids": "item"}, "miss"),
        ({"item": [1, 2], "v": [1.0, None]}, {"ids": "item"}, "misses"),
        ({"item": [1, None], "v": [1.0, 2.0]}, {"ids": "item"}, "no id"),
        ({"item": [1, 2], "v": ["a", "b"]}, {"ids": "item"}, "numbers"),
        ({"item": [1, 2]}, {"ids": "item"}, "none"),
        ({"item": [1, 2], "v": [[1.0], [2.0]], "w": [1, 2]}, {"ids": "item"}, "columns='v'"),
        ({"item": [1, 1], "v": [1.0, 2.0]}, {"ids": "item"}, "more than one"),
        ({"item": [1, 2], "v": [1.0, float("nan")]}, {"ids": "item"}, "NaN"),
        ({"item": [1, 2], "v": [1.0, 2.0]}, {"ids": "sku"}, "sku"),
        ({"item": [1, 2], "v": [1.0, 2.0]}, {"ids": "item", "columns": "w"}, "'w'"),
    ],
)
def test_frames_that_hold_no_vectors(columns, arguments, word):
    with pytest.raises(DataError, match=word):
        Vectors.of(pl.DataFrame(columns), **arguments)


def test_ways_to_call_vectors_of():
    assert Vectors.of(ids=[1, 2], array=np.eye(2)).ids.tolist() == [1, 2]
    for arguments in ({"table": pl.DataFrame({"item": [1], "v": [1.0]})}, {"table": [1, 2]}, {}):
        with pytest.raises(TypeError, match="ids"):
            Vectors.of(**arguments)
    with pytest.raises(TypeError, match="ids="):
        Vectors.of([1, 2], np.eye(2), ids="item")


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
def test_dates_as_numpy_holds_them(unit):
    times = np.array(["2024-01-02", "2024-01-01"], f"datetime64[{unit}]")
    frame = Pandas({"user": np.array([1, 1]), "item": np.array([1, 2]), "time": times})
    prepared = Dataset.scan(frame, time="time").prepare().prepared
    assert prepared.times.tolist() == [1704067200000, 1704153600000] and prepared.items.tolist() == [2, 1]


def test_pandas_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    start = datetime(2024, 1, 1, tzinfo=UTC)
    frame = pandas.DataFrame(
        {
            "user": pandas.Series(["a", None, "b", "a"]),
            "item": pandas.array([1, 2, None, 3], dtype="Int64"),
            "time": pandas.Series([start, start, start, start - timedelta(microseconds=1)]),
            "kind": pandas.Categorical(["x", "y", "x", "y"]),
            "weight": [1.0, 2.0, 3.0, 4.0],
            "flag": [True, False, True, False],
        }
    )
    data = Dataset.scan(frame, time="time", weight="weight").clean()
    loaded = data.prepare()
    assert loaded.items.ids.tolist() == [1, 3] and loaded.users.ids.tolist() == ["a"]
    assert loaded.items.raw(loaded.prepared.items).tolist() == [3, 1] and loaded.prepared.weights.tolist() == [4, 1]
    assert "1 without user, 1 without item" in str(loaded.report)
    assert Dataset.scan(frame[::-1][::-1], time="time", weight="weight").clean().data_hash == data.data_hash
    assert Dataset.scan(frame, item="kind").clean().prepare().items.ids.tolist() == ["x", "y"]
    vectors = Vectors.of(frame.dropna()[["item", "weight"]], ids="item")
    assert vectors.ids.tolist() == [1, 3] and vectors.array.tolist() == [[1.0], [4.0]]
    items = pandas.DataFrame({"item": [1, 3], "title": ["one", None]})
    assert rs.Dataset.scan(frame, items=items).clean().prepare().item_text["title"].tolist() == ["", "one", "", ""][:3]
