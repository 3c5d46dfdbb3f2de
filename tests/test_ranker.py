"""What every recommender answers: exclusion, allow-lists, unknown ids, fallback, saved tensors."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataWarning
from recsys.ranker import History, Ranker, collate
from recsys.seams import Context

ITEMS = np.array(["a", "b", "c", "d", "e"], dtype=object)


class Alphabet(Ranker):
    """Scores e > d > c > b > a, plus 10 for the item of the newest token."""

    def score(self, batch: Batch) -> Tensor:
        scores = torch.arange(5.0).repeat(len(batch), 1)
        newest = batch.ids.gather(1, batch.lengths[:, None] - 1)
        return scores.scatter_add(1, newest - 1, torch.full((len(batch), 1), 10.0))


@pytest.fixture
def model() -> Alphabet:
    ranker = Alphabet()
    ranker.bind(Context(5, Vocabulary(ITEMS, first=1)))
    ranker.popularity = torch.tensor([0.0, 9.0, 1.0, 2.0, 3.0, 4.0])
    return ranker


def test_history_is_left_out_or_kept_as_asked(model: Alphabet) -> None:
    assert model.recommend([["e", "a"]], k=2).items == [["d", "c"]]
    assert model.recommend([["e", "a"]], k=2, exclude="none").items == [["a", "e"]]


def test_exclusion_reaches_beyond_what_the_model_reads(model: Alphabet) -> None:
    model.max_length = 1
    assert model.recommend([["e", "d", "a"]], k=2).items == [["c", "b"]]


def test_unknown_items_are_skipped_and_counted(model: Alphabet) -> None:
    top = model.recommend([["a", "new", "b", "newer"], ["c"]], k=1, exclude="none")
    assert top.items == [["b"], ["c"]]
    assert top.unknown.tolist() == [2, 0]


def test_nothing_known_falls_back_to_popularity_and_says_so(model: Alphabet) -> None:
    with pytest.warns(DataWarning, match="2 of 3") as warned:
        top = model.recommend([[], ["a"], ["new"]], k=2, exclude="none")
    assert top.items == [["a", "e"], ["a", "e"], ["a", "e"]]
    assert top.fallback.tolist() == [True, False, True]
    assert warned[0].filename == __file__, "the warning points at the caller"


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_printed_recommendations_show_raw_ids_and_what_was_lost(model: Alphabet) -> None:
    lines = str(model.recommend([["a", "new"], [], list("abcde"), *[["b"]] * 97], k=2)).splitlines()
    assert "e 4, d 3" in lines[0] and "1 unknown" in lines[0]
    assert "a 9, e 4" in lines[1] and "popularity" in lines[1]
    assert "nothing" in lines[2] and len(lines) < 20 and "90 more" in lines[-1]


def test_allow_list_and_too_few_left(model: Alphabet) -> None:
    with pytest.warns(DataWarning, match="1 of 3"):
        top = model.recommend([["b"]], k=3, allow=["b", "c", "nowhere"])
    assert top.items == [["c"]]
    assert top.rows.tolist() == [[3, 0, 0]]


def test_k_beyond_the_catalogue_and_wrong_exclude_are_errors(model: Alphabet) -> None:
    with pytest.raises(ValueError, match="5 items"):
        model.recommend([["a"]], k=6)
    with pytest.raises(ValueError, match="exclude"):
        model.recommend([["a"]], k=1, exclude="seen")
    with pytest.raises(ValueError, match="fit"):
        Alphabet().recommend([["a"]], k=1)


def test_many_users_in_blocks_equal_one_by_one(model: Alphabet, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [["a"], ["b", "c"], ["d"], ["e", "a", "b"], ["c"]]
    whole = model.recommend(histories, k=2)
    monkeypatch.setattr("recsys.ranker.SCORE_BUDGET", 40)
    assert model.recommend(histories, k=2).items == whole.items
    assert np.array_equal(model.scores(histories), np.concatenate([model.scores([one]) for one in histories]))


@pytest.mark.parametrize("histories", [["a", "b"], "ab", [1, 2], [None], {"user": ["a"]}])
def test_ids_where_histories_are_expected_are_refused(model: Alphabet, histories: Any) -> None:
    for ask in (lambda: model.recommend(histories, k=1), lambda: model.scores(histories)):
        with pytest.raises(TypeError, match="a history is a list of raw ids"):
            ask()
    with pytest.raises(TypeError, match="one id"):
        model.recommend([["a"]], k=1, allow="b")


def test_a_long_history_does_not_widen_the_batches_of_others(model: Alphabet, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [["a"]] * 10 + [["a", "b"] * 500] + [["c"]] * 10
    whole = model.recommend(histories, k=2)
    monkeypatch.setattr("recsys.ranker.SCORE_BUDGET", 1000)
    sizes = [tuple(batch.ids.shape) for batch, _ in model._batches(histories)]
    assert sizes == [(10, 1), (1, 1000), (10, 1)]
    assert model.recommend(histories, k=2).items == whole.items


def test_no_histories_give_nothing(model: Alphabet) -> None:
    assert model.recommend([], k=2).items == []
    assert model.scores([]).shape == (0, 5)


def test_times_travel_with_their_items() -> None:
    vocabulary = Vocabulary(ITEMS, first=1)
    histories = [History(["a", "new", "b", "c"], times=[1, 2, 3, 4]), History(["d"], times=[9])]
    batch, unknown = collate(histories, vocabulary, 2, frozenset({"times"}))
    assert batch.ids.tolist() == [[2, 3], [4, 0]]
    assert batch.times is not None and batch.times.tolist() == [[3, 4], [9, 0]]
    assert unknown.tolist() == [1, 0]
    with pytest.raises(ValueError, match="times"):
        collate([History(["a"])], vocabulary, 2, frozenset({"times"}))


def test_times_may_be_an_array_and_an_empty_history_needs_none() -> None:
    vocabulary = Vocabulary(ITEMS, first=1)
    histories = [History(["a", "b"], times=np.array([1, 2])), History([]), History(["c"], times=np.array([9]))]
    batch, _ = collate(histories, vocabulary, 5, frozenset({"times"}))
    assert batch.times is not None and batch.times.tolist() == [[1, 2], [0, 0], [9, 0]]


def test_saved_tensors_must_fit(model: Alphabet) -> None:
    other = Alphabet()
    other.bind(Context(5, Vocabulary(ITEMS, first=1)))
    other.load_tensors(model.tensors())
    assert torch.equal(other.popularity, model.popularity)
    with pytest.raises(ValueError, match="popularity"):
        other.load_tensors({})


def test_times_that_are_no_numbers_are_refused():
    vocabulary = Vocabulary(np.array(["a", "b"], object), first=1)
    for times in ([datetime(2020, 1, 1)] * 2, [1, None], [1.0, float("nan")], [np.datetime64("2020-01-01", "s")] * 2):
        with pytest.raises(ValueError, match="milliseconds"):
            collate([History(["a", "b"], times)], vocabulary, 5, frozenset({"times"}))
