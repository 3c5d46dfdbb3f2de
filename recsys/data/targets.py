"""What is predicted where: the next item at every position, or one item after a whole prefix.

Legend: B histories, L longest input of the batch. A training row arrives as up to L + 1 events without targets and
leaves as up to L inputs with targets; a query (a history to recommend for) is already what the encoder reads. Where
the batch has times, ``extra["target_times"]`` (B, L) holds those of the events to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import Batch


class NextItem:
    """Each position predicts the item that follows it: a history of n + 1 events gives n targets.

    The targets stand in the input one step later, so only an encoder that sees the past can be trained this way.
    """

    sees = "past"
    scheme = "windows"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Inputs ``ids[:, :-1]`` and targets ``ids[:, 1:]``; a weight moves with its target."""
        targets = _tail(batch.ids)
        weights = None if batch.weights is None else _tail(batch.weights)
        return _inputs(batch, targets, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


class LastItem:
    """Only the last position predicts: one training row per prefix of each history.

    Use when the encoder reads the whole input (``sees = "all"``). Costs one row per event instead of one per user;
    prefer :class:`NextItem` for encoders that see only the past.
    """

    sees = "all"
    scheme = "prefixes"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The first n of n + 1 events as input, the last one as the target of the last position."""
        targets = _tail(batch.ids)
        inputs = (batch.lengths - 1).clamp(min=0)
        last = torch.arange(targets.shape[1], device=targets.device) == inputs[:, None] - 1
        weights = None if batch.weights is None else _tail(batch.weights) * last
        return _inputs(batch, targets * last, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


def _inputs(batch: Batch, targets: Tensor, weights: Tensor | None) -> Batch:
    lengths = (batch.lengths - 1).clamp(min=0)
    return batch.replace(
        ids=_head(batch.ids, lengths),
        lengths=lengths,
        targets=targets,
        weights=weights,
        times=None if batch.times is None else _head(batch.times, lengths),
        extra=batch.extra if batch.times is None else {**batch.extra, "target_times": _tail(batch.times)},
    )


def _head(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, L+1) without each row's last event: (B, max(L, 1)), zero where nothing is left."""
    values = values[:, : max(values.shape[1] - 1, 1)]
    return values * (torch.arange(values.shape[1], device=values.device) < lengths[:, None])


def _tail(values: Tensor) -> Tensor:
    """(B, L+1) without the first column: (B, max(L, 1)), so that a batch of single events keeps a column."""
    return values[:, 1:] if values.shape[1] > 1 else torch.zeros_like(values)
