"""The other targets of the batch as negatives.

Legend: B histories, T targets, K negatives, N items (rows 1..N; padding is never drawn).
Everything is drawn on the device of the batch, from the generator that is passed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.negatives.negatives import Negatives, hits


class InBatchNegatives:
    """The other targets of the batch, one set shared by all of them.

    Popular items are drawn in proportion to their frequency, and no logQ correction is applied for it: used alone
    this pushes popular items down. Prefer :class:`UniformNegatives` unless that is what you want.

    Args:
        count: at most this many, chosen at random (default: all).
        distinct: each item once, however often it is a target.
        exclude_history: mask for each target the items of its row, inputs and targets.
    """

    def __init__(self, count: int | None = None, distinct: bool = True, exclude_history: bool = False) -> None:
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, or None for all targets; found {count}")
        self.count, self.distinct, self.exclude_history = count, distinct, exclude_history

    def sample(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        """Negatives for the ``targets`` (T,) of ``batch``: at most T shared items."""
        ids = targets.unique() if self.distinct else targets  # type: ignore[no-untyped-call]
        if self.count is not None and self.count < len(ids):
            ids = ids[torch.randperm(len(ids), generator=generator, device=ids.device)[: self.count]]
        return Negatives(ids, hits(ids, batch, targets, num_items, self.exclude_history))
