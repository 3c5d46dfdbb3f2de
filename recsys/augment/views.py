"""Views of a batch: crop, mask, reorder, substitute, insert, and the choice among them for each history.

The operations of CL4SRec (Xie et al. 2022, arXiv 2010.14395: crop, mask, reorder) and CoSeRec (Liu et al. 2021, arXiv
2108.06479: substitute, insert), on the whole batch at once. What all of them have in common:

- The batch that comes in is never changed; targets and ``extra``, which speak of the old events, do not come along.
- Made from a prepared batch (one with targets) a view has no weights, as these belong to the targets. From training
  rows, which have none yet (``Recommender(augmentations=[...])``), weights move with their items.
- An empty history stays empty and no other becomes so. Rows behind the items (mask tokens) are not looked up.
- ``floor(share n)`` takes the share as the decimal number it is written as: .29 of 100 items are 29.
- Among a recommender's augmentations an item that an operation writes is also a target. ``Mask`` must then take items
  out (``hide="drop"``), and ``Crop`` and ``Mask`` need ``least=2`` for something to be left to predict.

What we do differently from the released re-implementations: window starts include the last legal one, nothing is done
in place (a known loader spoils its own training data), and a view has no holes.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N), K operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.augment.places import located, lowest, part, pick_rows, places, take, uniform, view_of, whole
from recsys.augment.similar import Similar
from recsys.data.batch import PAD, Batch
from recsys.hooks import PartList, bind
from recsys.seams import Augmentation, Context, ItemTable

HIDES = ("token", "drop")


class _View(nn.Module):
    """What all operations share: the event that a row predicts is another one afterwards."""

    keeps_events = False


class Crop(_View):
    """A contiguous part of each history: max(1, floor(share n)) items from a start drawn uniformly.

    Args:
        share: .6 in CL4SRec, .2 in CoSeRec.
        least: items that are kept at least, where there are so many.

    Raises:
        ValueError: ``share`` is outside of 0..1, or ``least`` below 1.
    """

    def __init__(self, share: float = 0.6, least: int = 1) -> None:
        super().__init__()
        self.share, self.least = _checked(share), _at_least_one(least)

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B,) uniform numbers, for the starts."""
        kept = torch.minimum(part(batch.lengths, self.share).clamp(min=self.least), batch.lengths)
        start = whole(batch, batch.lengths - kept + 1, generator)
        index = (start[:, None] + places(batch)).clamp(max=batch.ids.shape[1] - 1)
        return take(batch, index, kept)


class Mask(_View):
    """floor(share n) items of each history are hidden, drawn without replacement; at least one stays.

    Args:
        share: .3 in CL4SRec, .7 in CoSeRec.
        hide: "token" writes row N+1, which needs ``IdItems(extra=1)`` (CL4SRec); "drop" takes the items out. CoSeRec
            writes padding, which leaves holes that attention skips: here the items close up, so that those behind a
            hole get other positions than there.
        least: items that stay at least, where there are so many.

    Raises:
        ValueError: ``share`` is outside of 0..1, ``least`` below 1, or ``hide`` unknown.
    """

    def __init__(self, share: float = 0.3, hide: str = "token", least: int = 1) -> None:
        super().__init__()
        if hide not in HIDES:
            raise ValueError(f"hide must be one of {', '.join(HIDES)}; found {hide!r}")
        self.share, self.hide, self.least = _checked(share), hide, _at_least_one(least)
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
            return view_of(batch, ids=batch.ids.masked_fill(hidden, _known(self) + 1))
        return take(batch, located(batch.mask & ~hidden, batch.ids.shape[1]), batch.lengths - count)


