"""A small data set with a vocabulary of strings, and the context a baseline learns from."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context

NUM_ITEMS, NUM_USERS = 30, 60


def make_split(times: bool = True, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 14, NUM_USERS)
    items = rng.zipf(1.5, lengths.sum()) % NUM_ITEMS + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    stamps = np.arange(len(items)) * 3_600_000
    prepared = Prepared(items.astype(np.int32), offsets, NUM_ITEMS, times=stamps if times else None, order="file")
    vocabulary = Vocabulary(np.array([f"i{row}" for row in range(1, NUM_ITEMS + 1)], object), 1)
    return Split.of(prepared, LeaveLast(), vocabulary, Vocabulary(np.arange(NUM_USERS), 0))


def context_of(split: Split) -> Context:
    return Context(num_items=split.num_items, vocabulary=split.items, training=split.train)


@pytest.fixture
def split() -> Split:
    return make_split()


@pytest.fixture
def untimed() -> Split:
    return make_split(times=False)


@pytest.fixture
def context(split: Split) -> Context:
    return context_of(split)


@pytest.fixture
def histories(split: Split) -> list[np.ndarray]:
    """Training histories as item rows."""
    return [split.train.history(user) for user in range(split.num_users)]


@pytest.fixture
def matrix(histories: list[np.ndarray]) -> np.ndarray:
    """(U, N) 0/1 training matrix."""
    dense = np.zeros((len(histories), NUM_ITEMS))
    for user, items in enumerate(histories):
        dense[user, items - 1] = 1
    return dense
