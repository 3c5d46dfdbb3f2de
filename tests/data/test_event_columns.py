"""Columns of events, from the file to the batch: cleaned, sorted and cut with their events, and not ahead of them."""

import pickle

import numpy as np
import polars as pl
import pytest
import torch

import recsys as rs
from recsys.augmentations.crop import Crop
from recsys.augmentations.reorder import Reorder
from recsys.data.batch import Batch
from recsys.data.prepared import Prepared
from recsys.errors import DataError
from recsys.targets.one_target import OneTarget
from recsys.train.loader import TrainBatches

ROWS = pl.DataFrame(
    {
        "user": ["b", "a", "a", "b", "a", None, "a", "b"],
        "item": [1, 2, 3, 2, 1, 5, 4, 3],
        "time": [5, 3, 1, 2, 2, 1, 9, 8],
        "device": ["tv", "phone", "", " tv", "pad", "watch", "phone", "phone"],
        "dwell": ["1.5", "2", "", "nan", "4", "5", "6", "7"],
        "tags": ["a|b", None, "b", "", "c|b|a", "x", "a", "c"],
        "code": [3, 1, 2, None, 2, 2, 3, 1],
    }
)
KINDS = {"device": "category", "dwell": "number", "tags": "list", "code": "category"}
NEEDS = frozenset(f"features.{name}" for name in KINDS)
WRITTEN = {
    "device": ["", "pad", "phone", "phone", "tv", "tv", "phone"],
    "dwell": ["", "4.0", "2.0", "6.0", "", "1.5", "7.0"],
    "tags": ["b", "c, b, a", "", "a", "", "a, b", "c"],
    "code": ["2", "2", "1", "3", "", "3", "1"],
}


def written(prepared: Prepared) -> dict[str, list[str]]:
    assert prepared.features is not None
    return {name: column.strings().tolist() for name, column in prepared.features.items()}


@pytest.fixture
def path(tmp_path):
    ROWS.write_csv(tmp_path / "events.csv")
    return tmp_path / "events.csv"


def scan(path) -> rs.Dataset:
    return rs.Dataset.scan(path, time="time", time_unit="days", event_columns=KINDS).clean()


def split_of(path) -> rs.Split:
    return scan(path).split(rs.LeaveLast(), audit=False)


def test_columns_stay_with_their_events_through_cleaning_and_sorting(path):
    data = scan(path)
    assert written(data.prepare().prepared) == WRITTEN
    assert data.prepare().prepared.features["device"].categories.ids.tolist() == ["pad", "phone", "tv"]  # no watch
    assert "event column device: category, 3 categories, such as 'pad', 'phone', 'tv', 14.3% missing" in str(
        data.report
    )


@pytest.mark.parametrize("kind", ["frame", "parquet", "two"])
def test_the_same_of_frames_and_several_files(tmp_path, kind):
    if kind == "frame":
        source = ROWS
    elif kind == "parquet":
        ROWS.write_parquet(tmp_path / "e.parquet")
        source = tmp_path / "e.parquet"
    else:
        ROWS.head(3).write_csv(tmp_path / "1.csv")
        ROWS.tail(5).write_csv(tmp_path / "2.csv")
        source = [tmp_path / "1.csv", tmp_path / "2.csv"]
    assert written(scan(source).prepare().prepared) == WRITTEN


def test_they_are_kept_in_the_cache_and_with_the_split(tmp_path, path):
    for _ in range(2):
        assert written(scan(path).prepare(tmp_path / "cache").prepared) == WRITTEN
    split = split_of(path)
    split.save(tmp_path / "split")
    again = rs.Split.load(tmp_path / "split").prepared
    assert written(again) == WRITTEN and isinstance(again.features["dwell"].values, np.memmap)
    assert written(pickle.loads(pickle.dumps(again))) == WRITTEN
    assert written(pickle.loads(pickle.dumps(split.prepared))) == WRITTEN


def test_they_leave_the_hash_of_the_data_and_have_a_folder_of_their_own_in_the_cache(tmp_path, path):
    columns = {"device": "category"}
    plain, more = rs.Dataset.scan(path), rs.Dataset.scan(path, event_columns=columns)
    assert more.data_hash == plain.data_hash  # reports with and without features are of one task
    assert plain.clean().prepare(tmp_path / "cache").prepared.features is None
    assert list(more.clean().prepare(tmp_path / "cache").prepared.features) == ["device"]
    other = ROWS.with_columns(device=pl.lit("x"))
    for table in (ROWS, other):
        made = rs.Dataset.scan(table, event_columns=columns).clean().prepare(tmp_path / "cache").prepared
        assert set(made.features["device"].strings()) - {""} == set(table["device"].str.strip_chars()) - {"", "watch"}


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"device": "number"}, DataError, r"column device are not numbers, such as 'tv' \(event 1\).*category"),
        ({"devise": "category"}, DataError, r"no column 'devise'.*did you mean 'device'"),
        ({"device": "text"}, ValueError, "texts of events are not kept, categories are"),
        ({"device": "colour"}, ValueError, "one of category, number, list, found 'colour'"),
        ({"dwell": "list", "tags": "list"}, None, ""),
    ],
)
def test_wrong_kinds_are_refused_with_a_sample(path, columns, error, message):
    if error is None:
        assert rs.Dataset.scan(path, event_columns=columns).clean().prepare().prepared.features.kinds == columns
        return
    with pytest.raises(error, match=message):
        rs.Dataset.scan(path, event_columns=columns).clean().prepare()


