"""What every recommender answers: exclusion, allow-lists, unknown ids, fallback, saved tensors."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.errors import DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.recommenders.history import History, collate

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


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_the_repr_of_recommendations_shows_raw_ids(model: Alphabet) -> None:
    top = model.recommend([["a", "new"], []], k=2)
    assert repr(top).splitlines() == [
        "TopK(2 histories, k=2, 1 unknown history items, 1 ranked by popularity)",
        *str(top).splitlines(),
    ]
    assert repr(model.recommend([["a"]], k=1)) == "TopK(1 history, k=1)\n0: e 4"


def test_ids_of_another_type_are_told_with_both_types(model: Alphabet) -> None:
    with pytest.warns(
        DataWarning, match="have int ids, such as 1, and the catalogue has str ids, such as 'a'"
    ) as warned:
        model.recommend([[], [1, 2], [3]], k=1)
    assert {one.filename for one in warned} == {__file__}
    with pytest.warns(DataWarning, match="popularity") as warned:
        model.recommend([[1, 2], ["a"]], k=1)  # some are known: the others are strangers
        model.recommend([["new"], []], k=1)
        model.recommend([[]], k=1)
    assert not any("catalogue has" in str(one.message) for one in warned)


def test_a_model_that_is_not_fitted_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"Alphabet is not fitted: call fit\(model, split\), or load a run"):
        Alphabet().recommend([["a"]])


def test_allow_list_and_too_few_left(model: Alphabet) -> None:
    with pytest.warns(DataWarning, match="1 of 3"):
        top = model.recommend([["b"]], k=3, allow=["b", "c", "nowhere"])
    assert top.items == [["c"]]
    assert top.rows.tolist() == [[3, 0, 0]]


def test_k_beyond_the_catalogue_gives_a_short_list_and_a_wrong_exclude_is_an_error(model: Alphabet) -> None:
    assert model.recommend([["a"]], k=6).items == [["e", "d", "c", "b"]]
    with pytest.raises(ValueError, match="exclude"):
        model.recommend([["a"]], k=1, exclude="seen")
    with pytest.raises(ValueError, match="fit"):
        Alphabet().recommend([["a"]], k=1)


def test_many_users_in_blocks_equal_one_by_one(model: Alphabet, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [["a"], ["b", "c"], ["d"], ["e", "a", "b"], ["c"]]
    whole = model.recommend(histories, k=2)
    monkeypatch.setattr("recsys.recommenders.base.SCORE_BUDGET", 40)
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
    monkeypatch.setattr("recsys.recommenders.base.SCORE_BUDGET", 1000)
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


class Flat(Alphabet):
    """The same score for all items but the first, which it never shows."""

    def score(self, batch: Batch) -> Tensor:
        return torch.tensor([-torch.inf, 1.0, 1.0, 1.0, 1.0]).repeat(len(batch), 1)


@pytest.fixture
def flat(model: Alphabet) -> Flat:
    ranker = Flat()
    ranker.bind(Context(5, Vocabulary(ITEMS, first=1)))
    ranker.popularity = model.popularity
    return ranker


def test_index_f3_b10_equal_scores_come_in_the_order_of_the_catalogue(flat: Flat) -> None:
    lists = [flat.recommend([["a"]], k=k).items[0] for k in range(1, 6)]
    assert lists == [list("bcde")[:k] for k in range(1, 6)], "minus infinity means never"


def test_k13_a_denied_items_are_left_out_for_all_or_for_one(model: Alphabet) -> None:
    assert model.recommend([["a"], ["b"]], k=2, deny=["e", "d"]).items == [["c", "b"], ["c", "a"]]
    assert model.recommend([["a"], ["b"]], k=2, deny=[["e"], None]).items == [["d", "c"], ["e", "d"]]
    assert model.recommend([["a"], ["b"]], k=2, deny=[["e"], []], allow=["e", "c"]).items == [["c"], ["e", "c"]]
    assert model.recommend([["a"], ["b"]], k=2, allow=[["c", "b"], None]).items == [["c", "b"], ["e", "d"]]
    with pytest.warns(DataWarning, match="1 of 2 denied"):
        assert model.recommend([["a"]], k=9, deny=["e", "nowhere"]).items == [["d", "c", "b"]]


@pytest.mark.parametrize("arguments", [{"k": 2.5}, {"k": "3"}, {"k": True}, {"deny": 3}, {"allow": {"a": 1}},
                                       {"allow": [["a"], "b"]}, {"deny": "e"}])  # fmt: skip
def test_hostile_15_wrong_types_are_type_errors(model: Alphabet, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        model.recommend([["a"], ["b"]], **arguments)


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": -1}, {"allow": []}, {"deny": [["a"]]}, {"exclude": "all"}])
def test_hostile_15_what_cannot_be_meant_is_refused(model: Alphabet, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        model.recommend([["a"], ["b"]], **arguments)


def test_index_f8_true_is_no_item() -> None:
    ranker = Alphabet()
    ranker.bind(Context(5, Vocabulary(np.arange(1, 6), first=1)))
    top = ranker.recommend([[True, 2], [np.True_, False]], k=5)
    assert top.unknown.tolist() == [1, 2]
    assert 1 in top.items[0]
    assert ranker.recommend([[2, float("nan"), None, 1.5, -5]], k=1).unknown.tolist() == [4]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_hostile_8_scores_that_are_no_numbers_are_refused(model: Alphabet, bad: float, monkeypatch) -> None:
    whole = model.score

    def broken(batch: Batch) -> Tensor:
        scores = whole(batch)
        scores[batch.ids[:, 0] == 3, 1] = bad
        return scores

    monkeypatch.setattr(model, "score", broken)
    assert len(model.recommend([["a"]], k=2).items[0]) == 2
    with pytest.raises(ValueError, match="position 1"):
        model.recommend([["a"], ["c"], ["c"]], k=2)


def test_recommend_leaves_the_mode_of_a_model_as_it_is(model: Alphabet) -> None:
    model.frozen = torch.nn.Dropout()
    model.train()
    model.frozen.eval()
    seen = []
    score = model.score
    model.score = lambda batch: (seen.append(model.training), score(batch))[1]  # type: ignore[method-assign]
    model.recommend([["a"]], k=1)
    with pytest.raises(ValueError, match="position"):
        model.score = lambda batch: score(batch) * torch.nan  # type: ignore[method-assign]
        model.recommend([["a"]], k=1)
    assert (seen, model.training, model.frozen.training) == ([False], True, False)


def test_the_mode_holds_until_the_last_thread_has_left(model: Alphabet) -> None:
    model.train()
    entered, leave, modes = threading.Barrier(2), threading.Event(), []
    score = model.score

    def slow(batch: Batch) -> Tensor:
        if len(batch) == 2:
            entered.wait(60)
            leave.wait(60)
            modes.append(model.training)
        return score(batch)

    model.score = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=model.recommend, args=([["a"], ["b"]], 1))
    thread.start()
    entered.wait(60)
    model.recommend([["a"]], k=1)
    leave.set()
    thread.join(60)
    assert modes == [False]
    assert model.training


def test_recommendations_are_a_data_frame(model: Alphabet) -> None:
    top = model.recommend([["e", "a"], ["b", "c", "d", "e"]], k=2)
    frame = top.to_frame()
    assert frame.rows() == [(0, 1, "d", 3.0), (0, 2, "c", 2.0), (1, 1, "a", 0.0)]
    assert frame.columns == ["history", "rank", "item", "score"]
    assert pl.DataFrame(top).equals(frame)
    named = model.recommend([History(["a"], user="u7")], k=1).to_frame()
    assert named.rows() == [("u7", 1, "e", 4.0)]
    assert named.columns[0] == "user"
    assert model.recommend([], k=1).to_frame().rows() == []
    assert hasattr(top, "__arrow_c_stream__")


class Clock(Alphabet):
    """Keeps the times and query times that it was given."""

    needs = frozenset({"times", "query_time"})

    def score(self, batch: Batch) -> Tensor:
        self.seen = batch.times.tolist(), batch.query_time.tolist()
        return super().score(batch)


DAY, NOW = 1_600_000_000, 1_600_000_060
FORMS: dict[str, Any] = {
    "s": (DAY, NOW), "ms": (DAY * 1000, NOW * 1000), "us": (DAY * 10**6, NOW * 10**6), "ns": (DAY * 10**9, NOW * 10**9),
    "float": (float(DAY), float(NOW)), "text": ("2020-09-13T12:26:40", "2020-09-13 12:27:40Z"),
    "zone": ("2020-09-13T14:26:40+02:00", "2020-09-13T14:27:40+02:00"),
    "date": (datetime(2020, 9, 13, 12, 26, 40), datetime(2020, 9, 13, 12, 27, 40)),
    "numpy": (np.datetime64(DAY, "s"), np.datetime64(NOW, "s")),
}  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    ranker = Clock()
    ranker.bind(Context(5, Vocabulary(ITEMS, first=1)))
    return ranker


@pytest.mark.parametrize("form", FORMS)
def test_k14_times_of_histories_follow_the_rule_of_files(clock: Clock, form: str) -> None:
    at, now = FORMS[form]
    for ask in (clock.recommend, clock.scores):
        ask([History(["a", "b"], [at, at], query_time=now)])
        assert clock.seen == ([[DAY * 1000, DAY * 1000]], [NOW * 1000])


def test_k14_a_stated_unit_is_obeyed_and_mixed_ones_are_refused(clock: Clock) -> None:
    clock.recommend([History(["a"], [60], query_time=61, time_unit="s")])
    assert clock.seen == ([[60_000]], [61_000])
    clock.recommend([History(["a"], np.array([DAY]), query_time=DAY, time_unit="ms")])
    assert clock.seen == ([[DAY]], [DAY])
    mixed = [History(["a"], [DAY], query_time=DAY), History(["a"], [DAY * 1000], query_time=DAY)]
    for histories in (mixed, [History(["a"], [DAY], query_time=NOW * 1000)], [History(["a"], ["soon"], query_time=1)],
                      [History(["a"], [1], query_time=1, time_unit="weeks")]):  # fmt: skip
        with pytest.raises(ValueError):
            clock.recommend(histories)


def test_k14_times_decades_from_training_are_told(clock: Clock) -> None:
    from recsys.data.cut import Cut

    clock.cut = Cut("", "", "", "", newest=DAY * 1000)
    with pytest.warns(DataWarning, match="years") as caught:
        clock.recommend([History(["a"], [DAY], query_time=DAY, time_unit="ms")])
    assert caught[0].filename == __file__
    clock.recommend([History(["a"], [DAY], query_time=DAY)])


@pytest.mark.parametrize("missing", [0, -1])
def test_k14_placeholders_among_the_times_of_a_history_are_told(clock: Clock, missing: int) -> None:
    from recsys.data.cut import Cut

    clock.cut = Cut("", "", "", "", newest=DAY * 1000)
    with pytest.warns(DataWarning, match="1 of 2"):
        clock.recommend([History(["a", "b"], [missing, DAY], query_time=DAY), History(["a"], [DAY], query_time=DAY)])
