"""What targets have in common: events of a row to inputs and what is to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import Batch, only


def shifted(batch: Batch, targets: Tensor, weights: Tensor | None) -> Batch:
    """The batch without each row's last event, with ``targets`` (B, L) and their weights."""
    lengths = (batch.lengths - 1).clamp(min=0)
    inside = torch.arange(max(batch.ids.shape[1] - 1, 1), device=lengths.device) < lengths[:, None]
    return batch.replace(
        ids=head(batch.ids, lengths),
        lengths=lengths,
        targets=targets,
        weights=weights,
        times=None if batch.times is None else head(batch.times, lengths),
        features={name: only(values[:, : inside.shape[1]], inside) for name, values in batch.features.items()},
        target_times=None if batch.times is None else tail(batch.times),
    )


def head(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, L+1) without each row's last event: (B, max(L, 1)), zero where nothing is left."""
    values = values[:, : max(values.shape[1] - 1, 1)]
    return values * (torch.arange(values.shape[1], device=values.device) < lengths[:, None])


def tail(values: Tensor) -> Tensor:
    """(B, L+1) without the first column: (B, max(L, 1)), so that a batch of single events keeps a column."""
    return values[:, 1:] if values.shape[1] > 1 else torch.zeros_like(values)
