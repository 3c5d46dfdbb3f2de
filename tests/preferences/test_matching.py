"""Matching with targets, the five axes, and their metrics, by hand and by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys as rs
from recsys.errors import DataError, LeakageError
from recsys.ids.vectors import Vectors
from recsys.preferences.axes import PARTS, consolidation, recommendation, sentiment, steering
from recsys.preferences.evaluate import CONTROLS, MODEL, NEAREST, SILENT, evaluate_axes, following
from recsys.preferences.matching import Matching
from recsys.preferences.table import MATCHED, Preferences
from recsys.preferences.write import write_preferences
from recsys.recommenders.top import TopK
from tests.preferences.shop import ITEMS, shop


def matching(split: Any, made: Preferences | None = None, seed: int = 0, width: int = 8) -> Matching:
    """Random vectors: nothing can be right by chance."""
    made = write_preferences(split, progress=False) if made is None else made
    rng = np.random.default_rng(seed)
    texts = rng.standard_normal((len(made), width)).astype(np.float32)
    titles = rng.standard_normal((ITEMS + 1, width)).astype(np.float32)
    titles[0] = 0
    return Matching(split, made, texts, titles)


def toy(codes: list[list[int]], texts: list[str]) -> tuple[Any, Preferences]:
    split = shop(users=2, length=4)
    whole = np.full((split.prepared.num_events, 3), -1)
    for event, row in enumerate(codes):
        whole[event, : len(row)] = row
    return split, Preferences.of(split, texts, whole)


def test_mender_13_6_the_nearest_positive_preference_is_matched() -> None:
    texts = ["Find a b", "Find c d", "Avoid e f", "Nothing here"]
    split, made = toy([[0, 1, 2], [2], [2, 0]], texts)
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]  # the last one is "Find e f", turned round
    titles = np.zeros((ITEMS + 1, 4), np.float32)
    titles[1], titles[2], titles[3] = [0.1, 0.3, 0.9, 0], [0.5, 0.2, 0, 0], [-1, -2, 3, 0]
    found, counts = Matching(split, made, vectors, titles).match(
        np.array([0, 0, 0, 1, 2, 3]), np.array([1, 2, 3, 1, 3, 1])
    )
    assert made.texts[4] == "Find e f"
    # A negative one is never taken where there is a positive one, however near; alone it is turned round.
    assert found.tolist() == [1, 0, 0, 4, 0, -1]
    assert counts == {"positive": 4, "turned round": 1, "any": 0, "none": 1}


def test_without_positive_or_turned_round_all_are_taken() -> None:
    split, made = toy([[0, 1]], ["Bad thing", "Worse thing"])
    made = made.with_sentiment(split, lambda texts: np.ones(len(texts), bool))
    vectors, titles = np.eye(2, dtype=np.float32), np.zeros((ITEMS + 1, 2), np.float32)
    titles[1] = [0, 1]
    found, counts = Matching(split, made, vectors, titles).match(np.array([0]), np.array([1]))
    assert found.tolist() == [1] and counts["any"] == 1


def test_vectors_of_another_model_or_data_are_refused(tmp_path: Path) -> None:
    split = shop()
    made = write_preferences(split, progress=False)
    titles = Vectors.of(split.items.ids, np.ones((ITEMS, 3)))
    with pytest.raises(DataError, match="of one model"):
        Matching.given(split, made, Vectors.of(np.arange(len(made)), np.ones((len(made), 2))), titles)
    with pytest.raises(DataError, match="numbered"):
        Matching.given(split, made, Vectors.of(np.arange(2), np.ones((2, 3))), titles)
    with pytest.raises(ValueError, match="hashed"):
        Matching.of(split, made, "tfidf")
    with pytest.raises(DataError, match="other events"):
        Matching.given(shop(seed=3), made, Vectors.of(np.arange(len(made)), np.ones((len(made), 3))), titles)


@pytest.mark.parametrize("part", PARTS)
def test_axis_1_says_what_is_nearest_among_the_last_event_of_the_history(part: str) -> None:
    split = shop()
    one = matching(split)
    found, own = recommendation(one, part), one.preferences
    items, offsets = split.prepared.items, split.prepared.offsets
    ends = {"train": split.train_stop, "valid": split.valid_stop, "test": offsets[1:]}[part]
    starts = {"train": offsets[:-1] + 1, "valid": split.train_stop, "test": split.valid_stop}[part]
    targets = [event for user in range(split.num_users) for event in range(starts[user], ends[user])]
    assert found.stop.tolist() == targets, "each target once, its history before it"
    assert np.array_equal(found.target, items[found.stop])
    for at, event in enumerate(targets):
        codes = [code for code in own.codes[event - 1] if code >= 0 and not own.negative[code]]
        best = max(codes, key=lambda code: float(one.texts[code] @ one.titles[items[event]]))
        assert found.said[at, 0] == best
    histories = found.histories(np.arange(3))
    assert [list(one.items) for one in histories] == [
        split.items.raw(items[a:b]).tolist() for a, b in zip(found.start[:3], found.stop[:3], strict=True)
    ]
    assert histories[0].features == {"preference": [own.texts[found.said[0, 0]]]}


def test_mender_13_11_consolidation_says_all_that_the_matched_one_came_from() -> None:
    split = shop()
    one = matching(split)
    first, all_of_them = recommendation(one), consolidation(one)
    assert np.array_equal(first.stop, all_of_them.stop) and np.array_equal(first.target, all_of_them.target)
    assert (first.said == all_of_them.said).any(1).all()


@pytest.mark.parametrize("part", ["valid", "test"])
def test_mender_13_8_steering_contradicts_the_history(part: str) -> None:
    split = shop(users=40)
    one = matching(split)
    fine, coarse = steering(one, part), steering(one, part, coarse=True)
    held = getattr(split, part)
    targets = split.prepared.items[held.target_start]
    follows = dict(zip(held.target_start.tolist(), targets.tolist(), strict=True))
    half = len(fine) // 2
    texts, titles = one.texts[one.preferences.given], one.titles
    own = np.flatnonzero(one.preferences.given)
    for found, pick in ((fine, max), (coarse, min)):
        a, b = found.target[:half], found.target[half:]
        assert sorted(a.tolist()) == sorted(set(targets.tolist())), "each target is a source once"
        for at in range(half):
            others = [row for row in set(targets.tolist()) if row != a[at]]
            best = pick(float(titles[a[at]] @ titles[row]) for row in others)
            assert float(titles[a[at]] @ titles[b[at]]) == pytest.approx(best, abs=1e-5)
            assert follows[found.stop[at]] == b[at] and follows[found.stop[half + at]] == a[at], "of the other one"
            second = np.sort(texts @ titles[a[at]])[-2]
            third = np.sort(texts @ titles[b[at]])[-3]
            assert found.said[at, 0] in own
            assert float(one.texts[found.said[at, 0]] @ titles[a[at]]) == pytest.approx(second, abs=1e-5)
            assert float(one.texts[found.said[half + at, 0]] @ titles[b[at]]) == pytest.approx(third, abs=1e-5)
    fine_near = {a: titles[a] @ titles[b] for a, b in zip(fine.target[:half], fine.target[half:], strict=True)}
    for a, b in zip(coarse.target[:half], coarse.target[half:], strict=True):
        assert titles[a] @ titles[b] <= fine_near[a] + 1e-5
    assert np.array_equal(steering(one, part).stop, fine.stop), "drawn by a seed"


def test_steering_in_training_stays_there_and_takes_the_closest() -> None:
    split = shop(users=40)
    one = matching(split)
    found = steering(one, "train")
    user = np.searchsorted(split.prepared.offsets, found.start, side="right") - 1
    assert (found.stop < split.train_stop[user]).all(), "history and what followed it are training events"
    own = np.flatnonzero(one.preferences.given)
    best = own[(one.titles[found.target] @ one.texts[own].T).argmax(1)]
    assert np.array_equal(found.said[:, 0], best)


def test_sentiment_pairs_are_the_same_item_under_both_forms() -> None:
    split = shop()
    one = matching(split)
    own, seen = one.preferences, []
    for part in PARTS:
        positive, negative = sentiment(one, part)
        assert np.array_equal(positive.target, negative.target) and not positive.stop.any()
        assert own.negative[negative.said].all() and np.array_equal(own.inverse[negative.said], positive.said)
        seen += list(zip(positive.said[:, 0].tolist(), positive.target.tolist(), strict=True))
        assert [len(history) for history in positive.histories()] == [0] * len(positive)
    assert len(set(seen)) == len(seen), "no pair is in two parts, or twice"
    texts = np.unique(own.inverse[own.negative & own.given])
    for text in texts:
        near = np.argsort(-(one.titles @ one.texts[text]), kind="stable")
        near = near[split.train.item_counts()[near] > 0][:5]
        assert {item for said, item in seen if said == text} == set(near.tolist())


def test_sentiment_of_disliked_events_takes_what_their_user_avoids_from_there_on() -> None:
    split = shop()
    one = matching(split)
    own, offsets = one.preferences, split.prepared.offsets
    disliked = np.zeros(split.prepared.num_events, bool)
    disliked[offsets[:-1] + 1] = True
    found = {(int(n), int(i)) for part in PARTS for n, i in zip(sentiment(one, part, disliked)[1].said[:, 0],
             sentiment(one, part, disliked)[1].target, strict=True)}  # fmt: skip
    wanted = set()
    for user in range(split.num_users):
        event = offsets[user] + 1
        codes = own.codes[event : offsets[user + 1]]
        codes = [code for code in codes[codes >= 0].tolist() if own.negative[code]]
        item = int(split.prepared.items[event])
        if codes:
            wanted.add((max(sorted(set(codes)), key=lambda code: float(one.texts[code] @ one.titles[item])), item))
    assert found == wanted
    with pytest.raises(DataError, match="events"):
        sentiment(one, "test", np.zeros(3, bool))


def test_what_cannot_be_asked_is_told() -> None:
    split = shop()
    codes = np.full((split.prepared.num_events, 1), 0)
    with pytest.raises(DataError, match="axis 2 cannot be asked"):
        sentiment(matching(split, Preferences.of(split, ["Find one thing"], codes)))
    with pytest.raises(DataError, match="three preferences"):
        steering(matching(split, Preferences.of(split, ["Find one thing"], codes)))
    with pytest.raises(ValueError, match="part must be"):
        recommendation(matching(split), "everything")


class Fixed:
    """Recommends by a table of scores, and by what is said if it listens."""

    def __init__(self, split: Any, one: Matching | None = None, seed: int = 0) -> None:
        self.vocabulary, self.one = split.items, one
        self.numbers = {} if one is None else {text: at for at, text in enumerate(one.preferences.texts)}
        self.scores = np.random.default_rng(seed).standard_normal(ITEMS)

    def recommend(
        self, histories: Any, k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        rows = np.zeros((len(histories), k), np.int64)
        for at, history in enumerate(histories):
            scores = self.scores.copy()
            said = (history.features or {}).get("preference")
            if said and self.one is not None:
                scores = sum(self.one.texts[self.numbers[text]] for text in said) @ self.one.titles[1:].T
            seen = self.vocabulary.rows(list(history)) - 1 if len(history) and exclude == "history" else []
            scores[seen] = -np.inf
            order = np.argsort(-scores, kind="stable")[:k]
            rows[at] = np.where(scores[order] == -np.inf, 0, order + 1)
        zero = np.zeros(len(rows), np.int64)
        return TopK(rows, -np.arange(k, dtype=np.float32) + zero[:, None], zero, zero > 0, self.vocabulary)


def test_mender_13_7_a_hit_and_a_miss_are_needed_and_deafness_scores_zero() -> None:
    assert following(np.array([1, 1, 0, 0]), np.array([0, 1, 0, 1])).tolist() == [True, False, False, False]
    split = shop(users=20)
    one = matching(split)
    deaf = evaluate_axes(Fixed(split), one, progress=False, k=(1, 5))
    for metric in ("follows@1", "follows@5"):
        assert deaf.mean("sentiment", MODEL, metric) == 0 == deaf.mean("sentiment", SILENT, metric)
    assert not deaf.steers("fine") and not deaf.steers("coarse")
    for axis in ("recommendation", "fine", "coarse", "consolidation"):
        assert deaf.mean(axis, MODEL) == deaf.mean(axis, SILENT) == deaf.mean(axis, "shuffled preferences")
    positive, negative = sentiment(one)
    heard = evaluate_axes(Fixed(split, one), one, axes=["sentiment"], progress=False, k=(5,))
    hits = [
        row in (np.argsort(-(one.titles[1:] @ one.texts[p]), kind="stable")[:5] + 1)
        and row not in (np.argsort(-(one.titles[1:] @ one.texts[n]), kind="stable")[:5] + 1)
        for p, n, row in zip(positive.said[:, 0], negative.said[:, 0], positive.target, strict=True)
    ]
    assert heard.mean("sentiment", MODEL, "follows@5") == pytest.approx(np.mean(hits))


def test_metrics_are_means_over_samples_of_lists_without_the_history() -> None:
    split = shop(users=20)
    one = matching(split)
    report = evaluate_axes(Fixed(split, one), one, axes=["recommendation", "fine"], k=(2, 4), progress=False)
    samples = recommendation(one)
    ranks = []
    for at in range(len(samples)):
        scores = one.titles[1:] @ one.texts[samples.said[at, 0]]
        scores[split.prepared.items[samples.start[at] : samples.stop[at]] - 1] = -np.inf
        order = np.argsort(-scores, kind="stable")
        seen = samples.target[at] in split.prepared.items[samples.start[at] : samples.stop[at]]
        ranks.append(99 if seen else int(np.flatnonzero(order + 1 == samples.target[at])[0]))
    for cut in (2, 4):
        hits = np.array([rank < cut for rank in ranks])
        assert report.mean("recommendation", MODEL, f"recall@{cut}") == pytest.approx(hits.mean())
        gains = np.array([1 / np.log2(rank + 2) if rank < cut else 0 for rank in ranks])
        assert report.mean("recommendation", MODEL, f"ndcg@{cut}") == pytest.approx(gains.mean())
    # The model that ranks by nearness alone is the control of that name.
    for axis in ("recommendation", "fine"):
        assert report.mean(axis, MODEL) == report.mean(axis, NEAREST)
        held = [
            row in split.prepared.items[a:b]
            for a, b, row in _runs(samples if axis == "recommendation" else steering(one))
        ]
        row = next(row for row in report.rows if row["axis"] == axis)
        assert row["notes"]["targets that their history holds"] == pytest.approx(np.mean(held))


def _runs(samples: Any) -> Any:
    return zip(samples.start, samples.stop, samples.target, strict=True)


def test_the_report_says_that_the_target_was_looked_at(tmp_path: Path) -> None:
    split = shop(users=12)
    one = matching(split)
    report = evaluate_axes(Fixed(split, one), one, sample=5, progress=False, controls=["no preference"])
    assert MATCHED in str(report) and "reviews" in str(report) and report.to_dict()["header"] == MATCHED
    assert {row["row"] for row in report.rows} == {MODEL, SILENT} and {row["samples"] for row in report.rows} <= {
        1,
        2,
        3,
        4,
        5,
    }
    report.save(tmp_path / "axes.json")
    assert "by looking" in (tmp_path / "axes.json").read_text()
    ordinary = rs.evaluate(Fixed(split), split.test, k=5, progress=False)
    with pytest.raises(ValueError):
        rs.compare(ordinary, rs.evaluate(Fixed(split), one.with_requests().test, k=5, progress=False))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        rs.compare(ordinary, report)


def test_shuffling_gives_each_sample_the_preference_of_another() -> None:
    samples = recommendation(matching(shop()))
    other = samples.saying(np.arange(len(samples))[:, None]).shuffled(3).said[:, 0]
    assert sorted(other.tolist()) == list(range(len(samples))) and (other != np.arange(len(samples))).all()


def test_evaluation_refuses_what_it_cannot_ask() -> None:
    split = shop(users=12)
    one = matching(split)
    model = Fixed(split)
    for more, match in (
        ({"axes": ["taste"]}, "axes"),
        ({"controls": "no preference"}, "controls"),
        ({"part": "train"}, "part"),
        ({"k": ()}, "k hold"),
    ):
        with pytest.raises(ValueError, match=match):
            evaluate_axes(model, one, progress=False, **more)  # type: ignore[arg-type]
    trained = rs.Popularity()
    from dataclasses import replace

    from recsys.data.splitters import LeaveLast

    rs.fit(
        trained,
        replace(split, train_stop=split.prepared.offsets[1:], valid_stop=split.prepared.offsets[1:]),
        progress=False,
    )
    with pytest.raises(LeakageError, match="trained"):
        evaluate_axes(trained, one, progress=False)
    assert set(CONTROLS) == {SILENT, NEAREST, "shuffled preferences"} and LeaveLast


def test_requests_travel_with_a_split(tmp_path: Path) -> None:
    split = shop(users=12)
    one = matching(split)
    asked = one.with_requests()
    assert asked.protocol["requests"] == MATCHED
    asked.save(tmp_path / "split")
    loaded = rs.Split.load(tmp_path / "split")
    from recsys.recommenders.history import histories_of

    for name, part in (("valid", loaded.valid), ("test", loaded.test)):
        found = histories_of(part, np.arange(len(part)))
        samples = recommendation(one, name)
        assert [history.features["preference"] for history in found] == [texts[0] for texts in samples.lists()]
        some = histories_of(part.subset(np.array([3, 1])), np.arange(2))
        assert [history.features for history in some] == [found[3].features, found[1].features]
    assert histories_of(split.test, np.arange(2))[0].features is None
