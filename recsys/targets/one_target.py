"""One item of each history, drawn, and only what came before it. A training row arrives as up to L + 1 events without
targets and leaves as up to L inputs with targets; a query (a history to recommend for) is already what the encoder
reads. Where the batch has times, ``target_times`` (B, L) holds those of the events to predict.

Legend: B histories, L longest input of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch, only


class OneTarget:
    """One target per user and epoch, at a random position of the history, and what precedes it as input.

    So do Recformer's authors (arXiv 2305.13731, collators), where ``LastItem`` takes every prefix of every history
    in every epoch. The position is uniform over the whole training history, however long, and the input the newest
    events before it; in the stages ``late`` it is in the second half. Unlike theirs an input has at least one item: a
    user without history is never ranked for.
    """

    sees = "all"
    newest_only = True
    scheme = "drawn"

    def __init__(self, late: Sequence[str] = ("pretrain",)) -> None:
        self.late, self.stage = list(late), ""

    def bind(self, context: Any) -> None:
        """Forget the stage of an earlier fit."""
        self.stage = ""

    def on_stage(self, name: str) -> None:
        """Remember which stage runs."""
        self.stage = name

    def draw(self, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """(n,) positions, from 0, of the targets in histories of ``lengths`` (n,), two events or more."""
        lowest = np.maximum((lengths - 1) // 2, 1) if self.stage in self.late else np.ones_like(lengths)
        return random.integers(lowest, lengths)

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The events before a random one as input, and that one as the target of the last position.

        ``target_index`` (B,) says which event that is, where it was drawn before the rows were read; else it is drawn
        from the events of the row.
        """
        drawn = batch.target_index
        if drawn is None:
            draws = torch.rand(len(batch), generator=generator, device=batch.ids.device)
            late = self.stage in self.late
            lowest = ((batch.lengths - 1) // 2).clamp(min=1) if late else batch.lengths.clamp(max=1)
            count = (batch.lengths - lowest).clamp(min=1)
            drawn = lowest + (draws * count).long().clamp(max=count - 1)
        inputs = torch.minimum(drawn, batch.lengths - 1).clamp(min=0)
        position = torch.arange(max(batch.ids.shape[1] - 1, 1), device=batch.ids.device)
        keep, last = position < inputs[:, None], position == inputs[:, None] - 1

        def shifted(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, 2))[:, 1 : 1 + len(position)] * last

        ids = torch.nn.functional.pad(batch.ids, (0, 1))[:, : len(position)]
        changes: dict[str, Any] = {"ids": ids * keep, "lengths": inputs, "targets": shifted(batch.ids)}
        changes["target_index"] = None
        if batch.features:
            head = torch.arange(len(position), device=position.device).clamp(max=batch.ids.shape[1] - 1)
            changes["features"] = {name: only(values[:, head], keep) for name, values in batch.features.items()}
        if batch.weights is not None:
            changes["weights"] = shifted(batch.weights)
        if batch.events is not None:  # the event that is predicted, not the newest of the row
            changes["events"] = batch.events - (batch.lengths - 1 - inputs).clamp(min=0)
        if batch.times is not None:
            changes["times"] = torch.nn.functional.pad(batch.times, (0, 1))[:, : len(position)] * keep
            changes["target_times"] = shifted(batch.times)
            if batch.query_time is not None:
                changes["query_time"] = changes["target_times"].sum(1)
        return batch.replace(**changes)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch
