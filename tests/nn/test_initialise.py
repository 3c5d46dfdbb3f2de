"""Each initialisation against what the code it is named after does: N(0, 0.02), Xavier, or what torch itself sets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.encoders.sasrec import SASRec
from recsys.items.ids import IdItems
from recsys.nn.initialise import SCHEMES
from recsys.protocols import Context

DIM, LENGTH, ITEMS = 64, 200, 900


def bound(rows: int, columns: int) -> float:
    return (6 / (rows + columns)) ** 0.5


def deviation(rows: int, columns: int) -> float:
    return (2 / (rows + columns)) ** 0.5


# Standard deviations of the item table, the position table, the query kernel and the inner kernel of the feed-forward.
EXPECTED = {
    "normal": (0.02, 0.02, 0.02, 0.02),
    "mixed": (0.02, 0.02, bound(3 * DIM, DIM) / 3**0.5, 0.02),
    "glorot": tuple(deviation(rows, DIM) for rows in (1 + ITEMS, LENGTH, DIM, DIM)),
    "xavier_normal": tuple(deviation(rows, DIM) for rows in (1 + ITEMS, LENGTH, DIM, DIM)),
    "xavier_uniform": tuple(deviation(rows, DIM) for rows in (1 + ITEMS, LENGTH, DIM, DIM)),
    "torch": (1.0, 1.0, (1 / DIM / 3) ** 0.5, (1 / DIM / 3) ** 0.5),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spread_biases_norms_and_padding(scheme: str) -> None:
    torch.manual_seed(0)
    items, encoder = IdItems(DIM, init=scheme), SASRec(DIM, max_length=LENGTH, init=scheme)
    context = Context(ITEMS)
    items.bind(context)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(7.0)  # whatever was there before
    encoder.bind(context)
    block = encoder.blocks[0]
    tables = items.weight[1:], encoder.position_table.weight, block.attention.query.weight, block.feed.inner.weight
    for table, expected in zip(tables, EXPECTED[scheme], strict=True):
        assert table.std().item() == pytest.approx(expected, rel=0.05)
        assert abs(table.mean().item()) < 0.05 * expected
    assert not items.weight[0].any()
    for layer in encoder.modules():
        if isinstance(layer, nn.LayerNorm):
            assert bool((layer.weight == 1).all() and (layer.bias == 0).all())
        if isinstance(layer, nn.Linear) and scheme in ("normal", "mixed", "glorot"):
            assert not layer.bias.any()
