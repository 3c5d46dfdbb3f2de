"""What the views of a batch have in common.

The operations of CL4SRec (Xie et al. 2022, arXiv 2010.14395: crop, mask, reorder) and CoSeRec (Liu et al. 2021, arXiv
2108.06479: substitute, insert), on the whole batch at once. What all of them have in common:

- The batch that comes in is never changed; targets and what belongs to them, which speak of the old events, are left
  out.
- Made from a prepared batch (one with targets) a view has no weights, as these belong to the targets. From training
  rows, which have none yet (``Recommender(augmentations=[...])``), weights move with their items.
- An empty history stays empty and no other becomes so. Rows behind the items (mask tokens) are not looked up.
- ``floor(share n)`` takes the share as the decimal number it is written as: .29 of 100 items are 29.
- Among a recommender's augmentations an item that an operation writes is also a target. ``Mask`` must then take items
  out (``hide="drop"``), and ``Crop`` and ``Mask`` need ``least=2`` for something to be left to predict.

What we do differently from the released re-implementations: window starts include the last legal one, nothing is done
in place (a known loader spoils its own training data), and a view has no holes.

Legend: B histories, L longest history, n items of a history, N items (rows 1..N).
"""

from __future__ import annotations

from typing import Any

from torch import nn


class View(nn.Module):
    """What all operations share: the event that a row predicts is another one afterwards."""

    keeps_events = False


def checked_share(share: float) -> float:
    """``share``, if it lies in 0..1."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in 0..1, found {share}")
    return share


def at_least_one(least: int) -> int:
    """``least``, if it is 1 or more."""
    if least < 1:
        raise ValueError(f"least must be 1 or more, as no history may become empty; found {least}")
    return least


def known_items(operation: Any) -> int:
    """N, once it is known."""
    if not operation.num_items:
        raise ValueError(
            f"{type(operation).__name__} does not know the number of items yet: train it with rs.fit or load a run (or "
            "call bind(context) yourself)"
        )
    return operation.num_items
