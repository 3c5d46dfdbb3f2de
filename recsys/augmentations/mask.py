"""Some items of each history hidden.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

import torch

from recsys.augmentations.positions import located, lowest, part, take, uniform, view_of
from recsys.augmentations.view import View, at_least_one, checked_share, known_items
from recsys.data.batch import Batch
from recsys.protocols import Context

HIDES = ("token", "drop")


class Mask(View):
    """floor(share n) items of each history are hidden, drawn without replacement; at least one stays.

    Args:
        share: .3 in CL4SRec, .7 in CoSeRec.
        hide: "token" writes row N+1, for which the item table makes room (CL4SRec); "drop" takes the items out. CoSeRec
            writes padding, which leaves holes that attention skips: here the items close up, so that those behind a
            hole get other positions than there.
        least: items that stay at least, of histories that have that many.

    Raises:
        ValueError: ``share`` is outside of 0..1, ``least`` below 1, or ``hide`` unknown.
    """

    def __init__(self, share: float = 0.3, hide: str = "token", least: int = 1) -> None:
        super().__init__()
        if hide not in HIDES:
            raise ValueError(f"hide must be one of {', '.join(HIDES)}; found {hide!r}")
        self.share, self.hide, self.least = checked_share(share), hide, at_least_one(least)
        self.writes_mask = hide == "token"
        self.rows_behind = int(self.writes_mask)
        self.num_items = 0

    def bind(self, context: Context) -> None:
        """Learn which row is the mask: the one behind the items."""
        self.num_items = context.num_items

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B, L) uniform numbers: the lowest are hidden.

        Raises:
            ValueError: "token" was not bound, so that the mask row is unknown.
        """
        count = torch.minimum(part(batch.lengths, self.share), batch.lengths - self.least).clamp(min=0)
        hidden = lowest(uniform(batch, generator), batch.mask, count)
        if self.hide == "token":
            return view_of(batch, ids=batch.ids.masked_fill(hidden, known_items(self) + 1))
        return take(batch, located(batch.mask & ~hidden, batch.ids.shape[1]), batch.lengths - count)
