from __future__ import annotations

import gzip
import json
from datetime import date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest

from recsys.data.dataset import Dataset
from recsys.errors import DataError, DataWarning
from recsys.readers.atomic import write_atomic
from recsys.readers.events import MISSING_TIME, take_ids
from recsys.readers.formats import TextOptions
from recsys.readers.log import Source

CSV = "uid,sku,ts,stars\n1,a,1500000000,5\n1,b,1500000060,3.5\n2,a,1500000120,\n"
COLUMNS = {"user": "uid", "item": "sku", "time": "ts", "rating": "stars"}


@pytest.fixture
def put(tmp_path):
    def write(name, text):
        path = tmp_path / name
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def read(path, splits=None, **settings):
    return Source.find(path, splits, **settings).read()[0]


def raw(events):
    users, items = take_ids(events.user_ids, events.user), take_ids(events.item_ids, events.item)
    return list(zip(users.tolist(), items.tolist(), strict=True))


def read_times(put, values, **settings):
    path = put("t.csv", "user,item,time\n" + "".join(f"1,{at},{value}\n" for at, value in enumerate(values)))
    return read(path, columns={"time": "time"}, **settings).time.tolist()


# formats


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_csv_with_any_separator(put, name, separator):
    events = read(put(name, CSV.replace(",", separator)), columns=COLUMNS)
    assert raw(events) == [(1, "a"), (1, "b"), (2, "a")]
    assert events.time.tolist() == [1500000000000, 1500000060000, 1500000120000]
    assert events.rating[:2].tolist() == [5.0, 3.5] and np.isnan(events.rating[2])


def test_csv_without_header_goes_by_position(put):
    path = put("user.txt", "0,322,0,5\n0,110,1,0\n")
    settings = {"format": "csv", "text": TextOptions(header=False)}
    events = read(path, columns={"user": 0, "item": 1, "rating": 3}, **settings)
    assert raw(events) == [(0, 322), (0, 110)] and events.rating.tolist() == [5, 0]
    with pytest.raises(DataError, match="count from 0"):
        read(path, columns={"user": 0, "item": 7}, **settings)
    with pytest.raises(ValueError, match="position"):
        read(path, columns={"user": "a", "item": "b"}, **settings)


def test_several_files_and_globs_in_order(put, tmp_path):
    for at in (2, 0, 1):
        put(f"part-{at}.csv", f"user,item\n{at},{at}\n7,{at}\n")
    expected = [(0, 0), (7, 0), (1, 1), (7, 1), (2, 2), (7, 2)]
    assert raw(read(tmp_path / "part-*.csv")) == expected
    assert raw(read([tmp_path / "part-1.csv", tmp_path / "part-0.csv"])) == expected[2:4] + expected[:2]


def test_parquet_keeps_types(tmp_path):
    frame = pl.DataFrame({"user": ["10", "9"], "item": [3, None], "time": [datetime(2020, 1, 1), datetime(2020, 1, 2)]})
    frame.write_parquet(tmp_path / "x.parquet")
    events = read(tmp_path / "x.parquet", columns={"time": "time"})
    assert take_ids(events.user_ids, events.user).tolist() == ["10", "9"]
    assert events.item.tolist() == [0, -1] and events.item_ids.tolist() == [3]
    assert events.time.tolist() == [1577836800000, 1577923200000]


@pytest.mark.parametrize("name", ["log.ndjson", "log.jsonl.gz"])
def test_ndjson(put, name):
    lines = [json.dumps({"user": f"u{at}", "item": at, "more": {"deep": [1]}}) for at in range(3)]
    assert raw(read(put(name, "\n".join(lines)))) == [("u0", 0), ("u1", 1), ("u2", 2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ratings.dat", "1::10::5::978300760\n2::11::3.5::978302109\n"),
        ("u.data", "1\t10\t5\t978300760\n2\t11\t3.5\t978302109\n"),
        ("m.data", "userId,movieId,rating,timestamp\n1,10,5,978300760\n2,11,3.5,978302109\n"),
    ],
)
def test_movielens(put, name, text):
    events = read(put(name, text))
    assert raw(events) == [(1, 10), (2, 11)]
    assert events.rating.tolist() == [5, 3.5] and events.time.tolist() == [978300760000, 978302109000]
    with pytest.raises(DataError, match="MovieLens"):
        read(put("x.data", "1 10 5\n"))


