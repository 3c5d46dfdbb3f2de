"""Contrast of two views of each history, the common part of CL4SRec, CoSeRec and DuoRec.

All three add weight * NT-Xent(first view, second view) to the recommendation loss; they differ in where the views come
from. A view is made from the inputs of the prepared batch, and all views of a step go through the encoder in one pass.
Rows without any input take no part.

Published tables mix recommendation losses (one-negative BCE, full softmax): compare each with its own backbone.

Legend: B histories that take part, L longest of them, F width of a pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from recsys.auxiliaries.contrast import (
    check_contrast,
    check_labels,
    check_pool,
    false_negatives,
    halves,
    nt_xent,
    together,
)
from recsys.data.batch import Batch
from recsys.protocols import Step


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


def refresh_views(operations: Any, step: Step) -> None:
    """Show the item vectors to operations that go by them."""
    assert step.items is not None
    operations.refresh(step.items, step.epoch)


def checked_length(max_length: int | None) -> int | None:
    """``max_length``, if it is None or at least 1."""
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, found {max_length}")
    return max_length
