"""Similar items put in before some.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

import torch

from recsys.augmentations.positions import located, part, take
from recsys.augmentations.substitute import Informed
from recsys.data.batch import Batch
from recsys.statistics.similarity import Similar


class Insert(Informed):
    """Before max(1, floor(share n)) items of each history, drawn without replacement, stands their most similar item.

    It gets the time of the item it stands before, and in training rows also its weight: it is a guess at that event,
    and where that one must not be trained, neither must the guess.

    Args:
        share: .4 in CoSeRec for Sports, .5 for Beauty and Yelp.
        similar: what is similar, see :mod:`recsys.statistics.similarity`.
        max_length: the newest items that are kept, what the encoder can read; None lets histories grow.

    Raises:
        ValueError: ``share`` is outside of 0..1, or ``max_length`` below 1.
        TypeError: ``similar`` has no ``most_similar``.
    """

    def __init__(self, share: float, similar: Similar, max_length: int | None = None) -> None:
        super().__init__(share, similar)
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, or None to let histories grow; found {max_length}")
        self.max_length = self.longest = max_length

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B, L) uniform numbers: the lowest of real items are chosen. Then ``similar`` may draw."""
        chosen, found = self._ask(batch, generator)
        longest = batch.ids.shape[1]
        width = min(longest + max(1, part(longest, self.share)), self.max_length or 2 * longest)
        total = batch.lengths + chosen.sum(1)
        surplus = (total - width).clamp(min=0)
        index = located(torch.stack([chosen, batch.mask], 2).flatten(1), width, surplus)  # a guess before each item
        view = take(batch, index // 2, total - surplus)
        return view.replace(ids=torch.stack([found, batch.ids], 2).flatten(1).gather(1, index) * view.mask)