def test_atomic_tokens_are_strings(put):
    events = read(
        put("x.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t07\t4\t8.81250949e8\n")
    )
    assert raw(events) == [("1", "07")] and events.time.tolist() == [881250949000] and events.rating.tolist() == [4]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_pairs(put, separator):
    events = read(put("p.txt.gz", f"1{separator}5\n1{separator}4\n2{separator}5\n"), format="pairs")
    assert raw(events) == [(1, 5), (1, 4), (2, 5)] and events.time is None
    with pytest.raises(DataError, match="sequences"):
        read(put("s.txt", "1 5 4\n2 5\n"), format="pairs")


def test_sequences_skip_users_without_items(put):
    assert raw(read(put("s.txt", "1 5 4\n2\n3  x\n"), format="sequences")) == [(1, "5"), (1, "4"), (3, "x")]


def test_json_sequences(put):
    text = json.dumps({"0": [3, 2], "1": [], "2": [3]})
    assert raw(read(put("g.json.gz", text), format="json-sequences")) == [(0, 3), (0, 2), (2, 3)]
    with pytest.raises(DataError, match="object"):
        read(put("x.json", "[1, 2]"), format="json-sequences")


def test_parts_of_data_that_come_split(put):
    splits = {"test": put("c.txt", "1 9\n"), "train": put("a.txt", "1 7\n2 7\n"), "valid": put("b.txt", "1 8\n")}
    events = read(None, splits, format="sequences")
    assert raw(events) == [(1, 7), (2, 7), (1, 8), (1, 9)] and events.part.tolist() == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="train"):
        read(None, {"dev": put("d.txt", "1 1\n")}, format="sequences")
    with pytest.raises(ValueError, match="either"):
        read(None)


# ids


def test_text_ids_are_ints_only_if_all_are(put):
    path = put("x.csv", "user,item\n1,007\n2,8\n10,9\n")
    events = read(path)
    assert raw(events) == [(1, "007"), (2, "8"), (10, "9")]
    assert raw(read(path, ids="str"))[2] == ("10", "9")
    assert raw(read(path, ids="int")) == [(1, 7), (2, 8), (10, 9)]
    with pytest.raises(DataError, match="no integers"):
        read(put("y.csv", "user,item\n1,a\n"), ids="int")


def test_codes_follow_sorted_ids(put):
    events = read(put("x.csv", "user,item\n10,b\n9,a\n-3,c\n"))
    assert events.user.tolist() == [2, 1, 0] and events.item.tolist() == [1, 0, 2]


def test_ids_as_floats_with_gaps(tmp_path):
    path = tmp_path / "x.parquet"
    pl.DataFrame({"user": [1.0, float("nan"), None], "item": [1, 2, 3]}).write_parquet(path)
    assert read(path).user.tolist() == [0, -1, -1]
    pl.DataFrame({"user": [1.5], "item": [1]}).write_parquet(path)
    with pytest.raises(DataError, match=r"1\.5"):
        read(path)
    pl.DataFrame({"user": [[1]], "item": [1]}).write_parquet(path)
    with pytest.raises(DataError, match="ints or strings"):
        read(path)


def test_null_and_empty_ids_are_missing(put, tmp_path):
    assert read(put("x.csv", 'user,item\n1,\n,2\n"",3\n1,3\n')).item.tolist() == [-1, 0, 1, 1]
    pl.DataFrame({"user": ["", None, "a"], "item": [1, 1, 1]}).write_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").user.tolist() == [-1, -1, 0]


def test_ids_that_differ_in_type_between_files(tmp_path):
    pl.DataFrame({"user": [1], "item": [1]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": [1], "item": ["1"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"item.*int.*str"):
        read(tmp_path / "*.parquet")
    assert raw(read(tmp_path / "*.parquet", ids="str")) == [("1", "1"), ("1", "1")]


# times


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1500000000", "1500000001"], [1500000000000, 1500000001000]),
        (["1500000000123"], [1500000000123]),
        (["1500000000123456"], [1500000000123]),
        (["1500000000123000000"], [1500000000123]),
        (["1396860669.277"], [1396860669277]),
        (["2020-01-01"], [1577836800000]),
        (["2020-01-01T00:00:00Z", "2020-01-01T00:00:01.5Z"], [1577836800000, 1577836801500]),
        (["2020-01-01 00:00:00"], [1577836800000]),
        (["2020-01-01T02:00:00+02:00"], [1577836800000]),
        (["2020-01-01 00:00:00.250"], [1577836800250]),
        (["2020-01-01 00:00"], [1577836800000]),
        (["1500000000", "", "1500000002"], [1500000000000, MISSING_TIME, 1500000002000]),
    ],
)
def test_times_by_their_look(put, values, expected):
    assert read_times(put, values) == expected


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("minutes", 5, 300_000), ("days", 2, 172_800_000), ("us", 5000, 5), ("s", -1, -1000)],
)
def test_times_in_a_given_unit(put, unit, value, expected):
    assert read_times(put, [value], time_unit=unit) == [expected]


