"""The full softmax as an objective against the plain one; its kernel is tested in ``tests/nn/test_softmax.py``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recsys.items.ids import IdItems
from recsys.objectives.softmax import FullSoftmax
from recsys.protocols import Encoded
from recsys.targets.next_item import NextItem
from recsys.testing import toy_batch, toy_context


@pytest.mark.parametrize("chunk", [None, 1, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_the_weighted_cross_entropy_over_all_items(
    chunk: int | None, temperature: float, weighted: bool
) -> None:
    items = IdItems(8)
    items.bind(toy_context())
    batch = NextItem().train(toy_batch())
    batch = batch if weighted else batch.replace(weights=None)
    states = torch.randn(int(batch.lengths.sum()), 8, requires_grad=True)
    encoded = Encoded(batch, states)
    total = FullSoftmax(temperature, chunk)(encoded, batch, items, torch.Generator())
    hidden, targets, weights = encoded.at_targets(batch)
    plain = F.cross_entropy(hidden @ items.weight[1:].T / temperature, targets - 1, reduction="none")
    expected = (plain if weights is None else plain * weights).sum()
    assert (weights is not None) == weighted
    torch.testing.assert_close(total, expected)
    ours = torch.autograd.grad(total, [states, items.weight])
    for one, other in zip(ours, torch.autograd.grad(expected, [states, items.weight]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_temperatures_and_chunks_that_are_not_positive_are_refused() -> None:
    for given in ({"temperature": 0.0}, {"chunk": 0}):
        with pytest.raises(ValueError, match="positive"):
            FullSoftmax(**given)  # type: ignore[arg-type]
