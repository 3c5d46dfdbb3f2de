"""A file of users in, a file of recommendations out, the same as one call would give, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.recommenders.base import Ranker
from recsys.serve.bundle import Bundle, export
from recsys.serve.files import recommend_file

pytestmark = pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")


@pytest.fixture
def bundle(model: Ranker, tmp_path) -> Bundle:
    return export(model, tmp_path / "bundle")


@pytest.fixture
def users() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    items = [[f"i{row}" for row in rng.integers(1, 61, rng.integers(1, 12))] for _ in range(50)]
    items[7], items[8] = ["nobody knows"], [*items[8], "nobody knows"]
    return pl.DataFrame({"user": [f"u{row}" for row in range(50)], "items": items})


def expected(bundle: Bundle, users: pl.DataFrame, k: int) -> list[list[str]]:
    return bundle.recommend(users["items"].to_list(), k).items


@pytest.mark.parametrize("form", ["parquet", "ndjson"])
def test_a_row_per_user(bundle: Bundle, users: pl.DataFrame, tmp_path, form: str, monkeypatch) -> None:
    monkeypatch.setattr("recsys.serve.files.USERS_PER_PASS", 13)
    getattr(users, f"write_{form}")(tmp_path / f"users.{form}")
    report = recommend_file(bundle, tmp_path / f"users.{form}", tmp_path / "out.parquet", k=4, batch_size=5)
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out["user"].to_list() == users["user"].to_list()
    assert out["items"].to_list() == expected(bundle, users, 4)
    assert out.schema["scores"] == pl.List(pl.Float32)
    assert (report.users, report.unknown_items, report.fallbacks, report.empty_histories) == (50, 2, 1, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out.parquet", f"users.{form}"]


@pytest.mark.parametrize("form", ["parquet", "csv", "ndjson"])
@pytest.mark.parametrize("time", ["none", "number", "date"])
def test_a_row_per_event(bundle: Bundle, users: pl.DataFrame, tmp_path, form: str, time: str, monkeypatch) -> None:
    monkeypatch.setattr("recsys.serve.files.EVENTS_PER_PASS", 100)
    events = users.explode("items").rename({"items": "item"})
    when = np.arange(len(events))
    if time == "number":
        events = events.with_columns(time=pl.Series(when)).sample(fraction=1.0, shuffle=True, seed=1)
    elif time == "date":
        stamps = [datetime(2024, 1, 1) + timedelta(minutes=int(minute)) for minute in when]
        events = events.with_columns(time=pl.Series(stamps)).sample(fraction=1.0, shuffle=True, seed=1)
    getattr(events, f"write_{form}")(tmp_path / f"events.{form}")
    report = recommend_file(bundle, tmp_path / f"events.{form}", tmp_path / "out.parquet", k=4)
    out = pl.read_parquet(tmp_path / "out.parquet")
    found = dict(zip(out["user"].to_list(), out["items"].to_list()))
    assert report.users == 50 == len(found)
    assert [found[user] for user in users["user"]] == expected(bundle, users, 4)


def test_a_row_per_recommendation(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=3, layout="long")
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.columns == ["user", "rank", "item", "score"]
    assert out["rank"].to_list() == [1, 2, 3] * 50
    assert out["item"].to_list() == [item for one in expected(bundle, users, 3) for item in one]


def test_empty_histories_and_short_lists_are_counted(bundle: Bundle, tmp_path) -> None:
    everything = [f"i{row}" for row in range(1, 61)]
    users = pl.DataFrame({"user": [1, 2, 3, None], "items": [[], None, everything, everything[:58]]})
    users.write_parquet(tmp_path / "users.parquet")
    with pytest.warns(DataWarning, match="popularity"):
        report = recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=4)
    assert (report.empty_histories, report.fallbacks, report.short_lists) == (2, 2, 2)
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert [len(one) for one in out["items"].to_list()] == [4, 4, 0, 2]
    assert out["user"].to_list() == [1, 2, 3, None]


def test_a_failure_leaves_the_old_file(bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "out.parquet").write_bytes(b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out.parquet", "users.parquet"]


def test_bad_input(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    good, out = tmp_path / "users.parquet", tmp_path / "out.parquet"
    users.write_parquet(good)
    with pytest.raises(FileNotFoundError):
        recommend_file(bundle, tmp_path / "no.parquet", out)
    for arguments in ({"k": 0}, {"layout": "wide"}, {"exclude": "x"}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must"):
            recommend_file(bundle, good, out, **arguments)
    with pytest.raises(ValueError, match="parquet"):
        recommend_file(bundle, good, tmp_path / "out.csv")
    users.rename({"items": "basket"}).write_parquet(tmp_path / "named.parquet")
    with pytest.raises(DataError, match="basket"):
        recommend_file(bundle, tmp_path / "named.parquet", out)
    pl.DataFrame({"user": [1], "items": [[1, 2]]}).write_parquet(tmp_path / "ints.parquet")
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:200])
    with pytest.raises(DataError, match="parquet"):
        recommend_file(bundle, tmp_path / "cut.parquet", out)
    users.head(0).write_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no users"):
        recommend_file(bundle, tmp_path / "none.parquet", out)
    assert not out.exists()


def test_the_file_of_users_is_not_replaced(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    before = (tmp_path / "users.parquet").read_bytes()
    with pytest.raises(ValueError, match="another file"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "x" / ".." / "users.parquet")
    assert (tmp_path / "users.parquet").read_bytes() == before


@pytest.mark.parametrize("column, values", [("user", ["1", None]), ("user", ["1", ""]), ("time", ["5", "soon"])])
def test_events_without_user_or_readable_time_are_refused(bundle: Bundle, tmp_path, column, values) -> None:
    events = {"user": ["1", "2"], "item": ["i1", "i2"], "time": ["1", "2"], column: values}
    pl.DataFrame(events).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=f"1 events without a readable {column}"):
        recommend_file(bundle, tmp_path / "events.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_texts_that_are_no_int_are_unknown_items(counted: Ranker, tmp_path) -> None:
    counted.vocabulary = Vocabulary(np.arange(1, counted.num_items + 1), 1)
    (tmp_path / "events.csv").write_text("user,item\na,3\na,what\nb,5.5\nc,\n")
    report = recommend_file(export(counted, tmp_path / "ints"), tmp_path / "events.csv", tmp_path / "out.parquet", k=2)
    assert (report.users, report.unknown_items, report.fallbacks, report.empty_histories) == (3, 2, 2, 1)


MEMORY = """
import resource, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, polars as pl
from recsys.serve.bundle import Bundle
from recsys.serve import files as stream
stream.USERS_PER_PASS = 1000
bundle = Bundle.load(sys.argv[1])
ids = np.array([f"i{row}" for row in range(1, 61)], object)
def run(count):
    with warnings.catch_warnings():
        stream.recommend_file(bundle, sys.argv[2], sys.argv[3], k=20, batch_size=500, layout="long", progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def write(count):
    lists = pl.Series(np.tile(np.arange(30, dtype=np.int64), (count, 1))).cast(pl.List(pl.Int64))
    frame = pl.DataFrame({"user": np.arange(count), "items": lists})
    frame.write_parquet(sys.argv[2], row_group_size=1000)
if sys.argv[4] == "write":
    write(int(sys.argv[5]))
else:
    print(run(0))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_users(split, tmp_path) -> None:
    from recsys.ids.vocabulary import Vocabulary
    from recsys.protocols import Context
    from recsys.recommenders.popularity import Popularity

    model = Popularity()
    model.learn(Context(num_items=60, vocabulary=Vocabulary(np.arange(60), 1), training=split.train))
    export(model, tmp_path / "bundle")
    paths = [str(tmp_path / name) for name in ("bundle", "users.parquet", "out.parquet")]

    def peak(count: int) -> float:
        for what in ("write", "run"):
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, *paths, what, str(count)], capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, done.stderr
        return float(done.stdout)

    few, many = peak(2_000), peak(60_000)
    # Holding the input and the output of 60,000 users would take 14 MB and 29 MB more, and Python lists of them 80 MB.
    assert many - few < 40


