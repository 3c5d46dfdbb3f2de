"""Splits without some users or items: what is left is what a split of the other events would hold."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.split import Split
from recsys.data.without import without_items, without_users
from recsys.errors import DataError
from tests.cycles import cycles


def events(split: Split) -> dict[int, list[list[int]]]:
    """Raw user -> training, validation and test items."""
    edges = [split.prepared.offsets[:-1], split.train_stop, split.valid_stop, split.prepared.offsets[1:]]
    return {
        int(split.users.ids[user]): [
            split.prepared.items[edges[part][user] : edges[part + 1][user]].tolist() for part in range(3)
        ]
        for user in range(split.num_users)
    }


def test_users_are_gone_and_nothing_else_changes() -> None:
    split = cycles(users=12)
    gone = np.array([0, 5, 11])
    left = without_users(split, gone)
    wanted = {user: parts for user, parts in events(split).items() if user not in gone}
    assert events(left) == wanted
    assert left.items is split.items
    assert left.cut.digest != split.cut.digest
    assert len(left.test) == 9 and left.train.num_users == 9


def test_items_are_gone_from_every_part() -> None:
    split = cycles(users=12)
    left = without_items(split, np.array([3, 4]))
    wanted = {
        user: [[item for item in part if item not in (3, 4)] for part in parts] for user, parts in events(split).items()
    }
    assert events(left) == wanted
    assert left.num_items == split.num_items and left.train.item_counts()[[3, 4]].sum() == 0


def test_nobody_left_is_refused() -> None:
    with pytest.raises(DataError):
        without_users(cycles(users=3), np.arange(3))
