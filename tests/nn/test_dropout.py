"""Dropout's law: the share that is dropped, the expectation, the seed."""

from __future__ import annotations

import pytest
import torch

from recsys.nn.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_dropped_and_expectation(p: float) -> None:
    torch.manual_seed(3)
    values = Dropout(p)(torch.ones(401, 997))
    kept = (values != 0).float().mean().item()
    assert kept == pytest.approx(1 - p, abs=0.004)
    assert values.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    assert values.mean().item() == pytest.approx(1.0, abs=0.02)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(3)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).float()
    for lag in (1, 2, 3, 4, 64):
        correlation = torch.corrcoef(torch.stack([kept[:-lag], kept[lag:]]))[0, 1].item()
        assert abs(correlation) < 0.01


def test_same_seed_same_mask_and_evaluation_drops_nothing() -> None:
    layer, values = Dropout(0.3), torch.randn(7, 5)
    torch.manual_seed(5)
    first = layer(values)
    torch.manual_seed(5)
    assert torch.equal(first, layer(values))
    assert torch.equal(layer.eval()(values), values)


def test_gradient_follows_the_mask() -> None:
    values = torch.ones(1000, requires_grad=True)
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())
