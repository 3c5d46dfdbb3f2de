"""The next item at every position. A training row arrives as up to L + 1 events without targets and leaves as
up to L inputs with targets; a query (a history to recommend for) is already what the encoder reads. Where the batch has
times, ``target_times`` (B, L) holds those of the events to predict.

Legend: B histories, L longest input of the batch.
"""

from __future__ import annotations

import torch

from recsys.data.batch import Batch
from recsys.targets.shift import shifted, tail


class NextItem:
    """Each position predicts the item that follows it: a history of n + 1 events gives n targets.

    The targets stand in the input one position later, so only an encoder that sees the past can be trained this way.
    """

    sees = "past"
    scheme = "windows"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Inputs ``ids[:, :-1]`` and targets ``ids[:, 1:]``; a weight moves with its target."""
        targets = tail(batch.ids)
        weights = None if batch.weights is None else tail(batch.weights)
        return shifted(batch, targets, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch
