from __future__ import annotations

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.protocols import Context
from recsys.recommenders.popularity import Popularity


def test_counts_all_training_events_and_no_others(context: Context, histories) -> None:
    model = Popularity()
    model.learn(context)
    expected = np.bincount(np.concatenate(histories), minlength=31)
    assert model.counts.tolist() == expected.tolist()


def test_recent_counts_the_last_window_of_training(split, context: Context) -> None:
    model = Popularity(window_days=3)
    model.learn(context)
    stamps, rows = [], []
    for start, stop in zip(split.train.start, split.train.stop):
        stamps.extend(split.prepared.times[start:stop])
        rows.extend(split.prepared.items[start:stop])
    recent = np.array(stamps) > max(stamps) - 3 * 24 * 3_600_000
    assert 0 < recent.sum() < len(rows)
    assert model.counts.tolist() == np.bincount(np.array(rows)[recent], minlength=31).tolist()
    assert model.popularity.sum() == len(rows)


def test_recent_without_times(untimed) -> None:
    with pytest.raises(DataError, match="times"):
        Popularity(window_days=3).learn(Context(num_items=30, vocabulary=untimed.items, training=untimed.train))
