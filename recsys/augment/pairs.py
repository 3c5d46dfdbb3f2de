"""Contrast of two views of each history: CL4SRec (random views), CoSeRec (informative views), DuoRec (same target).

All three add weight * NT-Xent(first view, second view) to the recommendation loss; they differ in where the views come
from. A view is made from the inputs of the prepared batch, and all views of a step go through the encoder in one pass.
Rows without any input take no part.

Published tables mix recommendation losses (one-negative BCE, full softmax): compare each with its own backbone.

Legend: B histories that take part, L longest of them, F width of a pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.augment.contrast import (
    NO_EVENTS,
    check_contrast,
    check_labels,
    check_pool,
    false_negatives,
    halves,
    inputs,
    newest,
    newest_target,
    nt_xent,
    together,
)
from recsys.augment.similar import ItemCF, Similar
from recsys.augment.views import Crop, DistinctPair, Insert, Mask, OneOf, Reorder, Substitute
from recsys.data.batch import PAD, Batch
from recsys.data.targets import NextItem
from recsys.seams import Augmentation, Context, Step

MODES = ("us_x", "un", "su", "us")
OPERATIONS = ("crop", "mask", "reorder", "substitute", "insert")


class ViewContrast(nn.Module):
    """What the methods below share: two views of each row, encoded together, pooled and contrasted.

    A subclass gives :meth:`views`; ``same_history`` says whether the second view is of the row's own history.

    Args:
        weight: of the loss.
        temperature: divides the products.
        pool: what stands for a view: the state of its "last" item, the "mean" over its items, or the states of all of
            them one behind the other ("flat", newest item first, zeros where a shorter view has none).
        cosine: contrast cosines instead of dot products; wants a temperature of .05 to .2.
        hide: which rows are not told apart: those of the same "target", of the same "user", or both.
        keep: what they still count as negatives, 0 to 1.

    Raises:
        ValueError: an unknown name, a temperature that is not positive, or ``keep`` outside of 0..1.
    """

    same_history = True

    def __init__(
        self, weight: float, temperature: float, pool: str, cosine: bool, hide: Sequence[str], keep: float
    ) -> None:
        super().__init__()
        check_contrast(temperature, keep)
        check_pool(pool)
        self.weight, self.temperature, self.pool, self.cosine = weight, temperature, pool, cosine
        self.hide, self.keep = [hide] if isinstance(hide, str) else list(hide), keep
        check_labels(self.hide)

    def forward(self, step: Step) -> Tensor:
        """The loss of a step, 0 if at most one row takes part."""
        rows = self.rows(step.batch)
        batch = step.batch.select(rows)
        encoded = together(step, self.views(step, batch), self.pool != "last") if len(rows) else None
        return self.contrast(step, batch, *halves(encoded, self.pool, step))

    def rows(self, batch: Batch) -> Tensor:
        """(B,) int64: which rows of the prepared batch take part."""
        return (batch.lengths > 0).nonzero().squeeze(1)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """Two views of the rows that take part."""
        raise NotImplementedError

    def contrast(self, step: Step, batch: Batch, first: Tensor, second: Tensor) -> Tensor:
        """NT-Xent of the vectors (B, F) of ``batch``, the selected rows of the step."""
        if step.share == 0:  # the spare row of a process without rows: it waits for the others, and brings nothing
            batch, first, second = batch.select(batch.rows[:0]), first[:0], second[:0]
        hidden = false_negatives(batch, self.hide) if self.hide else None
        return nt_xent(first, second, self.temperature, self.cosine, hidden, self.keep)


class CL4SRec(ViewContrast):
    """Two random views of each history, by two different operations (Xie et al. 2022, arXiv 2010.14395).

    Use when: nothing but items is known; the usual first contrast to compare with. The authors published no code: the
    shares are those of DuoRec's re-implementation, which changed its own inputs in place, as ours does not. A history
    of one item is left as it is, so its two views differ by dropout alone.

    Args:
        operations: what views are drawn from, two distinct ones a row (default: crop .6, mask .3, reorder .6). A mask
            needs its row in the item table, ``IdItems(dim, extra=1)``.
        weight, temperature, pool, cosine, hide, keep: see :class:`ViewContrast`.
    """

    def __init__(
        self,
        weight: float = 0.1,
        operations: Sequence[Augmentation] | None = None,
        temperature: float = 1.0,
        pool: str = "last",
        cosine: bool = False,
        hide: Sequence[str] = (),
        keep: float = 0.0,
    ) -> None:
        super().__init__(weight, temperature, pool, cosine, hide, keep)
        self.operations = [Crop(0.6), Mask(0.3), Reorder(0.6)] if operations is None else list(operations)
        self.draw = DistinctPair(self.operations)
        self.longest = self.draw.longest

    def bind(self, context: Context) -> None:
        """Let the operations learn the catalogue."""
        self.draw.bind(context)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """Two views, by operations that differ; of one that grew the newest items, as many as the longest input has."""
        _refresh(self.draw, step)
        first, second = self.draw(inputs(batch), step.generator("CL4SRec"))
        width = self.longest or batch.ids.shape[1]
        return newest(first, width), newest(second, width)


class CoSeRec(ViewContrast):
    """Two views by operations that also put in similar items (Liu et al. 2021, arXiv 2108.06479).

    Each view's operation is drawn on its own: one of five, or one of ``short`` for a history of at most ``threshold``
    items, which cropping and reordering would ruin.

    Use when: items are bought together often enough for similarity to mean something. ``pool="flat"`` is the authors'
    choice and compares slot by slot, so an item cut out or put in shifts what is compared; slots are aligned at the
    newest item and zero where a view has none, while theirs also compare the states of padding. "mean" does not depend
    on alignment, and "last" is the vector that ranks.

    The share to reorder is the .7 that the authors' code uses whenever a threshold is set, as in all their scripts: it
    hands on the share to mask. Their paper has .2, for which pass ``reorder=0.2``: of 20 items 3 move then, not 13.

    Deviations: similarity is ItemCF alone, unless ``similar=Hybrid(...)`` mixes it with the model's own as the authors
    do; a masked item leaves the history (theirs stays as a padded slot); the window that the model reads is augmented,
    where theirs is the whole history, of which the newest items are kept afterwards: the same for histories within the
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
        self.threshold, self.short, self.max_length = threshold, list(short), _length(max_length)
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
        _refresh(self.draw, step)
        generator, width = step.generator("CoSeRec"), self.max_length or batch.ids.shape[1]
        first, second = (self.draw(inputs(batch), generator) for _ in range(2))
        return newest(first, width), newest(second, width)


