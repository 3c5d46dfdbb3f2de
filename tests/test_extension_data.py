"""A split, an item table with a category and a stage with its own data, each written in one file outside the package:
checked, trained, evaluated, exported, loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import recsys as rs
from recsys import testing
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.features.features import Features
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context

SOURCES = {
    "their_split": '''
"""Test is every user's events behind a share of them, validation as many before: no user is left out of training."""

import numpy as np


class LastShare:
    def __init__(self, share: float = 0.2) -> None:
        self.share = share

    def apply(self, prepared):
        start, end = prepared.offsets[:-1], prepared.offsets[1:]
        held = np.maximum(np.floor((end - start) * self.share).astype(np.int64), 1)
        held = np.where(end - start > 2, held, 0)
        return end - 2 * held, end - held

    def protocol(self, prepared):
        return {"name": "last-share", "order": prepared.order, "share": self.share}
''',
    "their_items": '''
"""A vector per item beside a vector of its category, found by name in the item table."""

import numpy as np
import torch
from torch import nn

from recsys.items.local import LocalItems


class CategoryItems(LocalItems):
    def __init__(self, column: str, dim: int = 16) -> None:
        super().__init__()
        self.column, self.dim = column, dim
        self.register_buffer("category", torch.zeros(0, dtype=torch.int64))
        self.own, self.shared = nn.Embedding(1, dim), nn.Embedding(1, dim)

    def bind(self, context):
        super().bind(context)
        count = 64  # more categories share a vector
        self.category = torch.zeros(context.num_items + 1, dtype=torch.int64)
        if context.training is not None:
            codes = np.asarray(context.item_features[self.column].values)
            self.category = torch.from_numpy(codes.astype(np.int64) % count)
        self.own = nn.Embedding(context.num_items + 1, self.dim)
        self.shared = nn.Embedding(count, self.dim)
        nn.init.normal_(self.own.weight, std=0.01)
        nn.init.normal_(self.shared.weight, std=0.1)

    def embed(self, ids):
        return self.output(ids)

    def output(self, ids):
        return self.own(ids) + self.shared(self.category[ids])
''',
    "their_source": '''
"""Batches of training histories that a shop corrected by hand: here, walks up the catalogue."""

import torch

from recsys.data.batch import Batch


class Walks:
    prepared = False  # targets are set as for the batches of the split

    def __init__(self, num_items: int, rows: int = 24, size: int = 8, seed: int = 0) -> None:
        self.num_items, self.rows, self.size, self.seed = num_items, rows, size, seed

    @property
    def num_rows(self):
        return self.rows

    @property
    def num_targets(self):
        return self.rows * 5

    def identity(self):
        return {"walks": [self.num_items, self.rows, self.size, self.seed]}

    def num_batches(self, epoch):
        return -(-self.rows // self.size)

    def epoch(self, epoch, start=0, rank=0, world_size=1):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + epoch))
        for number in range(start, self.num_batches(epoch)):
            rows = order[number * self.size : (number + 1) * self.size][rank::world_size]
            ids = (rows[:, None] + torch.arange(6)) % self.num_items + 1
            yield Batch(rows=rows, users=torch.full_like(rows, -1), ids=ids, lengths=torch.full_like(rows, 6))
''',
}


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    for name, source in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield {name: __import__(name) for name in SOURCES}
    for name in SOURCES:
        sys.modules.pop(name, None)


def genres(num_items: int = 30, users: int = 120, seed: int = 0) -> Prepared:
    """Users stay within the genre of their first item: items j and j + 3 are of one genre."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 10, users)
    owner = np.repeat(np.arange(users), lengths)
    items = (owner % 3) + 3 * rng.integers(0, num_items // 3, len(owner)) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Prepared(items.astype(np.int32), offsets, num_items, times=np.arange(len(items)) * 60_000)


def split_of(splitter: object, num_items: int = 30) -> Split:
    names = np.array([f"i{row}" for row in range(1, num_items + 1)], object)
    kinds = ["", *("abc"[(row - 1) % 3] for row in range(1, num_items + 1))]
    return Split.of(
        genres(num_items), splitter, Vocabulary(names, 1), Vocabulary(np.arange(120), 0), name="genres",
        item_features=Features.of({"genre": kinds}, {"genre": "category"}),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::recsys.errors.DataWarning")
def test_a_split_a_table_and_a_source_from_outside(theirs: dict[str, ModuleType], tmp_path: Path) -> None:
    splitter = theirs["their_split"].LastShare(0.25)
    source = theirs["their_source"].Walks(30)
    split = split_of(splitter)
    context = Context(
        split.num_items, split.items, split.train, split.item_text, 0, split.users, item_features=split.item_features
    )
    testing.check_splitter(splitter)
    testing.check_items(theirs["their_items"].CategoryItems("genre"), context)
    testing.check_source(source)

    model = rs.Recommender(
        theirs["their_items"].CategoryItems("genre"), rs.SASRec(16, 1, max_length=8), rs.FullSoftmax()
    )
    stages = [rs.Stage(1, data=source, name="walks", validate=False), rs.Stage(12, name="log")]
    fitted = rs.fit(
        model, split, stages=stages, batch_size=32, learning_rate=0.02, seed=1, progress=False,
        folder=tmp_path / "run", exclude="none",
    )  # fmt: skip
    assert [line["stage"] for line in fitted.history][:2] == [0, 1]
    assert fitted.history[0]["targets"] == source.num_targets

    report = rs.evaluate(model, split.test, k=(10,), exclude="none", progress=False)
    assert report.mean("hr@10") > 0.7  # ten items of each genre, of thirty

    rs.export(model, tmp_path / "bundle", split=split)
    histories = [["i1", "i4"], ["i3"]]
    for folder, load in ((tmp_path / "run", rs.load_run), (tmp_path / "bundle", rs.Bundle.load)):
        with pytest.raises(PermissionError, match="their_items"):
            load(folder)
        assert load(folder, trust=["their_items"]).recommend(histories, 5).items == model.recommend(histories, 5).items
    split.save(tmp_path / "split")
    loaded = Split.load(tmp_path / "split")
    assert loaded.cut.digest == split.cut.digest and loaded.protocol["share"] == 0.25
    assert torch.equal(model.items.category[1:4], torch.tensor([1, 2, 3]))