class Spans(Ranker):
    """Prefers the item whose row is the seconds between the last two events."""

    needs = frozenset({"times"})

    def item_score(self, batch):
        last = batch.lengths - 1
        return batch.times.gather(1, last[:, None]) - batch.times.gather(1, (last - 1).clamp(min=0)[:, None])

    def score(self, batch):
        rows = self.item_score(batch) / 1000
        return -(torch.arange(1, self.num_items + 1)[None] - rows).abs().float()


@pytest.mark.parametrize("form", ["s", "int32", "ms", "ns", "text", "zone", "date", "csv", "csv zone"])
@pytest.mark.parametrize("lists", [False, True])
def test_times_are_read_in_the_unit_that_they_have(context, tmp_path, form: str, lists: bool) -> None:
    ranker = Spans()
    ranker.bind(context)
    served = Bundle(tmp_path, ranker, None, {})
    seconds = pl.Series([1_600_000_000, 1_600_000_042])
    moments = pl.from_epoch(seconds)
    times = {
        "s": seconds, "int32": seconds.cast(pl.Int32), "ms": seconds * 1000, "ns": seconds * 10**9, "date": moments,
        "text": moments.dt.strftime("%Y-%m-%d %H:%M:%S"), "zone": moments.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "csv": seconds, "csv zone": moments.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"),
    }[form]  # fmt: skip
    if lists and form.startswith("csv"):
        pytest.skip("a CSV file has no lists")
    events = pl.DataFrame({"user": ["a", "a"], "item": ["i1", "i2"], "time": times})
    path = tmp_path / ("users.csv" if form.startswith("csv") else "users.parquet")
    if lists:
        events = events.group_by("user").agg(items="item", times="time")
    events.write_csv(path) if path.suffix == ".csv" else events.write_parquet(path)
    recommend_file(served, path, tmp_path / "out.parquet", k=1)
    assert pl.read_parquet(tmp_path / "out.parquet")["items"].to_list() == [["i42"]]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("long.csv", b"user,item\na,i1\nb,i1,9\n"),
        ("latin.csv", "user,item\nJosé,i1\n".encode("latin-1")),
        ("torn.ndjson", b'{"user": "a", "items": ["i1"]}\n' * 2000 + b'{"user": "b", "items":\n'),
    ],
)
def test_a_file_that_is_damaged_further_down_is_named(bundle: Bundle, tmp_path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        recommend_file(bundle, tmp_path / name, tmp_path / "out.parquet", k=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", name]


def test_k13_deny_and_allow_lists_for_all_and_per_user(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    path, out = tmp_path / "users.parquet", tmp_path / "out.parquet"
    users.write_parquet(path)
    recommend_file(bundle, path, out, k=5, deny=["i1", "i2"], allow=[f"i{row}" for row in range(1, 30)])
    histories = users["items"].to_list()
    allow = [f"i{row}" for row in range(1, 30)]
    assert pl.read_parquet(out)["items"].to_list() == bundle.recommend(
        histories, 5, deny=["i1", "i2"], allow=allow
    ).items  # fmt: skip
    lists = [None if row % 3 == 0 else ["i5", f"i{row + 1}"] for row in range(50)]
    users.with_columns(
        deny=pl.Series(lists), allow=pl.Series([allow if row % 2 else None for row in range(50)])
    ).write_parquet(path)
    recommend_file(bundle, path, out, k=5, deny=["i7"])
    expected = bundle.recommend(
        histories,
        5,
        deny=[[*(one or []), "i7"] for one in lists],
        allow=[allow if row % 2 else None for row in range(50)],
    )
    assert pl.read_parquet(out)["items"].to_list() == expected.items
    users.with_columns(deny=pl.lit("i3")).write_parquet(path)
    with pytest.raises(DataError, match="deny"):
        recommend_file(bundle, path, out)
    for lists in ("i1", [["i1"]]):
        with pytest.raises(TypeError, match="deny"):
            recommend_file(bundle, path, out, deny=lists)


def test_hostile_6_folders_of_others_are_left_alone(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "out.parquet.parts").mkdir()
    (tmp_path / "out.parquet.parts" / "notes.txt").write_text("mine")
    (tmp_path / "out.parquet.partial").write_text("mine too")
    (tmp_path / "secret.txt").write_text("untouched")
    (tmp_path / "out.parquet").symlink_to(tmp_path / "secret.txt")
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=3)
    assert (tmp_path / "out.parquet.parts" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out.parquet.partial").read_text() == "mine too"
    assert (tmp_path / "secret.txt").read_text() == "untouched"
    assert len(pl.read_parquet(tmp_path / "out.parquet")) == 50


@pytest.mark.parametrize(
    "error", [pl.exceptions.ComputeError("No space left on device (os error 28)"), OSError(28, "x")]
)
@pytest.mark.parametrize("where", ["DataFrame.write_parquet", "LazyFrame.sink_parquet"])
def test_hostile_10_a_full_disk_is_blamed_on_the_output(
    bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch, error: Exception, where: str
) -> None:
    users.write_parquet(tmp_path / "users.parquet")

    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(f"polars.{where}", full)
    with pytest.raises(OSError, match=r"out\.parquet") as caught:
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet")
    assert "users.parquet" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "users.parquet"]


def test_hostile_10_an_output_that_cannot_be_made_is_named(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"out\.parquet"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "file" / "out.parquet")


def test_hostile_12_recommending_speaks_in_between(bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    monkeypatch.setattr("recsys.serve.files.USERS_AT_A_TIME", 20)
    told = []
    monkeypatch.setattr("recsys.progress.Progress.advance", lambda self, n=1, **_: told.append(n))
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=3)
    assert told == [20, 20, 10]


def test_b11_a_file_changes_no_filter_of_warnings(bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch) -> None:
    import warnings

    users.write_parquet(tmp_path / "users.parquet")
    inner, seen = bundle.model._batches, []
    monkeypatch.setattr(bundle.model, "_batches", lambda h: (seen.append(list(warnings.filters)), inner(h))[1])
    before = list(warnings.filters)
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=3)
    assert seen == [before]


def test_hostile_6_and_13_parts_of_others_stay_and_a_second_writer_is_told(
    bundle: Bundle, users: pl.DataFrame, tmp_path
) -> None:
    from recsys.storage.files import Workplace

    users.write_parquet(tmp_path / "users.parquet")
    out = tmp_path / "out.parquet"
    for name in ("out.parquet.parts", "out.parquet.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    with Workplace(out, "parts"), pytest.raises(BlockingIOError, match="another process"):
        recommend_file(bundle, tmp_path / "users.parquet", out, progress=False)
    assert not out.exists()
    recommend_file(bundle, tmp_path / "users.parquet", out, progress=False)
    assert len(pl.read_parquet(out)) == 50
    assert all(
        (tmp_path / name / "notes").read_text() == "mine" for name in ("out.parquet.parts", "out.parquet.partial")
    )


@pytest.mark.parametrize("owner", [pl.DataFrame, pl.LazyFrame])
def test_hostile_10_a_full_disk_does_not_blame_the_input(
    bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch: pytest.MonkeyPatch, owner: type
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    users.write_parquet(tmp_path / "users.parquet")
    monkeypatch.setattr(owner, "write_parquet" if owner is pl.DataFrame else "sink_parquet", full)
    with pytest.raises(OSError, match="make room") as caught:
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", progress=False)
    assert caught.value.filename == str(tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "users.parquet"]


def test_hostile_2_a_link_beside_the_output_is_not_followed(bundle: Bundle, users: pl.DataFrame, tmp_path) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "mine").write_text("mine")
    for name in ("out.parquet", "out.parquet.partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", progress=False)
    assert (tmp_path / "mine").read_text() == "mine" and len(pl.read_parquet(tmp_path / "out.parquet")) == 50


def test_hostile_13_an_output_that_is_a_folder_is_refused_before_anything_is_ranked(
    bundle: Bundle, users: pl.DataFrame, tmp_path, monkeypatch
) -> None:
    users.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "out.parquet").mkdir()
    monkeypatch.setattr(Bundle, "_rank", None)
    with pytest.raises(IsADirectoryError, match="folder"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", k=2)


@pytest.mark.parametrize("form", ["us", "ns", "fraction", "iso", "datetime", "csv us", "csv iso", "csv fraction"])
def test_k4_events_of_a_file_are_sorted_by_all_digits_of_their_times(bundle: Bundle, tmp_path, form: str) -> None:
    micro = [1_700_000_000_000_300, 1_700_000_000_000_200, 1_700_000_000_000_100]
    moments = pl.from_epoch(pl.Series(micro), time_unit="us")
    times = {
        "us": pl.Series(micro), "ns": pl.Series(micro) * 1000, "datetime": moments,
        "fraction": pl.Series([f"{one / 1e6:.6f}" for one in micro]),
        "iso": moments.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f"),
    }[form.removeprefix("csv ")]  # fmt: skip
    events = pl.DataFrame({"user": ["a"] * 3, "item": ["i3", "i2", "i1"], "time": times})
    path = tmp_path / ("users.csv" if form.startswith("csv") else "users.parquet")
    events.write_csv(path) if path.suffix == ".csv" else events.write_parquet(path)
    recommend_file(bundle, path, tmp_path / "out.parquet", k=4)
    found = pl.read_parquet(tmp_path / "out.parquet")["items"].to_list()
    assert found == bundle.recommend([["i1", "i2", "i3"]], 4).items


def test_k16_blanks_around_ids_and_names_of_columns_of_a_file_are_taken_off(bundle: Bundle, tmp_path) -> None:
    expected = bundle.recommend([["i1", "i2"]], 4, deny=["i5"]).items
    (tmp_path / "users.csv").write_text("user, item\na, i1\na ,i2 \n")
    pl.DataFrame({"user": ["a"], "items": [[" i1", "i2\u00a0"]]}).write_parquet(tmp_path / "users.parquet")
    for name in ("users.csv", "users.parquet"):
        report = recommend_file(bundle, tmp_path / name, tmp_path / "out.parquet", k=4, deny=["i5"])
        assert (report.users, report.unknown_items) == (1, 0)
        assert pl.read_parquet(tmp_path / "out.parquet")["items"].to_list() == expected


def test_k13_what_is_allowed_to_all_bounds_what_is_allowed_to_each(bundle: Bundle, tmp_path) -> None:
    users = pl.DataFrame(
        {"user": ["a", "b", "c"], "items": [["i1"]] * 3, "allow": [["i2", "i9"], None, ["i9"]]},
        schema_overrides={"allow": pl.List(pl.String)},
    )
    users.write_parquet(tmp_path / "users.parquet")
    recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet", allow=["i2", "i3"])
    found = pl.read_parquet(tmp_path / "out.parquet")["items"].to_list()
    assert [set(one) for one in found] == [{"i2"}, {"i2", "i3"}, set()]


def test_lists_in_a_column_called_item_are_told_from_events(bundle: Bundle, tmp_path) -> None:
    pl.DataFrame({"user": ["a"], "item": [["i1"]]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="items"):
        recommend_file(bundle, tmp_path / "users.parquet", tmp_path / "out.parquet")


@pytest.mark.parametrize("form", ["events.parquet", "users.parquet", "events.csv"])
def test_features_that_the_model_reads_are_taken_from_the_file(tmp_path, form: str) -> None:
    random, count = np.random.default_rng(0), 6 * 30
    events = pl.DataFrame({
        "user": np.repeat([f"u{one}" for one in range(30)], 6),
        "item": [f"i{one}" for one in random.integers(0, 12, count)],
        "time": 10**9 + np.arange(count),
        "device": [["tv", "phone", None][one] for one in random.integers(0, 3, count)],
        "dwell": random.random(count).round(3),
    })  # fmt: skip
    people = pl.DataFrame({"user_id": [f"u{one}" for one in range(30)], "country": ["SE", "NO", "FI"] * 10})
    users = rs.read_users(people, kinds={"country": "category"})
    columns = {"device": "category", "dwell": "number"}
    split = rs.Dataset.scan(events, time="time", users=users, event_columns=columns).split(rs.LeaveLast(), audit=False)
    features = rs.FeatureInputs(columns, users={"country": "category"}, dim=8)
    model = rs.Recommender(rs.IdItems(8), rs.SASRec(8, 1, 1, max_length=8, features=features), rs.FullSoftmax())
    rs.fit(model, split, epochs=3, learning_rate=0.05, progress=False)
    bundle = export(model, tmp_path / "bundle", split=split)
    told = events.join(people, left_on="user", right_on="user_id")
    lists = told.group_by("user", maintain_order=True).agg(
        pl.col("item", "device", "dwell"), pl.col("country").last()
    )  # fmt: skip
    asked = [
        rs.History(row["item"], features={name: row[name] for name in ("device", "dwell", "country")})
        for row in lists.iter_rows(named=True)
    ]
    given = (
        lists.rename({"item": "items"}) if form == "users.parquet" else told.sample(fraction=1.0, shuffle=True, seed=1)
    )
    given.write_csv(tmp_path / form) if form.endswith("csv") else given.write_parquet(tmp_path / form)
    recommend_file(bundle, tmp_path / form, tmp_path / "out.parquet", k=4, progress=False)
    found = dict(pl.read_parquet(tmp_path / "out.parquet").select("user", "scores").iter_rows())
    scores = bundle.recommend(asked, 4).scores
    np.testing.assert_allclose([found[user] for user in lists["user"]], scores, rtol=1e-5)
    plain = bundle.recommend([one.items for one in asked], 4).scores
    assert not np.allclose(plain, scores, rtol=1e-2)
