"""What an objective gives each target, read off its sum: the sum in which that target alone has a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.nn.softmax import cross_entropy
from recsys.protocols import Encoded


def per_target(objective: Any, encoded: Encoded, batch: Batch, items: Any, seed: int = 0) -> Tensor:
    """(T',) losses of the targets, in flat order; every call of the objective draws from ``seed``."""
    assert batch.targets is not None
    losses = []
    for index in (batch.targets > 0).nonzero():
        one = torch.zeros(batch.ids.shape)
        one[tuple(index)] = 1.0
        losses.append(
            objective(encoded, batch.replace(weights=one, importance=None), items, torch.Generator().manual_seed(seed))
        )
    return torch.stack(losses) if losses else torch.zeros(0)


def cross_entropies(hidden: Tensor, targets: Tensor, *given: Any) -> Tensor:
    """(T,) losses of :func:`recsys.nn.softmax.cross_entropy`; ``given`` are the blocks and the chunk."""
    return torch.stack([cross_entropy(hidden, targets, weight, *given) for weight in torch.eye(len(targets))])
