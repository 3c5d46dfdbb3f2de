"""CoSeRec: contrast of two informative views of each history (Liu et al. 2021, arXiv 2108.06479)."""

from __future__ import annotations

from collections.abc import Sequence

from recsys.augmentations.choice import OneOf
from recsys.augmentations.crop import Crop
from recsys.augmentations.insert import Insert
from recsys.augmentations.mask import Mask
from recsys.augmentations.reorder import Reorder
from recsys.augmentations.substitute import Substitute
from recsys.auxiliaries.contrast import (
    inputs,
    newest,
)
from recsys.auxiliaries.pairs import ViewContrast, checked_length, refresh_views
from recsys.data.batch import Batch
from recsys.protocols import Augmentation, Context, Step
from recsys.statistics.similarity import ItemCF, Similar

OPERATIONS = ("crop", "mask", "reorder", "substitute", "insert")


class CoSeRec(ViewContrast):
    """Two views by operations that also put in similar items (Liu et al. 2021, arXiv 2108.06479).

    Each view's operation is drawn on its own: one of five, or one of ``short`` for a history of at most ``threshold``
    items, which cropping and reordering would ruin.

    Use when: items are bought together often enough for similarity to mean something. ``pool="flat"`` is the authors'
    choice and compares position by position, so an item cut out or put in shifts what is compared; they are aligned at
    the newest item and zero where a view has none, while theirs also compare the states of padding. "mean" does not
    depend on alignment, and "last" is the vector that ranks.

    The share to reorder is the .7 that the authors' code uses whenever a threshold is set, as in all their scripts: it
    hands on the share to mask. Their paper has .2, for which pass ``reorder=0.2``: of 20 items 3 move then, not 13.

    Deviations: similarity is ItemCF alone, unless ``similar=Hybrid(...)`` mixes it with the model's own as the authors
    do; a masked item leaves the history (theirs stays as a padded position); the window that the model reads is
    augmented, where theirs is the whole history, of which the newest items are kept afterwards: the same for histories
        within the
    window (all but a few of Amazon's), other views for longer ones (57% of the users of MovieLens-100K at 50 items).

    Args:
        crop, mask, reorder, substitute, insert: share of the items that each operation is about.
        threshold: longest history that counts as short.
        short: operations for short histories, by the names of those arguments.
        similar: which item stands for another (default: ``ItemCF()``, counted on the training rows).
        max_length: newest items of a view that are read, where insertion makes it longer; by default as many as the
            longest input of the batch has.
        weight, temperature, pool, cosine, hide, keep: see :class:`ViewContrast`.

    Raises:
        ValueError: as :class:`ViewContrast`, or ``short`` names no operation, or a ``max_length`` below 1.
    """

    def __init__(
        self,
        weight: float = 0.1,
        crop: float = 0.2,
        mask: float = 0.7,
        reorder: float = 0.7,
        substitute: float = 0.1,
        insert: float = 0.4,
        threshold: int = 4,
        short: Sequence[str] = ("substitute", "insert", "mask"),
        similar: Similar | None = None,
        temperature: float = 1.0,
        pool: str = "flat",
        cosine: bool = False,
        hide: Sequence[str] = (),
        keep: float = 0.0,
        max_length: int | None = None,
    ) -> None:
        super().__init__(weight, temperature, pool, cosine, hide, keep)
        self.crop, self.mask, self.reorder, self.substitute, self.insert = crop, mask, reorder, substitute, insert
        self.threshold, self.short, self.max_length = threshold, list(short), checked_length(max_length)
        self.longest = self.max_length
        self.similar: Similar = ItemCF() if similar is None else similar
        operations: list[Augmentation] = [Crop(crop), Mask(mask, hide="drop"), Reorder(reorder)]
        operations += [Substitute(substitute, self.similar), Insert(insert, self.similar, max_length)]
        if not self.short or not set(self.short) <= set(OPERATIONS):
            raise ValueError(f"short names some of {', '.join(OPERATIONS)}; found {self.short}")
        self.draw = OneOf(operations, [OPERATIONS.index(name) for name in self.short], threshold)

    def bind(self, context: Context) -> None:
        """Let the operations learn the catalogue and what is similar."""
        self.draw.bind(context)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """Two views, each by an operation drawn on its own."""
        refresh_views(self.draw, step)
        generator, width = step.generator("CoSeRec"), self.max_length or batch.ids.shape[1]
        first, second = (self.draw(inputs(batch), generator) for _ in range(2))
        return newest(first, width), newest(second, width)