def test_a_batch_carries_what_is_asked_for(path):
    split = split_of(path)
    batch = split.train.gather(np.array([0, 1]), needs=NEEDS)
    assert batch.ids.shape == (2, 2) and set(batch.features) == set(KINDS)
    assert batch.features["device"].tolist() == [[0, 1], [3, 0]] and batch.features["device"].dtype == torch.int64
    torch.testing.assert_close(batch.features["dwell"], torch.tensor([[torch.nan, 4], [torch.nan, 0]]), equal_nan=True)
    assert batch.features["tags"].tolist() == [[[2, 0, 0], [3, 2, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert split.train.gather(np.array([0])).features == {}
    asked = split.test.batch(np.array([0]), needs=frozenset({"features.device"}))
    assert asked.features["device"].tolist() == [[0, 1, 2]]  # not the event that is to be found
    with pytest.raises(
        DataError, match=r"reads the event columns place, and these data keep device, dwell, tags, code"
    ):
        split.train.check_needs(frozenset({"features.place"}))
    with pytest.raises(ValueError, match=r"columns of events and users as features\.NAME"):
        split.train.check_needs(frozenset({"device"}))


def test_a_part_sees_the_columns_of_training_events_alone(path):
    training = split_of(path).train
    assert training.kinds == KINDS
    assert training.column("device").strings().tolist() == ["", "pad", "tv"]
    assert training.column("device", np.array([1])).strings().tolist() == ["tv"]
    with pytest.raises(DataError, match="no column 'place'"):
        training.column("place")


def test_the_loader_gives_them_with_and_without_workers(path):
    split = split_of(path)
    for workers in (0, 1):
        batches = TrainBatches(split.train, batch_size=2, needs=NEEDS, workers=workers)
        (batch,) = batches.epoch(0)
        assert set(batch.features) == set(KINDS)


def made() -> Batch:
    """Features that say which item they belong to: 10 times it, in a list with 100 times it."""
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
    features = {
        "code": ids * 10,
        "amount": torch.where(ids > 0, ids.float() / 2, 0.0),
        "list": torch.stack([ids * 10, ids * 100], 2),
    }
    rows = torch.arange(3)
    return Batch(rows, rows, ids, torch.tensor([4, 2, 1]), features=features)


def aligned(batch: Batch) -> bool:
    ids, found = batch.ids, batch.features
    return (
        torch.equal(found["code"], ids * 10)
        and torch.equal(found["amount"], ids.float() / 2)
        and torch.equal(found["list"], torch.stack([ids * 10, ids * 100], 2))
    )


def test_batches_are_selected_trimmed_joined_and_moved_with_their_features():
    batch = made()
    assert aligned(batch.select(torch.tensor([2, 1]))) and aligned(batch.select(torch.tensor([1, 2])).trim(2))
    narrow = batch.select(torch.tensor([1])).trim(2)
    joined = Batch.join([batch, narrow])
    assert joined.ids.shape == (4, 4) and aligned(joined) and aligned(joined.to("cpu"))
    short = narrow.replace(features={**narrow.features, "list": narrow.features["list"][:, :, :1]})
    assert Batch.join([short, batch]).features["list"].shape == (4, 4, 2)
    assert Batch.join([batch, batch.replace(features={})]).features == {}


@pytest.mark.parametrize("targets", [rs.NextItem(), rs.LastItem(), OneTarget()], ids=lambda one: type(one).__name__)
def test_targets_take_the_features_of_what_is_to_be_predicted_out_of_the_input(targets):
    batch = targets.train(made(), torch.Generator().manual_seed(0))
    assert aligned(batch)
    assert (batch.features["code"] > 0).sum(1).tolist() == batch.lengths.tolist()


def test_the_features_of_a_masked_event_are_missing():
    masked = rs.MaskedItems(0.5)
    masked.num_items = 9
    batch = masked.train(made(), torch.Generator().manual_seed(1))
    at = batch.targets > 0
    assert at.any() and (batch.features["code"][at] == 0).all() and batch.features["amount"][at].isnan().all()
    assert torch.equal(batch.features["list"][~at], made().features["list"][~at])
    asked = masked.query(made())
    assert asked.features["code"].tolist()[1] == [50, 60, 0, 0, 0] and asked.features["amount"][1, 2].isnan()


@pytest.mark.parametrize("view", [Crop(0.6), Reorder(0.9)], ids=["crop", "reorder"])
def test_views_move_features_with_their_items(view):
    assert aligned(view(made(), torch.Generator().manual_seed(0)))


def test_cold_items_keep_the_columns_of_the_events_that_stay():
    rows = pl.DataFrame({"user": np.repeat(np.arange(8), 6), "item": np.tile(np.arange(12), 4), "n": np.arange(48)})
    split = rs.Dataset.scan(rows, event_columns={"n": "number"}).split(rs.LeaveLast(), audit=False)
    cut = rs.cold_items(split, count=2).prepared
    items = split.items.raw(cut.items)
    assert np.array_equal(cut.features["n"].values % 12, items) and cut.num_events < 48


def test_columns_must_have_a_row_per_event(path):
    prepared = split_of(path).prepared
    with pytest.raises(DataError, match="columns have 2 rows for 7 events"):
        Prepared(prepared.items, prepared.offsets, 5, features=prepared.features.take(np.arange(2)))
