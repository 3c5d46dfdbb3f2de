"""Several augmentations as one: another one for each history.

What all views have in common is said in :mod:`recsys.augmentations.view`.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recsys.augmentations.positions import pick_rows, view_of, whole
from recsys.augmentations.view import View
from recsys.data.batch import Batch
from recsys.hooks import PartList, bind, member
from recsys.protocols import Augmentation, Context, ItemTable


class _Several(View):
    """What parts share that hold operations."""

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.operations = PartList(operations)

    @property
    def longest(self) -> int | None:
        """The longest history that an operation lets grow; None if none does, or without bound."""
        return max(filter(None, (member(one, "longest") for one in self.operations)), default=None)

    @property
    def writes_mask(self) -> bool:
        """Whether an operation writes the mask's row."""
        return any(member(one, "writes_mask") for one in self.operations)

    def bind(self, context: Context) -> None:
        """Bind every operation."""
        for one in self.operations:
            bind(one, context)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Show every operation the item vectors as they are in this epoch."""
        call_hook(self.operations, "refresh", items, epoch)


class OneOf(_Several):
    """One of several operations for each history, drawn uniformly; short histories may have a choice of their own.

    Every operation is run on the whole batch, and each history is picked from the one drawn for it. CoSeRec draws this
    way for each of two views, which may coincide.

    Args:
        operations: what to choose from.
        short: positions in ``operations`` of those that short histories choose from (default: all).
        threshold: items of the longest history that is short; 4 in CoSeRec for Sports, 12 for Beauty.

    Raises:
        ValueError: there is nothing to choose from, or ``short`` names no operation.
    """

    def __init__(
        self, operations: Sequence[Augmentation], short: Sequence[int] | None = None, threshold: int = 4
    ) -> None:
        super().__init__(operations)
        if not len(operations) or (short is not None and not len(short)):
            raise ValueError("OneOf needs at least one operation to choose from, for short histories too")
        if any(not 0 <= one < len(operations) for one in short or ()):
            raise ValueError(f"short holds positions 0..{len(operations) - 1} of the operations, found {short}")
        self.short, self.threshold = None if short is None else list(short), threshold

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B,) uniform numbers, for the choice, then as many for short ones; then the operations draw in turn."""
        choice = whole(batch, len(self.operations), generator)
        if self.short is not None:
            few = torch.tensor(self.short, device=choice.device)[whole(batch, len(self.short), generator)]
            choice = torch.where(batch.lengths <= self.threshold, few, choice)
        return pick_rows([operation(batch, generator) for operation in self.operations], choice)


class DistinctPair(_Several):
    """Two views by two different operations for each history (CL4SRec); of one item there is but the history itself.

    Every operation is run once on the whole batch, and both views are picked from the results.

    Args:
        operations: what to choose from, two or more.

    Raises:
        ValueError: there are fewer than two operations.
    """

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__(operations)
        if len(operations) < 2:
            raise ValueError(f"two different operations need two or more to choose from, found {len(operations)}")

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Batch]:
        """Draws (B, K) uniform numbers, the two lowest of which are the choice; then the operations draw in turn."""
        count = len(self.operations)
        draws = torch.rand(len(batch), count, generator=generator, device=batch.ids.device)
        pair = draws.argsort(dim=1, stable=True)[:, :2].masked_fill(batch.lengths[:, None] < 2, count)
        views = [*(operation(batch, generator) for operation in self.operations), view_of(batch)]
        return pick_rows(views, pair[:, 0]), pick_rows(views, pair[:, 1])


def call_hook(parts: Any, hook: str, *arguments: Any) -> None:
    """Call a hook of those parts that have it."""
    for one in parts:
        if hasattr(one, hook):
            getattr(one, hook)(*arguments)
