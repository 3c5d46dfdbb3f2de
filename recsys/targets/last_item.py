"""One item after a whole prefix: the newest of each row. A training row arrives as up to L + 1 events without targets
and leaves as up to L inputs with targets; a query (a history to recommend for) is already what the encoder reads. Where
the batch has times, ``target_times`` (B, L) holds those of the events to predict.

Legend: B histories, L longest input of the batch.
"""

from __future__ import annotations

import torch

from recsys.data.batch import Batch
from recsys.targets.shift import shifted, tail


class LastItem:
    """Only the last position predicts: one training row per prefix of each history.

    Use when the encoder reads the whole input (``sees = "all"``). Costs one row per event instead of one per user;
    prefer :class:`NextItem` for encoders that see only the past.
    """

    sees = "all"
    newest_only = True
    scheme = "prefixes"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The first n of n + 1 events as input, the last one as the target of the last position."""
        targets = tail(batch.ids)
        inputs = (batch.lengths - 1).clamp(min=0)
        last = torch.arange(targets.shape[1], device=targets.device) == inputs[:, None] - 1
        weights = None if batch.weights is None else tail(batch.weights) * last
        return shifted(batch, targets * last, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


class LastOfUser(LastItem):
    """One training row per user, whose newest training item is the target: how the authors train.

    Needs ``windows="last"`` in fit, its default. Prefer :class:`LastItem` where a row per prefix can be afforded.
    """

    scheme = "windows"