def test_dates_and_zones_in_parquet(tmp_path):
    zone = timezone(timedelta(hours=2))
    for values in ([date(2020, 1, 1)], [datetime(2020, 1, 1, 2, tzinfo=zone)]):
        pl.DataFrame({"user": [1], "item": [1], "time": values}).write_parquet(tmp_path / "x.parquet")
        assert read(tmp_path / "x.parquet", columns={"time": "time"}).time.tolist() == [1577836800000]


def test_time_format(put):
    path = put("x.tsv", "user\titem\ttime\n1\t1\t08 15, 2014\n")
    with pytest.raises(DataError, match="time_format"):
        read(path, columns={"time": "time"})
    assert read(path, columns={"time": "time"}, time_format="%m %d, %Y").time.tolist() == [1408060800000]


def test_unparsable_times_are_shown(put):
    with pytest.raises(DataError, match=r"yesterday.*event 2"):
        read_times(put, ["1500000000", "yesterday", "1500000000"])
    with pytest.raises(DataError, match="2020-13-01"):
        read_times(put, ["2020-01-01", "2020-01-02", "2020-13-01"])


def test_doubtful_units(put):
    with pytest.raises(DataError, match="mix units"):
        read_times(put, ["1500000000", "1500000000000"])
    with pytest.warns(DataWarning, match="time_unit"):
        read_times(put, ["5743", "7221"])
    with pytest.raises(DataError, match="9999"):
        read_times(put, ["1500000000000"], time_unit="s")
    with pytest.raises(ValueError, match="time_unit"):
        read_times(put, ["1"], time_unit="weeks")


# bad input


def test_missing_file_offers_a_near_name(put, tmp_path):
    put("ratings.csv", CSV)
    with pytest.raises(DataError, match=r"ratings\.csv"):
        read(tmp_path / "rating.csv")
    with pytest.raises(DataError, match="match"):
        read(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="folder"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere" / "x.csv")


def test_wrong_separator_names_the_right_one(put):
    path = put("log.csv", CSV.replace(",", ";"))
    with pytest.raises(DataError, match="separator=';'"):
        read(path, columns=COLUMNS, text=TextOptions(separator=","))
    with pytest.raises(DataError, match="movielens"):
        read(path, columns=COLUMNS, text=TextOptions(separator="::"))
    with pytest.raises(DataError, match="separator"):
        read(put("one.csv", "word\nother\n"))


def test_wrong_column_offers_the_nearest(put):
    with pytest.raises(DataError, match="did you mean 'sku'"):
        read(put("log.csv", CSV), columns={**COLUMNS, "item": "sku_"})
    with pytest.raises(DataError, match="'uid'"):
        read(put("log.csv", CSV), columns={**COLUMNS, "item": "uid"})


def test_ragged_empty_and_damaged_files(put, tmp_path):
    with pytest.raises(DataError, match="cannot be read as csv"):
        read(put("x.csv", "user,item\n" + "1,2\n" * 100 + "1,2,3,4\n"))
    with pytest.raises(DataError, match="equally many"):
        read(put("x.csv", "user,item\n1,2\n1,2,3,4\n"))
    with pytest.raises(DataError, match="empty"):
        read(put("y.csv", ""))
    with pytest.raises(DataError, match="no events"):
        read(put("z.csv", "user,item\n"))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(CSV.encode() * 50)[:60])
    with pytest.raises(DataError):
        read(tmp_path / "d.csv.gz", columns=COLUMNS)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(put("x.parquet", b"no parquet at all"))


def test_unknown_layouts_ask_for_a_format(put):
    with pytest.raises(DataError, match="pairs"):
        read(put("x.txt", "1 2\n"))
    with pytest.raises(ValueError, match="did you mean 'pairs'"):
        read(put("x.txt", "1 2\n"), format="pair")


