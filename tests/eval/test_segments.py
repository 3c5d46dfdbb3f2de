from __future__ import annotations

import numpy as np

from recsys.eval.segments import by_cohort, by_history, by_label, by_popularity, popularity_thresholds


def labels(grouping) -> list[str]:
    return [grouping.labels[code] for code in grouping.codes]


def test_history_buckets():
    found = labels(by_history(np.array([0, 1, 5, 6, 10, 11, 50, 100, 101, 9999])))
    assert found == ["0", "1-5", "1-5", "6-10", "6-10", "11-20", "21-50", "51-100", "101+", "101+"]


def test_popularity_groups_hold_a_third_of_the_events_each():
    counts = np.array([0, 10, 40, 20, 30, 0])
    thresholds = popularity_thresholds(counts)
    assert thresholds == (30, 40)
    assert labels(by_popularity(np.array([0.0, 29.5, 30.0, 39.9, 40.0]), thresholds)) == [
        "tail", "tail", "mid", "mid", "head",
    ]  # fmt: skip


def test_popularity_of_a_catalogue_without_training_events():
    assert labels(by_popularity(np.zeros(2), popularity_thresholds(np.zeros(5, dtype=np.int64)))) == ["tail", "tail"]


def test_cohorts_by_precedence():
    found = by_cohort(np.array([0, 3, 3, 3]), np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0]))
    assert labels(found) == ["no history", "cold target", "repeat", "ordinary"]


def test_only_segments_with_users_are_listed():
    members = by_label("country", np.array(["fr", "de", "fr"])).members()
    assert [(label, index.tolist()) for label, index in members] == [("de", [1]), ("fr", [0, 2])]
    assert [label for label, _ in by_history(np.array([3, 4])).members()] == ["1-5"]
