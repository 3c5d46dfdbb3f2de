"""Products with a few items: their gradient in low precision."""

from __future__ import annotations

import pytest
import torch

from recsys.items.ids import IdItems
from recsys.nn.scoring import score_ids
from recsys.protocols import Context


@pytest.mark.parametrize("dense", [1000, 0])
def test_bf16_gradients_of_the_table_do_not_stall_over_many_targets(
    dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.nn.scoring.DENSE", dense)
    monkeypatch.setattr("recsys.nn.scoring.BUFFER", 64)
    torch.manual_seed(0)
    items = IdItems(4)
    items.bind(Context(5))
    hidden, ids = torch.rand(3000, 4), torch.randint(1, 6, (3000, 3))
    (plain,) = torch.autograd.grad(score_ids(hidden, items, ids).sum(), items.weight)
    with torch.autocast("cpu", torch.bfloat16):
        low = score_ids(hidden, items, ids)
    (ours,) = torch.autograd.grad(low.float().sum(), items.weight)
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.0)
