"""What every baseline owes: scores and recommendations for any history, and a life after saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.errors import DataWarning
from recsys.eval.evaluate import evaluate
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.recommenders.ease import EASE
from recsys.recommenders.itemknn import ItemKNN
from recsys.recommenders.markov import Markov
from recsys.recommenders.popularity import Popularity
from recsys.storage.parts import build, describe

MAKERS = {
    "popularity": lambda: Popularity(),
    "recent": lambda: Popularity(window_days=2),
    "itemknn": lambda: ItemKNN(k=5, decay=0.9),
    "ease": lambda: EASE(l2=3.0),
    "ease-limited": lambda: EASE(l2=3.0, limit_items=7),
    "markov": lambda: Markov(),
}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest, context: Context) -> Ranker:
    ranker = MAKERS[request.param]()
    ranker.learn(context)
    return ranker


def test_scores_do_not_depend_on_the_company_in_a_batch(model: Ranker) -> None:
    histories = [["i1", "i2", "i1"], ["i9"], [f"i{row}" for row in range(1, 25)]]
    together = model.scores(histories)
    assert together.shape == (3, 30)
    assert np.isfinite(together).all()
    for row, history in enumerate(histories):
        np.testing.assert_allclose(model.scores([history])[0], together[row], rtol=1e-5, atol=1e-7)


def test_recommend_leaves_out_history_and_takes_any_history(model: Ranker) -> None:
    with pytest.warns(DataWarning, match="popularity"):
        best = model.recommend([["i1", "i2", "no such item"], [], ["i3"]], k=6)
    assert best.unknown.tolist() == [1, 0, 0]
    assert best.fallback.tolist() == [False, True, False]
    assert not {"i1", "i2"} & set(best.items[0])
    assert best.rows[1].tolist() == (model.popularity[1:].topk(6).indices + 1).tolist()
    assert "i3" in model.recommend([["i3"]], k=30, exclude="none").items[0]


def test_saved_and_loaded_without_data(model: Ranker, context: Context, tmp_path) -> None:
    save_file(model.tensors(), str(tmp_path / "model.safetensors"))
    again = build(describe(model))
    again.bind(Context(num_items=context.num_items, vocabulary=context.vocabulary))
    again.load_tensors(load_file(str(tmp_path / "model.safetensors")))
    histories = [["i1", "i2"], ["i9"]]
    assert (again.scores(histories) == model.scores(histories)).all()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("events", "items"), [([1, 2, 1, 2, 2], 2), ([1, 1, 1, 1, 1], 1)], ids=["user", "item"])
def test_one_user_or_one_item(name: str, events: list[int], items: int) -> None:
    times = np.arange(5) * 86_400_000
    prepared = Prepared(np.array(events, np.int32), np.array([0, 5]), items, times=times, order="time")
    vocabulary = Vocabulary(np.arange(items), 1)
    split = Split.of(prepared, LeaveLast(), vocabulary, Vocabulary(np.arange(1), 0))
    model = MAKERS[name]()
    model.learn(Context(num_items=items, vocabulary=vocabulary, training=split.train))
    report = evaluate(model, split.test, exclude="history-except-targets", progress=False)
    assert report.mean("recall@1") == 1.0  # nothing else is left
    assert model.recommend([[0]], k=items).rows.tolist() == [[2, 0] if items == 2 else [0]]


def test_training_data_are_required(model: Ranker) -> None:
    fresh = build(describe(model))
    with pytest.raises(ValueError, match="training"):
        fresh.learn(Context(num_items=30))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Popularity(window_days=0),
        lambda: ItemKNN(k=0),
        lambda: ItemKNN(shrink=-1),
        lambda: ItemKNN(decay=0),
        lambda: EASE(l2=0),
        lambda: EASE(limit_items=0),
        lambda: EASE(precision="half"),
        lambda: Markov(smoothing=-1),
    ],
)
def test_arguments_out_of_range(make) -> None:
    with pytest.raises(ValueError, match="found"):
        make()


def test_nothing_is_changed_in_place(model: Ranker, split) -> None:
    batch = split.valid.batch(np.arange(5), None)
    before = batch.ids.clone()
    scores = model.score_safely(batch)
    assert scores.dtype == torch.float32
    assert (model.score_safely(batch) == scores).all()
    scores.fill_(0)
    assert (batch.ids == before).all()
    assert model.score_safely(batch).abs().sum() > 0