class Reorder(_View):
    """A window of floor(share n) items at a start drawn uniformly is shuffled. Times stay where they are, and sorted.

    Args:
        share: .6 in CL4SRec, .2 in CoSeRec's paper and .7 in its code. Histories with floor(share n) below 2 stay as
            they are.

    Raises:
        ValueError: ``share`` is outside of 0..1.
    """

    def __init__(self, share: float = 0.6) -> None:
        super().__init__()
        self.share = _checked(share)

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B,) uniform numbers, for the starts, then (B, L), for the order in the windows."""
        window, place = part(batch.lengths, self.share), places(batch)
        start = whole(batch, batch.lengths - window + 1, generator)[:, None]
        inside = (place >= start) & (place < start + window[:, None])
        keys = torch.where(inside, start - 0.5 + uniform(batch, generator) * window[:, None], place)
        index = keys.argsort(dim=1, stable=True)  # keys inside stay within start - .5 and start + window - .5
        return take(batch, index, batch.lengths).replace(times=batch.times)


class _Informed(_View):
    """What operations share that ask for similar items."""

    def __init__(self, share: float, similar: Similar) -> None:
        super().__init__()
        if not hasattr(similar, "most_similar"):
            raise TypeError(f"similar must have most_similar(ids, generator), as ItemCF() has; found {similar!r}")
        self.share, self.similar = _checked(share), similar
        self.num_items = 0

    def bind(self, context: Context) -> None:
        """Learn which rows are items, and bind ``similar``."""
        self.num_items = context.num_items
        bind(self.similar, context)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Show ``similar`` the item vectors as they are in this epoch."""
        _call([self.similar], "refresh", items, epoch)

    def _ask(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, L) bool: max(1, floor(share n)) items of each history, and their similar items, 0 elsewhere."""
        real = batch.mask & (batch.ids <= _known(self))
        chosen = lowest(uniform(batch, generator), real, part(batch.lengths, self.share).clamp(min=1))
        return chosen, self.similar.most_similar(batch.ids.masked_fill(~chosen, PAD), generator)


class Substitute(_Informed):
    """max(1, floor(share n)) items of each history, drawn without replacement, give way to their most similar items.

    Args:
        share: .1 in CoSeRec for Sports, .05 for Beauty.
        similar: what is similar, see :mod:`recsys.augment.similar`.

    Raises:
        ValueError: ``share`` is outside of 0..1.
        TypeError: ``similar`` has no ``most_similar``.
    """

    def forward(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draws (B, L) uniform numbers: the lowest of real items are chosen. Then ``similar`` may draw."""
        chosen, found = self._ask(batch, generator)
        return view_of(batch, ids=torch.where(chosen, found, batch.ids))


class Insert(_Informed):
    """Before max(1, floor(share n)) items of each history, drawn without replacement, stands their most similar item.

    It gets the time of the item it stands before, and in training rows also its weight: it is a guess at that event,
    and where that one must not be trained, neither must the guess.

    Args:
        share: .4 in CoSeRec for Sports, .5 for Beauty and Yelp.
        similar: what is similar, see :mod:`recsys.augment.similar`.
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


class _Several(_View):
    """What parts share that hold operations."""

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.operations = PartList(operations)

    @property
    def longest(self) -> int | None:
        """The longest history that an operation lets grow; None if none does, or without bound."""
        return max(filter(None, (getattr(one, "longest", None) for one in self.operations)), default=None)

    @property
    def writes_mask(self) -> bool:
        """Whether an operation writes the mask's row."""
        return any(getattr(one, "writes_mask", False) for one in self.operations)

    def bind(self, context: Context) -> None:
        """Bind every operation."""
        for one in self.operations:
            bind(one, context)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Show every operation the item vectors as they are in this epoch."""
        _call(self.operations, "refresh", items, epoch)


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


def _checked(share: float) -> float:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in 0..1, found {share}")
    return share


def _at_least_one(least: int) -> int:
    if least < 1:
        raise ValueError(f"least must be 1 or more, as no history may become empty; found {least}")
    return least


def _known(operation: Mask | _Informed) -> int:
    """N, once it is known."""
    if not operation.num_items:
        raise ValueError(f"{type(operation).__name__} does not know the number of items yet: call bind(context) first")
    return operation.num_items


def _call(parts: Any, hook: str, *arguments: Any) -> None:
    """Call a hook of those parts that have it."""
    for one in parts:
        if hasattr(one, hook):
            getattr(one, hook)(*arguments)
