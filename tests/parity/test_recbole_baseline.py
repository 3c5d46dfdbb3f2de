"""RecBole models as outside baselines: ids, scores and manners, against RecBole itself."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.recbole import RecBole

pytestmark = pytest.mark.parity

NUM_ITEMS, NUM_USERS, LENGTH = 24, 60, 10
SMALL = {
    "hidden_size": 16, "inner_size": 16, "embedding_size": 16, "train_batch_size": 64, "learning_rate": 0.02,
    "MAX_ITEM_LIST_LENGTH": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("recbole.trainer", exc_type=ImportError)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def split_of(items: np.ndarray) -> Split:
    """(U, n) item rows, a history per row, under leave-last; raw ids in another order than rows."""
    users, length = items.shape
    prepared = Prepared(items.astype(np.int32).ravel(), np.arange(users + 1) * length, NUM_ITEMS, order="file")
    names = Vocabulary(np.array([f"i{(7 * row) % 25}" for row in range(1, NUM_ITEMS + 1)], object), 1)
    return Split.of(prepared, LeaveLast(), names, Vocabulary(np.arange(users), 0))


def walks() -> Split:
    """Everybody walks around the circle of items: the next item is the last one plus one."""
    start = np.random.default_rng(0).integers(0, NUM_ITEMS, NUM_USERS)
    return split_of((start[:, None] + np.arange(LENGTH)) % NUM_ITEMS + 1)


def two_crowds() -> Split:
    """Even users only take items of the lower half, odd users of the upper half."""
    drawn = np.random.default_rng(0).integers(0, NUM_ITEMS // 2, (NUM_USERS, LENGTH))
    return split_of(drawn + 1 + (np.arange(NUM_USERS)[:, None] % 2) * NUM_ITEMS // 2)


def fitted(split: Split, name: str, **arguments: Any) -> RecBole:
    model = RecBole(name, arguments.pop("config", SMALL), **{"epochs": 2, "patience": 0} | arguments)
    rs.fit(model, split, progress=False, validate_every=0, seed=3)
    return model


def history_batch(split: Split) -> Any:
    return split.test.batch(np.arange(NUM_USERS), 12)


@pytest.mark.parametrize("name", ["GRU4Rec", "SASRec"])
def test_a_planted_sequence_is_found_and_ranked_by_our_evaluator(name) -> None:
    split = walks()
    model = fitted(split, name, epochs=8 if name == "SASRec" else 6)
    report = rs.evaluate(model, split.test, k=(1, 10), progress=False)
    assert report.users == NUM_USERS
    assert report.mean("ndcg@10") > 0.8
    lists = model.recommend([split.items.raw(np.array([4, 5, 6])).tolist()], k=1)
    assert lists.items == [split.items.raw(np.array([7])).tolist()]


def test_bpr_finds_the_crowd_of_each_user() -> None:
    split = two_crowds()
    scores = fitted(split, "BPR", epochs=30).score(history_batch(split))
    lower, upper = scores[:, : NUM_ITEMS // 2].mean(1), scores[:, NUM_ITEMS // 2 :].mean(1)
    assert ((lower > upper) == (torch.arange(NUM_USERS) % 2 == 0)).float().mean() > 0.95


def test_popularity_comes_back_item_by_item_the_unseen_ones_included() -> None:
    items = np.random.default_rng(1).zipf(1.4, (NUM_USERS, LENGTH)) % (NUM_ITEMS - 4) + 1
    items[:, -1] = NUM_ITEMS  # held out only
    split = split_of(items)
    one_by_one = {"train_batch_size": 1, "train_neg_sample_args": None}  # it counts an item once per batch
    scores = fitted(split, "Pop", config=one_by_one).score(history_batch(split))
    counts = torch.tensor(split.train.item_counts()[1:], dtype=torch.float32)
    assert counts[-4:].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(scores, (counts / counts.max()).expand(NUM_USERS, -1))


@pytest.mark.parametrize("name", ["SASRec", "BPR"])
def test_scores_are_those_of_recbole_run_on_its_own(name, tmp_path: Path, monkeypatch) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    split = walks()
    ours = fitted(split, name).score(history_batch(split))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    (tmp_path / "toy").mkdir()
    events = [(user, item, place) for user in range(NUM_USERS) for place, item in enumerate(split.train.history(user))]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, event)) for event in events)]
    (tmp_path / "toy/toy.inter").write_text("\n".join(lines) + "\n")
    (tmp_path / "toy/toy.item").write_text("\n".join(["item_id:token", *map(str, range(1, NUM_ITEMS + 1))]) + "\n")
    chosen = SMALL | {
        "data_path": str(tmp_path), "seed": 3, "epochs": 2, "show_progress": False, "metrics": ["NDCG"],
        "valid_metric": "NDCG@10", "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
        "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "TO", "group_by": "user", "mode": "full"},
    }  # fmt: skip
    config = Config(name, "toy", config_dict=chosen | ({"train_neg_sample_args": None} if name == "SASRec" else {}))
    init_seed(3, True)
    dataset = create_dataset(config)
    training, _, _ = data_preparation(config, dataset)
    model = get_model(name)(config, training.dataset)
    get_trainer(config["MODEL_TYPE"], name)(config, model).fit(training, saved=False)

    batch = history_batch(split)
    known = {str(row): dataset.token2id("item_id", str(row)) for row in range(1, NUM_ITEMS + 1)}
    sequence = torch.zeros(NUM_USERS, 12, dtype=torch.int64)
    for user, ids in enumerate(batch.ids.tolist()):
        sequence[user, : len(ids)] = torch.tensor([known.get(str(row), 0) for row in ids])
    users = torch.tensor([dataset.token2id("user_id", str(user)) for user in range(NUM_USERS)])
    asked = Interaction({"user_id": users, "item_id_list": sequence, "item_length": batch.lengths})
    with torch.no_grad():
        theirs = model.eval().full_sort_predict(asked).view(NUM_USERS, -1)
    torch.testing.assert_close(ours, theirs[:, [known[str(row)] for row in range(1, NUM_ITEMS + 1)]])


def test_scores_of_a_model_without_full_sort_predict() -> None:
    split = two_crowds()
    model = fitted(split, "NeuMF", epochs=1)
    batch = history_batch(split)
    scores = model.score(batch)
    assert scores.shape == (NUM_USERS, NUM_ITEMS)
    torch.testing.assert_close(model.score(batch.select(torch.tensor([5]))), scores[5:6])


def test_early_stopping_holds_out_the_last_training_event_and_trains_anew(capsys) -> None:
    split = walks()
    model = fitted(split, "GRU4Rec", epochs=12, patience=1)
    found = int(model.trained_epochs)
    assert 1 <= found <= 12
    assert f"after {found} epochs" in capsys.readouterr().err
    again = fitted(split, "GRU4Rec", epochs=found)
    torch.testing.assert_close(model.score(history_batch(split)), again.score(history_batch(split)))


def test_users_without_training_events_get_popularity_and_bare_histories_an_error() -> None:
    whole = two_crowds()
    start = whole.prepared.offsets[:-1]
    train_stop = np.where(np.arange(NUM_USERS) == 4, start, whole.train_stop)
    split = Split(whole.prepared, train_stop, whole.valid_stop, whole.items, whole.users, whole.protocol)
    model = fitted(split, "BPR")
    with pytest.warns(DataWarning, match="1 users"):
        scores = model.score(history_batch(split))
    torch.testing.assert_close(scores[4], model.popularity[1:])
    with pytest.raises(ValueError, match="sequential"):
        model.recommend([split.items.raw(np.array([4, 5])).tolist()], k=1)


@pytest.mark.parametrize(("name", "word"), [("DeepFM", "CONTEXT"), ("SASRecc", "exact name")])
def test_models_that_cannot_run_here(name, word) -> None:
    with pytest.raises(ValueError, match=word):
        fitted(walks(), name)


def test_leaves_the_process_as_it_was_and_the_log_where_it_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recsys", "--hidden_size=99", "--epochs", "7"])
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    before = (os.getcwd(), list(sys.argv), logging.getLogger().handlers, dict(os.environ), torch.get_rng_state())
    model = fitted(walks(), "GRU4Rec", epochs=1, log=str(tmp_path / "log" / "theirs.log"))
    after = (os.getcwd(), list(sys.argv), logging.getLogger().handlers, dict(os.environ), torch.get_rng_state())
    assert before[:4] == after[:4]
    assert torch.equal(before[4], after[4])
    assert list(place.iterdir()) == []
    assert "epoch 0 training" in (tmp_path / "log" / "theirs.log").read_text()
    assert model._trained is not None and model._trained.model.hidden_size == SMALL["hidden_size"]


def test_a_run_folder_keeps_the_report_and_refuses_to_be_loaded(tmp_path: Path) -> None:
    split = walks()
    rs.fit(RecBole("Pop", epochs=1), split, folder=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="outside"):
        rs.load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="outside"):
        RecBole("Pop").bind(Context(NUM_ITEMS))