def test_numbers_that_are_none(put):
    with pytest.raises(DataError, match=r"rating.*good"):
        read(put("x.csv", "user,item,stars\n1,2,good\n"), columns={"rating": "stars"})
    with pytest.raises(DataError, match="weight"):
        read(put("y.csv", "user,item,w\n1,2,\n"), columns={"weight": "w"})
    assert read(put("z.csv", "user,item,w\n1,2,0.5\n"), columns={"weight": "w"}).weight.tolist() == [0.5]


@pytest.mark.parametrize("weight", [-1.0, float("inf")])
def test_weights_that_count_nothing_sensible_are_refused(tmp_path, weight):
    pl.DataFrame({"user": [1, 1], "item": [1, 2], "w": [1.0, weight]}).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(DataError, match="1 of 2 weights"):
        read(tmp_path / "e.parquet", columns={"weight": "w"})


@pytest.mark.parametrize("table", [{"user": [1], "item": [2]}, 7, np.eye(2)])
def test_what_is_neither_a_path_nor_a_frame_is_refused(table):
    with pytest.raises(TypeError, match="frames"):
        Source.find(table, None)


@pytest.mark.parametrize(("role", "value"), [("user", ""), ("item", " "), ("time", "")])
def test_missing_values_are_refused_before_ids_are_encoded(put, monkeypatch, role, value):
    row = {"user": "a", "item": "x", "time": "1600000000", role: value}
    path = put("log.csv", "user,item,time\na,x,1600000000\n" + ",".join(row.values()) + "\n")
    source = Source.find(path, None, columns={"time": "time"})
    monkeypatch.setattr("recsys.readers.log.encode_ids", None)
    with pytest.raises(DataError, match=f"of 2 events 1 without {role}"):
        source.read(allow_missing=False)


def test_one_file_may_be_two_parts(put):
    path = put("log.csv", "user,item\n1,2\n")
    assert read(None, {"train": path, "test": path}).part.tolist() == [0, 2]


def test_the_beginning_of_a_large_file_is_looked_at_first(put, monkeypatch):
    path = put("log.csv", "user,item\n" + "a,\n" + "a,x\n" * 50)
    monkeypatch.setattr("recsys.readers.log._LARGE", 100)
    monkeypatch.setattr("recsys.readers.log._BEGINNING", 5)
    with pytest.raises(DataError, match="1 without item"):
        Source.find(path, None).read(allow_missing=False)
    monkeypatch.setattr("recsys.readers.log._refuse_missing", lambda frame, size, where="": calls.append((size, where)))
    calls = []
    Source.find(path, None).read(allow_missing=False)
    assert [size for size, _ in calls] == [5, 51] and "log.csv" in calls[0][1]


def test_values_that_cannot_be_read_are_shown_though_others_are_missing(put):
    path = put("log.csv", "user,item,time\n" + "a,x,1600000000\n" * 3 + "a,x,\na,x,soon\n")
    with pytest.raises(DataError, match="soon"):
        Source.find(path, None, columns={"time": "time"}).read(allow_missing=False)


@pytest.mark.parametrize("time", ["1600000000", "2020-09-13 12:26:40"])
def test_times_may_begin_after_many_empty_ones(put, time):
    path = put("late.csv", "user,item,time\n" + "1,2,\n" * 1200 + f"1,3,{time}\n")
    events = read(path, columns={"time": "time"})
    assert events.time[-1] == 1_600_000_000_000 and (events.time[:-1] == MISSING_TIME).all()


@pytest.mark.parametrize("ending", ["csv", "parquet", "ndjson", "inter"])
def test_a_file_whose_name_looks_like_a_pattern_is_read_itself(tmp_path, ending):
    for name, item in (("log1", "other"), ("log[1]", "own")):
        path = tmp_path / f"{name}.{ending}"
        table = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": [item] * 3, "timestamp": [1e9, 2e9, 3e9]})
        if ending == "inter":
            write_atomic(table, path, {"user_id": "token", "item_id": "token", "timestamp": "float"})
        else:
            getattr(table, {"csv": "write_csv", "parquet": "write_parquet", "ndjson": "write_ndjson"}[ending])(path)
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    data = Dataset.scan(tmp_path / f"log[1].{ending}", **columns)
    assert data.prepare(tmp_path / "cache").items.ids.tolist() == ["own"]
