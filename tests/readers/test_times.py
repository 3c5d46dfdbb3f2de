"""Times at full precision, from every form a file has them in to the splits that follow them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.audit import audit
from recsys.data.cold import cold_items
from recsys.data.dataset import Dataset
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import GlobalTime, LeaveLast
from recsys.errors import DataError
from recsys.readers.times import moment, moments, read_times, shown, split_units, unset

START = 1_700_000_000  # seconds
ORDER = ["third", "second", "first"]  # as they lie in the file; the offsets below are in the same order
NANOSECONDS = {"ms": 10**6, "us": 10**3, "ns": 1}


def written(offsets, digits):
    return [f"2023-11-14T22:13:20.{offset:09d}"[: 20 + digits] for offset in offsets]


def dtype_of(offsets, unit):
    base = START * 10**9
    return pl.Series([(base + at) // NANOSECONDS[unit] for at in offsets]).cast(pl.Datetime(unit))


MICRO, NANO = [300_000, 200_000, 100_000], [3, 2, 1]
FORMS = {
    "us": ([START * 10**6 + at // 1000 for at in MICRO], {}),
    "us stated": ([START * 10**6 + at // 1000 for at in MICRO], {"time_unit": "us"}),
    "ns": ([START * 10**9 + at for at in NANO], {}),
    "ns stated": ([START * 10**9 + at for at in NANO], {"time_unit": "ns"}),
    "ns as text": ([str(START * 10**9 + at) for at in NANO], {}),
    "iso 6": (written(MICRO, 6), {}),
    "iso 9": (written(NANO, 9), {}),
    "iso 9 zone": ([f"{text}+02:00" for text in written(NANO, 9)], {}),
    "iso Z": ([f"{text.replace('T', ' ')}Z" for text in written(MICRO, 6)], {}),
    "mixed digits": (["2023-11-14T22:13:20.000300", "2023-11-14T22:13:20.00020001", "2023-11-14T22:13:20.0002"], {}),
    "format": ([text.replace("T", " ") for text in written(MICRO, 6)], {"time_format": "%Y-%m-%d %H:%M:%S%.f"}),
    "python format": ([text.replace("T", " ") for text in written(MICRO, 6)], {"time_format": "%Y-%m-%d %H:%M:%S.%f"}),
    "python digits": (
        ["14/11/2023 22:13:20.3", "14/11/2023 22:13:20.25", "14/11/2023 22:13:20.125"],
        {"time_format": "%d/%m/%Y %H:%M:%S.%f"},
    ),
    "comma": (
        ["2023-11-14 22:13:20,0003", "2023-11-14 22:13:20,00025", "2023-11-14 22:13:20,000125"],
        {"time_format": "%Y-%m-%d %H:%M:%S,%f"},
    ),
    "decimals as text": ([f"{START}.{at:09d}" for at in NANO], {}),
    "decimals of ms as text": ([f"{START}000.{at:06d}" for at in NANO], {}),
    "floats": ([START + at / 10**9 for at in MICRO], {}),
    "floats of ms": ([START * 1000 + at / 10**6 for at in MICRO], {}),
    "days": ([19_675.000_003, 19_675.000_002, 19_675.000_001], {"time_unit": "days"}),
    "decimal": (pl.Series([Decimal(f"{START}.{at:09d}") for at in NANO]), {}),
    "datetime us": (dtype_of(MICRO, "us"), {}),
    "datetime ns": (dtype_of(NANO, "ns"), {}),
    "before 1970": (["1969-07-20T20:17:40.000003", "1969-07-20T20:17:40.000002", "1969-07-20T20:17:40.000001"], {}),
    "negative": ([-0.25, -0.5, -0.75], {"time_unit": "s"}),
    "negative text": (["-0.25", "-.5", "-.75"], {"time_unit": "s"}),
    "exponent": (["1.7000000003e9", "1.7000000002e9", "1700000000.1"], {}),
    "far from today": (["2900-01-01T00:00:00.000003", "2900-01-01T00:00:00.000002", "1500-01-01T00:00:00.000001"], {}),
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("form", FORMS)
def test_k4_a_events_are_sorted_by_all_digits(tmp_path, form, suffix):
    times, settings = FORMS[form]
    frame = pl.DataFrame({"user": ["a"] * 3, "item": ORDER, "time": times})
    if suffix == "csv":
        if frame["time"].dtype.is_float():
            frame = frame.with_columns(pl.Series("time", [repr(value) for value in times]))
        frame.write_csv(tmp_path / "log.csv")
    else:
        frame.write_parquet(tmp_path / "log.parquet")
    split = Dataset.scan(tmp_path / f"log.{suffix}", time="time", **settings).split(LeaveLast(), audit=False)
    assert split.items.raw(split.prepared.items).tolist() == ["first", "second", "third"]
    assert split.items.raw(split.prepared.items[split.test.target_start]).tolist() == ["third"]
    found = audit(split)
    assert found["ties"].numbers["events"] == 0
    split.prepared.check()


def test_k4_a_the_case(tmp_path):
    t = START * 10**6
    rows = [("a", "third", t + 300), ("a", "second", t + 200), ("a", "first", t + 100)]
    rows += [("b", "first", t), ("b", "second", t + 10**7), ("b", "third", t + 2 * 10**7)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "us.csv")
    data = Dataset.scan(tmp_path / "us.csv", time="time")
    split = data.split(LeaveLast(), audit=False)
    assert split.items.raw(split.prepared.items).tolist() == ["first", "second", "third"] * 2
    again = data.prepare(tmp_path / "cache").prepared
    opened = data.prepare(tmp_path / "cache").prepared
    for prepared in (again, opened, Prepared.load(opened.folder)):
        assert prepared.nanoseconds.tolist() == split.prepared.nanoseconds.tolist()
    split.save(tmp_path / "split")
    assert Split.load(tmp_path / "split").prepared.nanoseconds.tolist() == split.prepared.nanoseconds.tolist()


def test_k4_ties_are_equal_in_all_digits_only(tmp_path):
    t = START * 10**6
    rows = [("a", "x", t + 5), ("a", "y", t + 7), ("a", "z", t + 7), ("a", "w", t + 999)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_parquet(tmp_path / "us.parquet")
    found = Dataset.scan(tmp_path / "us.parquet", time="time").split(LeaveLast()).audit["ties"]
    assert found.numbers["events"] == 2


def test_k4_files_of_several_precisions_are_read_together(tmp_path):
    whole, finer = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 0, 500, tzinfo=UTC)
    for name, unit, value in (("a", "ms", whole), ("b", "us", finer)):
        frame = pl.DataFrame({"user": [1], "item": [name], "time": [value]}).with_columns(
            pl.col("time").dt.cast_time_unit(unit)
        )
        frame.write_parquet(tmp_path / f"{name}.parquet")
    pl.DataFrame({"user": ["1"], "item": ["c"], "time": ["2024-01-01T00:00:00.0004999"]}).write_csv(tmp_path / "c.csv")
    files = [tmp_path / name for name in ("b.parquet", "c.csv", "a.parquet")]
    loaded = Dataset.scan(files, time="time", ids="str").prepare()
    assert loaded.items.raw(loaded.prepared.items).tolist() == ["a", "c", "b"]
    integers = pl.DataFrame({"user": [1], "item": ["i"], "time": [START]})
    integers.write_parquet(tmp_path / "i.parquet")
    integers.with_columns(item=pl.lit("f"), time=pl.lit(START - 0.5)).write_parquet(tmp_path / "f.parquet")
    loaded = Dataset.scan([tmp_path / "i.parquet", tmp_path / "f.parquet"], time="time").prepare()
    assert loaded.items.raw(loaded.prepared.items).tolist() == ["f", "i"]
    assert loaded.prepared.times.tolist() == [START * 1000 - 500, START * 1000]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4_000)), min_size=4, max_size=40),
    st.sampled_from(["us", "ns"]),
)
def test_k4_a_cut_within_a_millisecond_parts_events_rightly(tmp_path_factory, events, unit):
    """No training event is later than any held-out one, whatever the number of digits that decide it."""
    base = START * 10**6 if unit == "us" else START * 10**9
    frame = pl.DataFrame([(user, at, base + at) for user, at in events], schema=["user", "item", "time"], orient="row")
    data = Dataset.scan(frame, time="time")
    try:
        split = data.split(GlobalTime(0.25, 0.25), audit=False)
    except DataError as error:  # too many ties to cut
        assert "empty" in str(error)
        return
    times = split.items.raw(split.prepared.items)  # the item is the time
    owner = np.repeat(np.arange(split.num_users), np.diff(split.prepared.offsets))
    rows = np.arange(len(times))
    train, test = rows < split.train_stop[owner], rows >= split.valid_stop[owner]
    assert times[train].max() < times[~train].min() and times[~test].max() < times[test].min()
    assert audit(split)["future in training"].level == "ok"
    assert all((np.diff(part) >= 0).all() for part in np.split(times, split.prepared.offsets[1:-1]))


def test_k4_a_date_with_digits_cuts_there(tmp_path):
    rows = [(0, at, START * 10**6 + at) for at in range(10)]
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    cut = GlobalTime("2023-11-14T22:13:20.000004", "2023-11-14T22:13:20.000006")
    split = Dataset.scan(frame, time="time").split(cut, audit=False)
    assert (split.train_stop.tolist(), split.valid_stop.tolist()) == ([4], [6])
    assert split.protocol["test_from"] == "2023-11-14T22:13:20.000006"
    assert cut.cuts(split.prepared) == (START * 1000, START * 1000)


def test_k4_training_later_within_a_millisecond_is_a_leak(prepare):
    prepared = prepare([[1, 2], [3, 4]], times=[[5, 5], [5, 9]])
    finer = Prepared(prepared.items, prepared.offsets, 4, prepared.times, nanoseconds=np.array([1, 2, 3, 0], np.int32))
    split = Split(finer, np.array([1, 3]), np.array([1, 3]), None, None, {"name": "mine", "global_time": True})
    with pytest.raises(DataError, match="later"):
        audit(split)
    even = Prepared(prepared.items, prepared.offsets, 4, prepared.times)
    assert audit(Split(even, np.array([1, 3]), np.array([1, 3]), None, None, split.protocol))["ties"].level == "note"


def test_k4_a_cold_split_keeps_all_digits():
    rows = [(user, (user + at) % 7, START * 10**6 + 13 * user + at) for user in range(30) for at in range(5)]
    split = Dataset.scan(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"), time="time").split(
        LeaveLast(), audit=False
    )
    cold = cold_items(split, count=2)
    assert cold.prepared.nanoseconds is not None and cold.audit["ties"].numbers["events"] == 0
    assert len(cold.prepared.nanoseconds) == cold.prepared.num_events < split.prepared.num_events


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**18), 10**18))
def test_split_units_counts_nanoseconds(value):
    milliseconds, nanoseconds = split_units(np.array([value]), None, "ns")
    assert int(milliseconds[0]) * 10**6 + int(nanoseconds[0]) == value and 0 <= nanoseconds[0] < 10**6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9e9, 9e9), min_size=2, max_size=9, unique=True))
def test_no_two_floats_become_one_time_where_nanoseconds_hold_them(values):
    frame = pl.DataFrame({"user": [0] * len(values), "item": range(len(values)), "time": values})
    prepared = Dataset.scan(frame, time="time", time_unit="s", order="time").prepare().prepared
    order = np.argsort(np.array(values), kind="stable")
    exact = [(np.floor(v), round((v - np.floor(v)) * 1e9)) for v in np.array(values)[order]]
    found = prepared.moments()
    for one in range(len(values) - 1):
        if abs(values[order[one]] - values[order[one + 1]]) > 1e-9:
            assert found[one] < found[one + 1]
        assert exact[one] <= exact[one + 1]


def test_moments_outside_nanoseconds_are_microseconds():
    times, finer = np.array([-(10**13), 0, 2 * 10**13]), np.array([1_500, 2_500, 7], np.int32)
    found, scale = moments(times, finer)
    assert scale == 1000 and (np.diff(found) > 0).all()
    assert moments(times, None) == (times, 1) or moments(times, None)[1] == 1
    assert moments(times[:2] // 100, finer[:2])[1] == 10**6


@pytest.mark.parametrize("text", ["2024-02-03T04:05:06.123456789", "1969-12-31T23:59:59.999999999", "2024-02-03"])
def test_moment_and_shown(text):
    assert shown(*moment(text)).startswith(text)
    assert moment("2024-01-01T01:00:00+01:00") == moment("2024-01-01")
    with pytest.raises(ValueError, match="ISO"):
        moment("soon")
    with pytest.raises(ValueError, match="number"):
        moment(None)


def test_read_times_refuses_what_is_beyond():
    with pytest.raises(DataError, match="9999"):
        read_times(np.array([10**12]), None, "s")
    assert read_times(np.array([], np.int64), None, None)[2] == "ms"


# placeholders

REAL = [START * 1000 + at * 86_400_000 for at in range(50)]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([*REAL, 0], {0: 1}),
        ([*REAL, -1, -1], {-1: 2}),
        ([*REAL, -86_400_000], {-86_400_000: 1}),  # -1 in days
        ([*REAL, 0, -1000], {0: 1, -1000: 1}),
        ([*REAL, *[253_402_214_400_000] * 3], {253_402_214_400_000: 3}),  # 9999-12-31
        ([*REAL, *[-2_208_988_800_000] * 2, 0], {0: 1, -2_208_988_800_000: 2}),  # 1900-01-01
        ([*REAL, 253_402_214_400_000], {}),  # one event may be what it says
        (REAL, {}),
        ([0, 60_000, 120_000], {}),  # counted from 0
        ([0, 0, 0], {}),
        ([5, 5], {}),
        ([*REAL, *[-2_208_988_800_000] * 2, *[4_102_444_800_000] * 2], {-2_208_988_800_000: 2, 4_102_444_800_000: 2}),
        ([*REAL, 0, *[253_402_214_400_000] * 2], {0: 1, 253_402_214_400_000: 2}),
        ([*REAL, *REAL[:1], *REAL[-1:]], {}),
        ([], {}),
    ],
)
def test_unset_times(times, found):
    assert unset(np.array(times, np.int64)) == found


@pytest.mark.parametrize(
    ("unit", "value", "form"),
    [
        ("s", 0, "csv"),
        ("s", -1, "csv"),
        ("ms", 0, "parquet"),
        ("ms", -1, "csv"),
        ("us", -1, "parquet"),
        ("s", 0, "dates"),
    ],
)
def test_placeholders_are_noticed_and_dropped_when_asked(tmp_path, unit, value, form):
    factor = {"s": 1, "ms": 1000, "us": 10**6}[unit]
    times = [*(START * factor + at * 86_400 * factor for at in range(8)), value, value]
    frame = pl.DataFrame({"user": [at % 2 for at in range(10)], "item": range(10), "time": times})
    if form == "dates":
        frame = frame.with_columns(pl.from_epoch("time", time_unit=unit))
    path = tmp_path / ("log.csv" if form == "csv" else "log.parquet")
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    data = Dataset.scan(path, time="time")
    split = data.split(LeaveLast())
    assert split.prepared.num_events == 10 and split.audit["placeholder times"].numbers == {"events": 2}
    assert any("placeholder" in note and "2 at" in note for note in data.report.notes)
    cleaned = data.clean(missing_times=(0, -1))
    assert cleaned.prepare().prepared.num_events == 8 and "2 without time" in str(cleaned.report)
    assert not any("placeholder" in note for note in cleaned.report.notes)
    with pytest.raises(DataError, match="2 without time"):
        data.clean(drop_missing=False, missing_times=(0, -1)).prepare()
    with pytest.raises(ValueError, match="missing_times"):
        data.clean(missing_times="soon")
    with pytest.raises(ValueError, match="ISO"):
        data.clean(missing_times=["soon"])


def test_placeholders_may_be_named_as_dates():
    frame = pl.DataFrame(
        {"user": [0] * 4, "item": range(4), "time": ["1900-01-01", "2020-01-01", "2020-01-02", "1900-01-01"]}
    )
    data = Dataset.scan(frame, time="time")
    assert any("1900" in note for note in data.report.notes)
    assert data.clean(missing_times=["1900-01-01"]).prepare().prepared.num_events == 2
