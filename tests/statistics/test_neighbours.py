"""Items that stood near each other, against plain sets."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.prepared import Prepared
from recsys.data.split import TrainingEvents
from recsys.statistics import neighbours
from recsys.statistics.neighbours import Neighbours, meet, pairs


def trained(histories: list[list[int]], items: int) -> TrainingEvents:
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64)
    found = Prepared(np.array([item for one in histories for item in one], np.int32), offsets, items)
    return TrainingEvents(found, offsets[:-1], offsets[1:])


def test_pairs_are_of_one_user_and_near() -> None:
    training = trained([[1, 2, 3], [], [4], [3, 1]], 4)
    found = [(int(a), int(b)) for first, second in pairs(training, 2) for a, b in zip(first, second, strict=True)]
    assert sorted(found) == [(1, 2), (1, 3), (2, 3), (3, 1)]
    some = np.array([False, True, False, False, False])
    found = [(int(a), int(b)) for first, second in pairs(training, 2, first=some) for a, b in zip(first, second)]
    assert sorted(found) == [(1, 2), (1, 3)]
    found = [(int(a), int(b)) for one in pairs(training, 1, second=some, users=3) for a, b in zip(*one)]
    assert found == []


def test_shared_neighbours() -> None:
    training = trained([[1, 2, 3], [4, 3], [5, 6]], 6)
    after = Neighbours.of(training, 1, np.ones(7, bool), before=False)
    assert after.has(np.array([1, 2, 3]), np.array([2, 1, 3])).tolist() == [True, False, False]
    assert after.sizes(np.arange(7)).tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert meet(after, np.array([2, 2, 3]), after, np.array([4, 5, 3])).tolist() == [True, False, False]


def test_only_what_matters_is_held_and_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    training = trained([[1, 2, 3, 2, 1], [2, 1]], 3)
    some = np.array([False, True, False, False])
    near = Neighbours.of(training, 1, some)
    assert near.sizes(np.arange(4)).tolist() == [0, 1, 0, 0] and near.has(np.array([1]), np.array([2])).all()
    monkeypatch.setattr(neighbours, "PAIRS", 3)
    assert len(Neighbours.of(training, 1, some).keys) == 1
    with pytest.raises(MemoryError, match="3"):
        Neighbours.of(training, 2, np.ones(4, bool))
