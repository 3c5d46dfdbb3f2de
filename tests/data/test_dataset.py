from __future__ import annotations

import shutil
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from recsys.data import dataset as module
from recsys.data.dataset import Dataset
from recsys.data.splitters import Given, GlobalTime, LeaveLast
from recsys.errors import DataError, DataWarning

ROWS = [  # user, item, time in seconds, stars
    ("b", 30, 1_500_000_300, 5),
    ("a", 10, 1_500_000_200, 4),
    ("b", 10, 1_500_000_100, 1),
    ("a", 20, 1_500_000_200, 5),
    ("a", 30, 1_500_000_100, 5),
    ("c", 20, 1_500_000_500, 3),
]


def write(folder, rows=ROWS, name="log.parquet"):
    frame = pl.DataFrame(rows, schema=["user", "item", "time", "stars"], orient="row")
    path = folder / name
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


def scan(path, **settings):
    return Dataset.scan(path, **{"time": "time", "rating": "stars", **settings})


def histories(loaded):
    prepared = loaded.prepared
    return {
        user: loaded.items.raw(prepared.items[prepared.offsets[row] : prepared.offsets[row + 1]]).tolist()
        for row, user in enumerate(loaded.users.ids.tolist())
    }


def same(one, other):
    assert histories(one) == histories(other)
    for name in ("times", "weights", "parts"):
        left, right = getattr(one.prepared, name), getattr(other.prepared, name)
        assert (left is None) == (right is None) and (left is None or left.tolist() == right.tolist())
    assert one.report == other.report and one.prepared.order == other.prepared.order


def test_events_by_user_and_time_with_ties_in_file_order(tmp_path):
    loaded = scan(write(tmp_path)).prepare()
    assert histories(loaded) == {"a": [30, 10, 20], "b": [10, 30], "c": [20]}
    assert loaded.prepared.times[:3].tolist() == [1_500_000_100_000, 1_500_000_200_000, 1_500_000_200_000]
    assert loaded.prepared.order == "time" and loaded.prepared.items.dtype == np.int32
    assert loaded.items.ids.tolist() == [10, 20, 30] and loaded.items.first == 1
    loaded.prepared.check()


def test_rows_do_not_depend_on_the_order_of_the_file(tmp_path):
    one, other = write(tmp_path), write(tmp_path, ROWS[::-1], "other.parquet")
    found = [scan(path, ties="hash").prepare() for path in (one, other)]
    same(*found)


@pytest.mark.parametrize(
    ("settings", "order", "history"),
    [
        ({}, "time", [30, 10, 20]),
        ({"order": "file"}, "file", [10, 20, 30]),
        ({"time": None}, "file", [10, 20, 30]),
        ({"time": None, "order": "none"}, "none", [10, 20, 30]),
        ({"time": None, "order": "day"}, "day", [10, 20, 30]),
        ({"time_unit": "days", "time": "stars"}, "day", [10, 20, 30]),
    ],
)
def test_order(tmp_path, settings, order, history):
    loaded = scan(write(tmp_path), **settings).prepare()
    assert loaded.prepared.order == order and histories(loaded)["a"] == history


def test_report_counts_each_operation(tmp_path):
    path = write(tmp_path, [*ROWS, ("a", 10, 1_500_000_900, 5), (None, 10, 1, 5), ("", 10, 1, 5)])
    data = scan(path).clean(duplicates="first", min_rating=3, min_user=2)
    report = data.report
    assert [one.rows_out for one in report] == [9, 7, 6, 5, 3]
    assert report.steps[0].users_out == 3 and "2 without user" in report.steps[1].note
    assert "time read as" in str(report) and str(report).split()[0] == "after"
    assert histories(data.prepare()) == {"a": [30, 10, 20]}
    assert histories(data.clean(max_history=1).prepare()) == {"a": [20]}


def test_missing_ids_need_clean(tmp_path):
    path = write(tmp_path, [*ROWS, (None, 10, 1_500_000_000, 5)])
    with pytest.raises(DataError, match="clean"):
        scan(path).prepare()
    with pytest.raises(DataError, match="clean"):
        scan(path).clean(drop_missing=False).prepare()


def test_duplicate_rows_stay_unless_asked(tmp_path):
    path = write(tmp_path, [*ROWS, ROWS[0], ROWS[0]])
    assert histories(scan(path).prepare())["b"] == [10, 30, 30, 30]
    assert histories(scan(path).clean(duplicates="last").prepare())["b"] == [10, 30]


def test_one_user_one_item_one_event(tmp_path):
    loaded = scan(write(tmp_path, ROWS[:1])).prepare()
    assert histories(loaded) == {"b": [30]} and loaded.prepared.num_items == 1
    with pytest.raises(DataError, match="longest"):
        scan(write(tmp_path, ROWS[:1])).split(LeaveLast())


