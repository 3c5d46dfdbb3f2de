"""An encoder that reads further tables: masks, thoughts, and what cannot read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.data.split import Split
from recsys.encoders.added import AddedInputs
from recsys.encoders.tokens import TokenEncoder
from recsys.ids.vectors import Vectors
from recsys.protocols import Context
from tests.cycles import cycles

DIM = 8


@pytest.fixture(scope="module")
def split() -> Split:
    return cycles(users=20)


def texts(folder: Path, split: Split) -> rs.TextItems:
    table = np.random.default_rng(0).normal(size=(split.num_items, 4)).astype(np.float32)
    return rs.TextItems(DIM, str(Vectors.of(split.items.ids, table).save(folder / "texts").path))


def test_inputs_are_sums(split: Split, tmp_path: Path) -> None:
    items, more = rs.IdItems(DIM), texts(tmp_path, split)
    for table in (items, more):
        table.bind(Context(split.num_items, split.items, split.train))
    seen: list[Any] = []

    class Reads(rs.SASRec):
        def forward(self, batch: Any, table: Any) -> Any:
            seen.append(table.embed(batch.ids))
            return super().forward(batch, table)

    encoder = AddedInputs(Reads(DIM, max_length=6), [more])
    batch = split.train.gather(np.arange(4), 6)
    encoder(batch, items)
    assert torch.equal(seen[0], items.embed(batch.ids) + more.embed(batch.ids))


@pytest.mark.parametrize("kind", ["masks", "thoughts"])
def test_reads_masks_and_thoughts(split: Split, tmp_path: Path, kind: str) -> None:
    added: list[Any] = [texts(tmp_path, split), rs.IdItems(DIM)]
    if kind == "masks":
        encoder: Any = AddedInputs(rs.BERT4Rec(DIM, num_layers=1, max_length=6), added)
    else:
        encoder = rs.ReaRec(AddedInputs(rs.SASRec(DIM, num_layers=1, max_length=6), added), steps=2, cache="never")
    targets: Any = rs.MaskedItems() if kind == "masks" else None
    model = rs.Recommender(rs.IdItems(DIM), encoder, rs.FullSoftmax(), targets=targets)
    rs.fit(model, split, epochs=1, validate_every=0, progress=False)
    assert len(model.recommend([split.items.ids[:3].tolist()], k=4).items[0]) == 4


def test_an_encoder_of_code_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="code tokens"):
        AddedInputs(TokenEncoder(DIM, 1, 2, 4, 16), [rs.IdItems(DIM)])
