"""Searches that go on with more beams until every list is as long as it can be, and a count of how they fared.

Legend: B histories, K cut-off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Search = Callable[[int, bool], tuple[Tensor, Tensor, Tensor]]


@dataclass
class Tally:
    """How the histories that were searched fared."""

    histories: int = 0
    raised: int = 0  # searched with more beams than the search has, as their list is longer than that
    widened: int = 0  # searched again with more beams, as the first ones did not fill their list
    short: int = 0  # with a list that is shorter than what may be shown to them and asked for
    missing: int = 0  # items that those lists lack in all


def until_full(
    search: Search, wanted: Tensor, width: int, most: int, tally: Tally, raised: bool
) -> tuple[Tensor, Tensor]:
    """Item rows (B, K) and scores (B, K) of a search by ``width`` beams, by twice as many for lists that are short, ...

    Args:
        search: by so many beams, for the first time or again: rows, scores, and (B,) whether more could find more.
        wanted: (B,) how long each list should be.
        most: beams beyond which there is nothing.
        tally: takes the counts.
        raised: whether ``width`` is more than the search was made with.
    """
    rows, scores, _ = search(width, False)
    short = (rows > 0).sum(1) < wanted
    tally.histories += len(rows)
    tally.raised += len(rows) if raised else 0
    tally.widened += int(short.sum())
    more = torch.ones_like(short)
    while bool((short & more).any()) and width < most:
        width = min(2 * width, most)
        found, values, more = search(width, True)
        rows, scores = torch.where(short[:, None], found, rows), torch.where(short[:, None], values, scores)
        short = (rows > 0).sum(1) < wanted
    tally.short += int(short.sum())
    tally.missing += int((wanted - (rows > 0).sum(1)).sum())
    return rows, scores
