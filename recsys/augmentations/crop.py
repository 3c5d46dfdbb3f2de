"""A contiguous part of each history.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

import torch

from recsys.augmentations.positions import part, positions, take, whole
from recsys.augmentations.view import View, at_least_one, checked_share
from recsys.data.batch import Batch


class Crop(View):
    """A contiguous part of each history: max(1, floor(share n)) items from a start drawn uniformly.

    Args:
        share: .6 in CL4SRec, .2 in CoSeRec.
        least: items that are kept at least, of histories that have that many.

    Raises:
        ValueError: ``share`` is outside of 0..1, or ``least`` below 1.
    """

    def __init__(self, share: float = 0.6, least: int = 1) -> None:
        super().__init__()
        self.share, self.least = checked_share(share), at_least_one(least)

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B,) uniform numbers, for the starts."""
        kept = torch.minimum(part(batch.lengths, self.share).clamp(min=self.least), batch.lengths)
        start = whole(batch, batch.lengths - kept + 1, generator)
        index = (start[:, None] + positions(batch)).clamp(max=batch.ids.shape[1] - 1)
        return take(batch, index, kept)
