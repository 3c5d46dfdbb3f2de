"""Negatives drawn uniformly from the catalogue.

Legend: B histories, T targets, K negatives, N items (rows 1..N; padding is never drawn).
Everything is drawn on the device of the batch, from the generator that is passed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.negatives.negatives import Negatives, Seen, hits, owners

SCOPES = ("position", "row", "batch")
_WIDE = 2**62  # a draw below this modulo a bound below 2**31 is uniform to one part in 2**31


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
        return Negatives(ids, hits(ids, batch, targets, num_items, self.exclude_history))

    def _per_position(self, batch: Batch, targets: Tensor, num_items: int, generator: torch.Generator) -> Negatives:
        if self.exclude_history:
            owner = owners(batch, targets)
            seen = Seen(batch, num_items)
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
            seen = Seen(batch, num_items)
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
