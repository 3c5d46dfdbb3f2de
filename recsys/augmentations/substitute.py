"""Items exchanged for similar ones.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.augmentations.choice import call_hook
from recsys.augmentations.positions import lowest, part, uniform, view_of
from recsys.augmentations.view import View, checked_share, known_items
from recsys.data.batch import PAD, Batch
from recsys.hooks import bind
from recsys.protocols import Context, ItemTable
from recsys.statistics.similarity import Similar


class Informed(View):
    """What operations share that ask for similar items."""

    def __init__(self, share: float, similar: Similar) -> None:
        super().__init__()
        if not hasattr(similar, "most_similar"):
            raise TypeError(f"similar must have most_similar(ids, generator), as ItemCF() has; found {similar!r}")
        self.share, self.similar = checked_share(share), similar
        self.num_items = 0

    def bind(self, context: Context) -> None:
        """Learn which rows are items, and bind ``similar``."""
        self.num_items = context.num_items
        bind(self.similar, context)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Show ``similar`` the item vectors as they are in this epoch."""
        call_hook([self.similar], "refresh", items, epoch)

    def _ask(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, L) bool: max(1, floor(share n)) items of each history, and their similar items, 0 elsewhere."""
        real = batch.mask & (batch.ids <= known_items(self))
        chosen = lowest(uniform(batch, generator), real, part(batch.lengths, self.share).clamp(min=1))
        return chosen, self.similar.most_similar(batch.ids.masked_fill(~chosen, PAD), generator)


class Substitute(Informed):
    """max(1, floor(share n)) items of each history, drawn without replacement, give way to their most similar items.

    Args:
        share: .1 in CoSeRec for Sports, .05 for Beauty.
        similar: what is similar, see :mod:`recsys.statistics.similarity`.

    Raises:
        ValueError: ``share`` is outside of 0..1.
        TypeError: ``similar`` has no ``most_similar``.
    """

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B, L) uniform numbers: the lowest of real items are chosen. Then ``similar`` may draw."""
        chosen, found = self._ask(batch, generator)
        return view_of(batch, ids=torch.where(chosen, found, batch.ids))
