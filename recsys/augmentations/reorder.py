"""A stretch of each history in another order.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

import torch

from recsys.augmentations.positions import part, positions, take, uniform, whole
from recsys.augmentations.view import View, checked_share
from recsys.data.batch import Batch


class Reorder(View):
    """A window of floor(share n) items at a start drawn uniformly is shuffled. Times stay where they are, and sorted.

    Args:
        share: .6 in CL4SRec, .2 in CoSeRec's paper and .7 in its code. Histories with floor(share n) below 2 stay as
            they are.

    Raises:
        ValueError: ``share`` is outside of 0..1.
    """

    def __init__(self, share: float = 0.6) -> None:
        super().__init__()
        self.share = checked_share(share)

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B,) uniform numbers, for the starts, then (B, L), for the order in the windows."""
        window, position = part(batch.lengths, self.share), positions(batch)
        start = whole(batch, batch.lengths - window + 1, generator)[:, None]
        inside = (position >= start) & (position < start + window[:, None])
        keys = torch.where(inside, start - 0.5 + uniform(batch, generator) * window[:, None], position)
        index = keys.argsort(dim=1, stable=True)  # keys inside stay within start - .5 and start + window - .5
        return take(batch, index, batch.lengths).replace(times=batch.times)
