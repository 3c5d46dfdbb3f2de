"""Statistics of recurrence against loops over users and pairs (unirec.md, checks 8 and 12)."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.quality.released import ReleasedSequences
from recsys.data.prepared import Prepared
from recsys.data.split import Split, TrainingEvents
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.statistics import gaps as measured

NUM_ITEMS = 20
Event = tuple[int, float]  # item, seconds


def toy(seed: int = 0, num_users: int = 30) -> list[list[Event]]:
    """Histories of 1..12 events with repeated items; items 19 and 20 are rare or never there."""
    rng = np.random.default_rng(seed)
    users = []
    for length in rng.integers(1, 13, num_users):
        times = np.sort(rng.integers(0, 5_000_000, length))
        users.append([(int(item), float(time)) for item, time in zip(rng.integers(1, 19, length), times, strict=True)])
    users[0] = [(19, 10.0), (3, 400.0), (3, 5000.0)]
    return users


def training(users: list[list[Event]]) -> TrainingEvents:
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in users])]).astype(np.int64)
    flat = [event for one in users for event in one]
    times = np.array([round(time * 1000) for _, time in flat], dtype=np.int64)
    prepared = Prepared(np.array([item for item, _ in flat], dtype=np.int32), offsets, NUM_ITEMS, times=times)
    return TrainingEvents(prepared, offsets[:-1], offsets[1:])


def variance(times: list[float]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(sorted(times))]
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) if gaps else 0.0


def times_of_items(users: list[list[Event]]) -> dict[int, list[float]]:
    found = defaultdict(list)
    for events in users:
        for item, time in events:
            found[item].append(time)
    return found


def brute_similarity(users: list[list[Event]]) -> dict[tuple[int, int], float]:
    sets = [{item for item, _ in events} for events in users]
    holders = defaultdict(int)
    for items in sets:
        for item in items:
            holders[item] += 1
    shared: dict[tuple[int, int], float] = defaultdict(float)
    for items in sets:
        for one in items:
            for other in items - {one}:
                shared[one, other] += 1 / math.log(1 + len(items))
    return {pair: value / math.sqrt(holders[pair[0]] * holders[pair[1]]) for pair, value in shared.items()}


def brute_gaps(users: list[list[Event]]) -> dict[tuple[int, int], float]:
    gaps = defaultdict(list)
    for events in users:
        for i, (one, time) in enumerate(events):
            for j, (other, at) in enumerate(events):
                if i != j:
                    gaps[one, other].append(abs(time - at))
    return {pair: sum(values) / len(values) for pair, values in gaps.items()}


def test_variances_equal_a_loop() -> None:
    users = toy()
    found, gaps = measured.user_variance(training(users))
    np.testing.assert_allclose(found, [variance([time for _, time in events]) for events in users])
    assert gaps.tolist() == [len(events) - 1 for events in users]
    by_item = times_of_items(users)
    expected = [variance(by_item[item]) for item in range(NUM_ITEMS + 1)]
    np.testing.assert_allclose(measured.item_variance(training(users)), expected)


def test_normalised_runs_from_0_to_100_over_the_items_that_occur() -> None:
    found = measured.normalised(np.array([0.0, 3.0, 1.0, 5.0, 0.0]), np.array([0, 2, 3, 4, 0]))
    np.testing.assert_allclose(found, [0, 50, 0, 100, 0])
    assert not measured.normalised(np.zeros(4), np.array([0, 1, 1, 1])).any()
    assert not measured.normalised(np.zeros(3), np.zeros(3)).any()


def test_even_users_are_the_lowest_variances_and_in_the_released_form_the_highest() -> None:
    users = [[(1, 0.0)], *([(1, 0.0), (2, 10.0), (3, 20.0 + k)] for k in range(10))]
    assert np.flatnonzero(measured.even_users(training(users), 0.3)).tolist() == [1, 2, 3]  # a single event is not even
    assert measured.even_users(training(users)).sum() == 6
    assert np.flatnonzero(ReleasedSequences().users(training(users))).tolist() == [7, 8, 9, 10]


def test_frequent_items_need_three_interactions_or_are_counted() -> None:
    values, count = np.array([0.0, 0.0, 4.0, 1.0, 9.0, 0.0]), np.array([0, 2, 9, 4, 3, 0])
    assert np.flatnonzero(measured.frequent_items(values, count, 0.34)).tolist() == [3]
    assert np.flatnonzero(measured.frequent_items(values, count, 0.34, by="count")).tolist() == [2]
    assert np.flatnonzero(measured.frequent_items(values, count, 0.25, least=1)).tolist() == [1]  # the authors' trap


@pytest.mark.parametrize("events", [1, 2])
def test_u2_an_item_whose_variance_is_not_known_gets_a_small_bonus(events: int) -> None:
    """Item 1 goes with 2, which recurs every day, and with 3, of which one or two events tell nothing."""
    day = 86_400.0
    users = [[(2, day * k)] for k in range(4)]
    users += [[(1, day * k), (2, day * k), *([(3, day * k)] * (k < 4 + events))] for k in (4, 5)]
    rows, scores = measured.neighbours(training(users), measured.item_variance(training(users)))
    assert rows[1, :2].tolist() == [2, 3]
    similarity = brute_similarity(users)[1, 3]
    expected = 0.4 * similarity / (1 + similarity) + 0.8 + 0.5 / (1 + math.log(1 + 99_999_999))
    assert scores[1, 1] == pytest.approx(expected)
    assert expected - 0.4 * similarity / (1 + similarity) - 0.8 == pytest.approx(0.026, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_u2_every_bonus_follows_from_three_events_or_more(seed: int) -> None:
    users = toy(seed)
    train = training(users)
    variances, by_item = measured.item_variance(train), times_of_items(users)
    similarity, gaps = brute_similarity(users), brute_gaps(users)
    rows, scores = measured.neighbours(train, variances)
    unknown = 0
    for item in range(1, NUM_ITEMS + 1):
        for other, score in zip(rows[item].tolist(), scores[item], strict=True):
            if other != item:
                sim = similarity[item, other]
                rest = score - 0.4 * sim / (1 + sim) - 0.8 / (1 + math.log(1 + gaps[item, other]))
                few = len(by_item[other]) < 3
                assert rest == pytest.approx(0.5 / (1 + math.log(1 + (99_999_999 if few else variances[other]))))
                unknown += few
    assert unknown


def test_u2_a_user_with_a_single_gap_is_not_even() -> None:
    users = [[(1, 0.0), (2, 5.0)], [(1, 0.0), (2, 10.0), (3, 25.0)], [(1, 0.0), (2, 10.0), (3, 90.0)], [(4, 1.0)]]
    assert measured.even_users(training(users), 0.5).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("pairs", [1 << 22, 5])
def test_check_08_neighbours_equal_a_loop(dense: bool, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "PAIRS", pairs)
    monkeypatch.setattr(measured, "DENSE", 1 << 26 if dense else 0)
    users = toy()
    similarity, gaps = brute_similarity(users), brute_gaps(users)
    variances, by_item = measured.item_variance(training(users)), times_of_items(users)
    row, column, value = measured.similar(training(users))
    assert dict(zip(zip(row.tolist(), column.tolist(), strict=True), value, strict=True)) == pytest.approx(similarity)
    rows, scores = measured.neighbours(training(users), variances)
    assert rows.shape == scores.shape == (NUM_ITEMS + 1, 10)
    for item in range(1, NUM_ITEMS + 1):
        expected = {}
        for (one, other), sim in similarity.items():
            if one == item:
                near = 0.4 * sim / (1 + sim) + 0.8 / (1 + math.log(1 + gaps[item, other]))
                spread = variances[other] if len(by_item[other]) > 2 else 99_999_999
                expected[other] = near + 0.5 / (1 + math.log(1 + spread))
        best = sorted(expected, key=lambda other: -expected[other])[:10]
        filled = rows[item, : len(best)].tolist()
        assert sorted(filled) == sorted(best) and item not in filled
        np.testing.assert_allclose(scores[item, : len(best)], [expected[other] for other in filled])
        assert (np.diff(scores[item]) <= 0).all()
        assert (rows[item, len(best) :] == item).all() and not scores[item, len(best) :].any()
    assert (rows[20] == 20).all()  # never seen: itself only


def test_check_08_only_the_most_similar_are_scored() -> None:
    users = toy(1)
    similarity = brute_similarity(users)
    rows, _ = measured.neighbours(training(users), measured.item_variance(training(users)), k=5, candidates=3)
    for item in range(1, NUM_ITEMS + 1):
        others = {other: value for (one, other), value in similarity.items() if one == item}
        third = sorted(others.values(), reverse=True)[:3][-1] if others else math.inf
        assert {other for other in rows[item].tolist() if other != item} <= {o for o, v in others.items() if v >= third}


def test_check_12_no_statistic_changes_with_held_out_events() -> None:
    def statistics(tail: int) -> list[np.ndarray]:
        rng = np.random.default_rng(tail)
        items, times, lengths = [], [], []
        for events in toy(2):
            held = [(int(rng.integers(1, NUM_ITEMS + 1)), events[-1][1] + 1 + int(rng.integers(10**6))) for _ in "ab"]
            held = [held[0], (held[1][0], held[0][1] + 5)]
            items += [item for item, _ in [*events, *held]]
            times += [round(time * 1000) for _, time in [*events, *held]]
            lengths.append(len(events) + 2)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        prepared = Prepared(np.array(items, np.int32), offsets, NUM_ITEMS, times=np.array(times, np.int64))
        names = [Vocabulary(np.arange(count), first) for count, first in ((NUM_ITEMS, 1), (len(lengths), 0))]
        train = Split.of(prepared, LeaveLast(), *names).train
        spread = measured.item_variance(train)
        count = train.item_counts()
        return [
            *measured.user_variance(train), spread, measured.normalised(spread, count), measured.even_users(train),
            measured.frequent_items(spread, count), *measured.similar(train), *measured.neighbours(train, spread),
        ]  # fmt: skip

    for one, other in zip(statistics(3), statistics(4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_wrong_arguments_and_missing_times_are_errors() -> None:
    train = training(toy())
    with pytest.raises(ValueError, match="share"):
        measured.even_users(train, 1.5)
    with pytest.raises(ValueError, match="by"):
        measured.frequent_items(np.zeros(3), np.zeros(3), by="luck")
    with pytest.raises(ValueError, match="at least 1"):
        measured.neighbours(train, np.zeros(NUM_ITEMS + 1), k=0)
    bare = TrainingEvents(
        Prepared(np.array([1, 2], np.int32), np.array([0, 2]), NUM_ITEMS), np.array([0]), np.array([2])
    )
    for statistic in (measured.user_variance, measured.item_variance):
        with pytest.raises(ValueError, match="time"):
            statistic(bare)


def test_a_single_user_with_one_event_has_no_neighbours() -> None:
    train = training([[(4, 1.0)]])
    rows, scores = measured.neighbours(train, measured.item_variance(train))
    assert (rows == np.arange(NUM_ITEMS + 1)[:, None]).all() and not scores.any()
    assert not measured.even_users(train).any()
