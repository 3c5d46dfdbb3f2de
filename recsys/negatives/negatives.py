"""Items that targets are compared with, and which of them do not count.

Legend: B histories, T targets, K negatives, N items (rows 1..N; padding is never drawn).
Everything is drawn on the device of the batch, from the generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.data.batch import Batch


@dataclass(frozen=True)
class Negatives:
    """Negatives of T targets; where ``mask`` is True the item must not count for that target.

    ``ids`` is (K,) if all targets share one set, (B, K) if those of a history do (``owner`` then names the history of
    each target), and (T, K) otherwise.
    """

    ids: Tensor  # int64 item rows 1..N
    mask: Tensor  # (T, K) bool
    owner: Tensor | None = None  # (T,) int64
    weights: Tensor | None = None  # (T, K) float32: how much each counts in the loss of its target (1 where None)

    def for_targets(self) -> tuple[Tensor, Tensor]:
        """Ids and mask (T, K) by target; ids stay (K,) if they are shared by all, so that one product scores them."""
        return (self.ids if self.owner is None else self.ids[self.owner]), self.mask


def owners(batch: Batch, targets: Tensor) -> Tensor:
    """(T,) int64: which history of the batch each target belongs to.

    Raises:
        ValueError: ``targets`` are not those of the batch.
    """
    if batch.targets is None:
        raise ValueError("the batch has no targets: apply a Targets part (NextItem, LastItem) before drawing negatives")
    chosen = batch.flat[batch.flatten(batch.targets) > 0]
    if len(chosen) != len(targets):
        raise ValueError(f"the batch has {len(chosen)} targets, and negatives were asked for {len(targets)}")
    return chosen // batch.ids.shape[1]


def hits(ids: Tensor, batch: Batch, targets: Tensor, num_items: int, exclude_history: bool) -> Tensor:
    """(T, K) bool: shared items that a target must not count."""
    own = ids == targets[:, None]
    if not exclude_history or len(targets) == 0:
        return own
    owner = owners(batch, targets)
    return own | Seen(batch, num_items).contains(torch.arange(len(batch), device=ids.device), ids)[owner]


class Seen:
    """The distinct items of each row, inputs and targets, sorted; maps "the u-th unseen item" to an item row."""

    def __init__(self, batch: Batch, num_items: int) -> None:
        self.size = num_items + 1
        rows = torch.arange(len(batch), device=batch.ids.device)[:, None] * self.size
        found = [(rows + batch.ids)[batch.mask]]
        if batch.targets is not None:
            found.append((rows + batch.targets)[batch.targets > 0])
        self.keys: Tensor = torch.cat(found).unique()  # type: ignore[no-untyped-call]
        owner = self.keys // self.size
        counts = owner.bincount(minlength=len(batch))
        self.first = counts.cumsum(0) - counts
        self.free = num_items - counts  # (B,) items left to draw
        # Unseen items below the seen one: its row number, less one, less the seen items before it.
        self.below = self.keys - 1 - (torch.arange(len(owner), device=owner.device) - self.first[owner])

    def unseen(self, owner: Tensor, drawn: Tensor) -> Tensor:
        """Item rows of the ``drawn``-th unseen items (R, K), counted from 0, of rows ``owner`` (R,)."""
        before = torch.searchsorted(self.below, owner[:, None] * self.size + drawn, right=True)
        ids = drawn + 1 + before - self.first[owner][:, None]
        return ids.clamp(max=self.size - 1)

    def contains(self, owner: Tensor, ids: Tensor) -> Tensor:
        """(T, K) bool: is item ``ids[k]`` (K,) seen in row ``owner[t]``."""
        wanted = owner[:, None] * self.size + ids
        if len(self.keys) == 0:
            return torch.zeros_like(wanted, dtype=torch.bool)
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.keys[place] == wanted