class DuoRec(ViewContrast):
    """The history under another dropout, and another training history with the same target (Qiu et al. 2022).

    With h the state of the recommendation pass, h' of the same history read again, h_s of the partner
    (arXiv 2110.05730; modes as in the authors' code):

    - "us_x" (default): NT-Xent(h', h_s), one pass over twice the rows;
    - "un": NT-Xent(h, h'), one pass; nothing but noise where the encoder has no dropout;
    - "su": NT-Xent(h, h_s), one pass;
    - "us": the sum of "un" and "su", one pass over twice the rows.

    Use when: several histories lead to the same item. A partner says again what the target says, so rows with one
    target are false negatives of each other elsewhere in the batch: ``hide=("target",)``.

    A row is its whole window here, and its target that of the newest position (trained on the last position alone, with
    ``LastItem`` targets, this is the authors' form). A partner is another training event with the item of that target,
    drawn uniformly, or the row's own where there is no other; its history is what stands before it, and held-out events
    are out of reach. Rows without a target at the newest position take no part.

    Args:
        mode: one of the above.
        max_length: newest items of the partner's history that are read; by default as many as the longest input of the
            batch has, which is less than the encoder's reach where batches are sorted by length.
        weight, temperature, cosine, hide, keep: see :class:`ViewContrast`; ``weight`` is of both terms of "us".

    Raises:
        ValueError: as :class:`ViewContrast`, or an unknown mode, or a ``max_length`` below 1.
    """

    same_history = False
    as_ranked = True

    def __init__(
        self,
        weight: float = 0.1,
        mode: str = "us_x",
        temperature: float = 1.0,
        cosine: bool = False,
        hide: Sequence[str] = (),
        keep: float = 0.0,
        max_length: int | None = None,
    ) -> None:
        super().__init__(weight, temperature, "last", cosine, hide, keep)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, found {mode!r}")
        self.mode, self.max_length = mode, _length(max_length)
        self.longest = None if mode == "un" else self.max_length  # "un" reads no other history
        self.needs = frozenset() if mode == "un" else frozenset({"events"})
        self._training: Any = None

    def bind(self, context: Context) -> None:
        """Remember the training events, if there are any."""
        self._training = context.training

    def forward(self, step: Step) -> Tensor:
        """The loss of a step, 0 if at most one row takes part."""
        if self.mode == "us_x":
            return super().forward(step)
        rows = self.rows(step.batch)
        batch, anchors = step.batch.select(rows), step.encoded.user[rows]
        others: Sequence[Tensor] = [anchors] * (2 if self.mode == "us" else 1)  # no rows, but terms as in any process
        if len(rows):
            views = [inputs(batch)] if self.mode == "un" else list(self.views(step, batch))
            others = together(step, views[1:] if self.mode == "su" else views).user.split(len(batch))
        return torch.stack([self.contrast(step, batch, anchors, other) for other in others]).sum()

    def rows(self, batch: Batch) -> Tensor:
        """(B,) int64: which rows of the prepared batch take part."""
        return (newest_target(batch) > PAD).nonzero().squeeze(1)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """The history, and its partner's as it would be ranked."""
        return inputs(batch), step.asked(inputs(self.partners(batch, step.generator("DuoRec"))))

    def partners(self, batch: Batch, generator: torch.Generator) -> Batch:
        """(B, L') histories before other training events with the newest target of each row, with that target.

        Raises:
            ValueError: no training events are known (a loaded model), or the batch does not say which it predicts.
        """
        if self._training is None:
            raise ValueError("DuoRec draws partners from the training events, and knows none: bind(context) with them")
        if "events" not in batch.extra:
            raise ValueError(f'DuoRec reads extra["events"] of the batch: {NO_EVENTS}')
        events, targets = batch.extra["events"].cpu().numpy(), newest_target(batch).cpu().numpy()
        users, found = self._training.same_item().draw(events, targets, generator)
        length = (batch.ids.shape[1] if self.max_length is None else self.max_length) + 1
        optional = {name for name in ("times", "query_time") if getattr(batch, name) is not None}
        gathered = self._training.gather(users, length, stop=np.asarray(found) + 1, needs=frozenset(optional))
        return NextItem().train(gathered.to(batch.ids.device))


def _refresh(operations: DistinctPair | OneOf, step: Step) -> None:
    """Show the item vectors to operations that go by them."""
    assert step.items is not None
    operations.refresh(step.items, step.epoch)


def _length(max_length: int | None) -> int | None:
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, found {max_length}")
    return max_length