def test_everything_filtered_away_says_where(tmp_path):
    path = write(tmp_path)
    with pytest.raises(DataError, match="min_user=3"):
        scan(path).clean(min_user=50).prepare()
    with pytest.raises(DataError, match="highest is 5"):
        scan(path).clean(min_rating=9).prepare()


def test_int_and_string_ids(tmp_path):
    loaded = scan(write(tmp_path, name="log.csv")).prepare()
    assert loaded.items.kind == "int" and loaded.users.kind == "str"
    assert scan(write(tmp_path, name="log.csv"), ids="str").prepare().items.kind == "str"


def test_item_texts_are_aligned_with_rows(tmp_path):
    pl.DataFrame({"item": [30, 10, 99], "title": ["thirty", "ten", "unused"]}).write_parquet(tmp_path / "items.parquet")
    loaded = scan(write(tmp_path), items=tmp_path / "items.parquet").prepare()
    assert loaded.item_text["title"].tolist() == ["", "ten", "", "thirty"]
    assert any("1 of 3 items have no row" in note for note in loaded.report.notes)
    assert any("1 of 3 rows are of items that occur in no event" in note for note in loaded.report.notes)
    pl.DataFrame({"item": ["30", "10"], "title": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"str.*int"):
        scan(write(tmp_path), items=tmp_path / "items.parquet").prepare()


# cache


def test_cache_gives_the_same_without_reading_again(tmp_path, monkeypatch):
    (tmp_path / "items.csv").write_text("item,title\n10,ten\n20,zwölf\n")
    data = scan(write(tmp_path), items=tmp_path / "items.csv").clean(min_user=2)
    first = data.prepare(tmp_path / "cache")
    same(first, data.clean(max_history=9).prepare()._replace(report=first.report))
    monkeypatch.setattr(module.Source, "read", None)
    again = scan(tmp_path / "log.parquet", items=tmp_path / "items.csv").clean(min_user=2).prepare(tmp_path / "cache")
    same(first, again)
    assert isinstance(again.prepared.items, np.memmap)
    assert again.item_text["title"].tolist() == first.item_text["title"].tolist() == ["", "ten", "zwölf", ""]


def test_cache_key_covers_bytes_and_settings_but_not_paths(tmp_path):
    data = scan(write(tmp_path))
    hashes = {
        data.data_hash,
        data.clean().data_hash,
        data.clean(min_user=2).data_hash,
        scan(write(tmp_path), ties="hash").data_hash,
        scan(write(tmp_path, ROWS[:-1], "less.parquet")).data_hash,
    }
    assert len(hashes) == 5
    shutil.copy(tmp_path / "log.parquet", tmp_path / "copy.parquet")
    assert scan(tmp_path / "copy.parquet").data_hash == data.data_hash


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "version"])
def test_damaged_cache_is_built_again_with_a_notice(tmp_path, damage):
    path, cache = write(tmp_path), tmp_path / "cache"
    first = scan(path).prepare(cache)
    folder = next(cache.iterdir())
    target = folder / "prepared" / "items.npy"
    if damage == "truncate":
        target.write_bytes(target.read_bytes()[:-2])
    elif damage == "flip":
        content = bytearray(target.read_bytes())
        content[-1] ^= 0x40
        target.unlink()  # `first` has it mapped
        target.write_bytes(content)
    elif damage == "delete":
        target.unlink()
    else:
        manifest = folder / "manifest.json"
        text = manifest.read_text()
        manifest.write_text(
            text[:50] if damage == "manifest" else text.replace(f'"format": {module.FORMAT}', '"format": 99')
        )
    with pytest.warns(DataWarning, match="again"):
        again = scan(path).prepare(cache)
    same(first, again)
    same(first, scan(path).prepare(cache))
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_a_full_disk_keeps_the_data_and_no_half_cache(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    data = scan(write(tmp_path))
    monkeypatch.setattr(np, "save", full)
    with pytest.warns(DataWarning, match="No space"):
        loaded = data.prepare(tmp_path / "cache")
    assert histories(loaded)["b"] == [10, 30]
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


# split


def test_split_prints_what_was_dropped_and_the_audit(tmp_path, capsys):
    data = scan(write(tmp_path), name="toy", expected={"users": 3, "items": 3, "events": 6}).clean(min_user=2)
    split = data.split(LeaveLast(valid=0))
    out = capsys.readouterr().out
    assert "core, users 2+" in out and "audit of toy" in out
    assert split.num_users == 2 and split.name == "toy" and split.protocol["name"] == "leave-last"
    assert split.data_hash == data.data_hash and split.audit is not None
    assert data.split(LeaveLast(valid=0), audit=False).audit is None
    assert capsys.readouterr().out == ""


def test_data_and_splits_are_shown_by_name_and_size(tmp_path):
    data = scan(write(tmp_path), name="toy").clean()
    for word in ("toy", "log.parquet", "time='time'", "cleaned"):
        assert word in repr(data)
    shown = repr(data.split(LeaveLast(), audit=False))
    for word in ("toy", "leave-last", "3 users, 3 items", "4 training, 1 valid, 1 test"):
        assert word in shown


def test_global_time_is_the_default(tmp_path):
    rows = [(user, item, 1_500_000_000 + 1000 * item + user, 5) for user in range(5) for item in range(20)]
    split = scan(write(tmp_path, rows)).split()
    assert split.protocol == scan(write(tmp_path, rows)).split(GlobalTime(0.1, 0.1)).protocol


SPLITTERS = {
    "a name": ("random", r"such as rs\.LeaveLast\(\) or rs\.GlobalTime\(\), found 'random'\. Random splits are not"),
    "a fraction": (0.2, r"found 0\.2\. .* an object with apply\(prepared\) and protocol\(prepared\)"),
    "a class": (LeaveLast, r"found the class LeaveLast: pass LeaveLast\(\)"),
}


@pytest.mark.parametrize("case", SPLITTERS)
def test_what_is_not_a_splitter_is_refused_with_what_to_pass(tmp_path, case):
    given, message = SPLITTERS[case]
    with pytest.raises(TypeError, match=message):
        scan(write(tmp_path)).split(given)


def test_leave_last_without_order_is_refused(tmp_path):
    with pytest.raises(DataError, match="order"):
        scan(write(tmp_path), time=None, order="none").split(LeaveLast())


def test_given_parts(tmp_path):
    texts = {"train": "1 10 20\n2 10\n", "valid": "1 30\n", "test": "2 20\n1 10\n"}
    for part, text in texts.items():
        (tmp_path / f"{part}.txt").write_text(text)
    data = Dataset.scan(splits={part: tmp_path / f"{part}.txt" for part in texts}, format="sequences")
    loaded = data.prepare()
    assert data.name == tmp_path.name and loaded.prepared.parts.tolist() == [0, 0, 1, 2, 0, 2]
    assert histories(loaded) == {1: [10, 20, 30, 10], 2: [10, 20]}
    split = data.split(Given())
    assert split.train_stop.tolist() == [2, 5] and split.valid_stop.tolist() == [3, 5]


@pytest.mark.parametrize("wrong", [{"order": "week"}, {"ties": "item"}, {"ids": "float"}])
def test_arguments_are_checked_at_once(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        scan(write(tmp_path), **wrong)


def test_processes_that_prepare_the_same_at_once_agree(tmp_path, monkeypatch):
    path, cache = write(tmp_path), tmp_path / "cache"
    first, build = scan(path), Dataset._build

    def overtaken(self):
        monkeypatch.setattr(Dataset, "_build", build)
        scan(path).prepare(cache)
        return build(self)

    monkeypatch.setattr(Dataset, "_build", overtaken)
    same(first.prepare(cache), scan(path).prepare())
    assert len(list(cache.iterdir())) == 1


def test_k11_a_items_of_the_table_without_events_are_told(tmp_path):
    rows = [(f"u{user}", f"i{(user + at) % 10:02d}", 1_500_000_000 + at, 5) for user in range(10) for at in range(4)]
    table = pl.DataFrame({"item": [f"i{at:02d}" for at in range(12)], "title": [f"title {at}" for at in range(12)]})
    for items in (table, table[:10]):
        items.write_csv(tmp_path / "items.csv")
        notes = scan(write(tmp_path, rows), items=tmp_path / "items.csv").report.notes
        assert any("2 of 12 rows" in note and "add_items" in note for note in notes) == (len(items) == 12)


@pytest.mark.parametrize("kind", ["path", "frame"])
def test_long_reading_says_what_it_does(tmp_path, monkeypatch, kind):
    said = []

    @contextmanager
    def saying(text, enabled=True):
        said.append(text)
        yield said.append

    monkeypatch.setattr(module, "saying", saying)
    path = write(tmp_path)
    data = scan(pl.read_parquet(path) if kind == "frame" else path)
    data.split(LeaveLast(), cache=tmp_path / "cache")
    name = "frame" if kind == "frame" else "log"
    for word in (
        "hashing",
        f"reading {name}",
        "sorting 6 events",
        "writing",
        f"splitting {name}",
        f"auditing the split of {name}",
    ):
        assert any(word in text for text in said), (word, said)


def test_the_hash_of_data_is_that_of_earlier_versions(tmp_path):
    (tmp_path / "log.csv").write_text("user,item,time,stars\na,x,1500000000,5\n")
    (tmp_path / "items.csv").write_text("item,title\nx,ex\n")
    data = scan(tmp_path / "log.csv", items=tmp_path / "items.csv").clean(duplicates="first", min_user=1)
    assert data.data_hash == "e729d747d10fd73df1e2fa0c59faa32e28417410c63e8824a210e90c1f813151"
    hashes = {data.data_hash, data.clean(max_user=9).data_hash, data.clean(missing_times=[0]).data_hash}
    assert len(hashes | {data.clean(duplicates=["exact", "first"]).data_hash}) == 4


def test_quick_reading_is_silent(tmp_path, capsys):
    scan(write(tmp_path)).split(LeaveLast(), audit=False)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
