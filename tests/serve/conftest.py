"""Small recommenders with a catalogue, as export finds them after fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.data.splitters import LeaveLast
from recsys.encoders.sasrec import SASRec
from recsys.ids.vocabulary import Vocabulary
from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.recommenders.markov import Markov

NUM_ITEMS, NUM_USERS = 60, 40


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 14, NUM_USERS)
    items = rng.zipf(1.5, lengths.sum()) % NUM_ITEMS + 1
    prepared = Prepared(
        items.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), NUM_ITEMS,
        times=np.arange(len(items)), order="time",
    )  # fmt: skip
    titles = np.array(["", *(f"Title {row}" for row in range(1, NUM_ITEMS + 1))], object)
    return Split.of(
        prepared, LeaveLast(), Vocabulary(np.array([f"i{row}" for row in range(1, NUM_ITEMS + 1)], object), 1),
        Vocabulary(np.arange(NUM_USERS), 0), name="toy", item_text={"title": titles},
    )  # fmt: skip


@pytest.fixture
def context(split: Split) -> Context:
    return Context(num_items=NUM_ITEMS, vocabulary=split.items, training=split.train)


@pytest.fixture
def model(context: Context) -> Recommender:
    recommender = Recommender(IdItems(8), SASRec(8, num_layers=1, max_length=6), FullSoftmax())
    recommender.bind(context)
    torch.nn.init.normal_(recommender.items.weight, generator=torch.Generator().manual_seed(1))
    return recommender


@pytest.fixture
def counted(context: Context) -> Ranker:
    markov = Markov()
    markov.learn(context)
    return markov
