"""Items that a target is compared with instead of all items: uniform, or the other targets of the batch.

Legend: B histories, T targets, K negatives, N items (rows 1..N; padding is never drawn).
Everything is drawn on the device of the batch, from the generator that is passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.data.batch import Batch

SCOPES = ("position", "row", "batch")
_WIDE = 2**62  # a draw below this modulo a bound below 2**31 is uniform to one part in 2**31


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


class UniformNegatives:
    """``count`` items drawn uniformly from the catalogue.

    Args:
        count: K.
        per: "position" draws for every target, "row" once per history, "batch" once for all. A shared set costs one
            matrix product where K items per target cost K vectors per target.
        exclude_history: leave out every item of the batch row, inputs and targets (what the model is given of the
            history, not what a window cut off). Per position and per row they are never drawn, per batch masked.
        distinct: draw without replacement.

    A target is never its own negative: it is not drawn per position, and masked otherwise. Where fewer than ``count``
    items are left to draw, the rest is masked.
    """

    def __init__(
        self, count: int = 256, per: str = "position", exclude_history: bool = False, distinct: bool = False
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, found {count}")
        if per not in SCOPES:
            raise ValueError(f"per must be one of {', '.join(SCOPES)}; found {per!r}")
        self.count, self.per, self.exclude_history, self.distinct = count, per, exclude_history, distinct

    def sample(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        """Negatives for the ``targets`` (T,) of ``batch``, in the order of its flat tokens.

        Raises:
            ValueError: ``distinct`` asks for more items than there are, or a target's history is not known.
        """
        self._check(num_items)
        if self.per == "position":
            return self._per_position(batch, targets, num_items, generator)
        if self.per == "row":
            return self._per_row(batch, targets, num_items, generator)
        bound = torch.full((1,), num_items, device=targets.device)
        drawn, _ = _draw(bound, self.count, self.distinct, generator)
        ids = drawn[0] + 1
        return Negatives(ids, _hits(ids, batch, targets, num_items, self.exclude_history))

    def _per_position(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        if self.exclude_history:
            owner = owners(batch, targets)
            seen = _Seen(batch, num_items)
            drawn, short = _draw(seen.free[owner], self.count, self.distinct, generator)
            return Negatives(seen.unseen(owner, drawn), short)
        if self.distinct:
            drawn, short = _draw((targets > 0) * -1 + num_items, self.count, True, generator)
        else:
            size = (len(targets), self.count)
            drawn = torch.randint(max(num_items - 1, 1), size, generator=generator, device=targets.device)
            short = torch.zeros_like(drawn, dtype=torch.bool) if num_items > 1 else torch.ones_like(drawn).bool()
        ids = drawn + 1 + (drawn + 1 >= targets[:, None])
        return Negatives(ids.clamp(max=num_items), short)

    def _per_row(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        owner = owners(batch, targets)
        if self.exclude_history:
            seen = _Seen(batch, num_items)
            drawn, short = _draw(seen.free, self.count, self.distinct, generator)
            ids = seen.unseen(torch.arange(len(batch), device=targets.device), drawn)
            return Negatives(ids, short[owner], owner)
        bound = torch.full((len(batch),), num_items, device=targets.device)
        drawn, _ = _draw(bound, self.count, self.distinct, generator)
        ids = drawn + 1
        return Negatives(ids, ids[owner] == targets[:, None], owner)

    def _check(self, num_items: int) -> None:
        available = num_items - 1 if self.per == "position" else num_items
        if self.distinct and self.count > available:
            raise ValueError(
                f"{self.count} distinct negatives were asked for per {self.per}, and {num_items} items give only "
                f"{available}: lower count, or use the full softmax"
            )


class InBatchNegatives:
    """The other targets of the batch, one set shared by all of them.

    Popular items are drawn in proportion to their frequency, and no logQ correction is applied for it: used alone
    this pushes popular items down. Prefer :class:`UniformNegatives` unless that is what you want.

    Args:
        count: at most this many, chosen at random (default: all).
        distinct: each item once, however often it is a target.
        exclude_history: mask for each target the items of its row, inputs and targets.
    """

    def __init__(self, count: int | None = None, distinct: bool = True, exclude_history: bool = False) -> None:
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, or None for all targets; found {count}")
        self.count, self.distinct, self.exclude_history = count, distinct, exclude_history

    def sample(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        """Negatives for the ``targets`` (T,) of ``batch``: at most T shared items."""
        ids = targets.unique() if self.distinct else targets  # type: ignore[no-untyped-call]
        if self.count is not None and self.count < len(ids):
            ids = ids[torch.randperm(len(ids), generator=generator, device=ids.device)[: self.count]]
        return Negatives(ids, _hits(ids, batch, targets, num_items, self.exclude_history))


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


class _Seen:
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


def _hits(ids: Tensor, batch: Batch, targets: Tensor, num_items: int, exclude_history: bool) -> Tensor:
    """(T, K) bool: shared items that a target must not count."""
    own = ids == targets[:, None]
    if not exclude_history or len(targets) == 0:
        return own
    owner = owners(batch, targets)
    return own | _Seen(batch, num_items).contains(torch.arange(len(batch), device=ids.device), ids)[owner]


def _draw(bound: Tensor, count: int, distinct: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform numbers in 0..bound[r]-1 (R, K), and where there were too few of them (R, K) bool."""
    size = (len(bound), count)
    limit = bound.clamp(min=1)[:, None]
    short = (bound[:, None] < 1).expand(size)
    if not distinct:
        return torch.randint(_WIDE, size, generator=generator, device=bound.device) % limit, short
    least = int(bound.min()) if len(bound) else 0
    if 2 * count <= least:
        return _redrawn(limit, count, generator), short
    most = int(bound.max()) if len(bound) else 0
    keys = torch.rand((len(bound), max(most, count)), generator=generator, device=bound.device, dtype=torch.float64)
    keys = keys.masked_fill(torch.arange(keys.shape[1], device=bound.device) >= bound[:, None], -1.0)
    drawn = keys.topk(count, dim=1, sorted=True).indices
    return drawn.minimum(limit - 1), torch.arange(count, device=bound.device) >= bound[:, None]


def _redrawn(limit: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(R, K) distinct numbers below ``limit`` (R, 1): repeated ones are drawn again until none is left."""
    size = (len(limit), count)
    drawn = torch.randint(_WIDE, size, generator=generator, device=limit.device) % limit
    while True:
        values, order = drawn.sort(dim=1, stable=True)
        again = torch.zeros_like(drawn, dtype=torch.bool)
        again.scatter_(1, order[:, 1:], values[:, 1:] == values[:, :-1])
        if not bool(again.any()):
            return drawn
        fresh = torch.randint(_WIDE, size, generator=generator, device=limit.device) % limit
        drawn = torch.where(again, fresh, drawn)
