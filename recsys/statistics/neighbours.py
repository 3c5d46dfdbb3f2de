"""Which items stood near each other in somebody's training events: sets of neighbours to ask, held as sorted keys.

Legend: n questions, N items (rows 1..N), P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recsys.data.split import TrainingEvents
from recsys.ids.ranges import blocks, spread

PAIRS = 2**24  # pairs of neighbours held at a time
LOOKED_UP = 2**22  # neighbours looked up at a time


def pairs(
    training: TrainingEvents,
    places: int,
    first: np.ndarray | None = None,
    second: np.ndarray | None = None,
    users: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (item row, item row of the same user at most ``places`` later) of training, (P,) int64 each.

    Args:
        first, second: (N+1,) bool, which items may stand in each place; None for all.
        users: of that many first users only; None for all.
    """
    for block in blocks(training.lengths[:users]):
        owner, items, _ = training.events(block)
        begins, ends = (None if mask is None else mask[items] for mask in (first, second))
        for apart in range(1, places + 1):
            kept = owner[apart:] == owner[:-apart]
            if begins is not None:
                kept &= begins[:-apart]
            if ends is not None:
                kept &= ends[apart:]
            yield items[:-apart][kept].astype(np.int64), items[apart:][kept].astype(np.int64)


@dataclass(frozen=True)
class Neighbours:
    """The items that stood near an item, of the items asked for: sorted keys item * (N + 1) + neighbour."""

    keys: np.ndarray  # (P,) int64, distinct
    start: np.ndarray  # (N+2,) where the neighbours of an item row begin
    width: int  # N + 1

    @classmethod
    def of(
        cls,
        training: TrainingEvents,
        places: int,
        matter: np.ndarray,
        after: bool = True,
        before: bool = True,
        users: int | None = None,
    ) -> Neighbours:
        """What stood ``after`` and ``before`` the items that ``matter`` (N+1,), within ``places``.

        Raises:
            MemoryError: there are more than ``PAIRS``.
        """
        width, held, count = training.num_items + 1, [np.zeros(0, np.int64)], 0
        for forward in (True,) * after + (False,) * before:
            mask = {"first" if forward else "second": matter}
            for a, b in pairs(training, places, users=users, **mask):
                held.append(a * width + b if forward else b * width + a)
                count += len(a)
                if count > 2 * PAIRS:
                    held = [_distinct(held)]
                    count = len(held[0])
                    _require_room(count)
        keys = _distinct(held)
        _require_room(len(keys))
        return cls(keys, np.searchsorted(keys, np.arange(width + 1) * width), width)

    def has(self, item: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(n,) bool: whether ``other`` is a neighbour of ``item``, item rows (n,) each."""
        if not len(self.keys):
            return np.zeros(len(item), bool)
        sought = item * self.width + other
        at = np.minimum(np.searchsorted(self.keys, sought), len(self.keys) - 1)
        found: np.ndarray = self.keys[at] == sought
        return found

    def meets(self, item: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(n,) bool: whether ``item`` and ``other`` share a neighbour."""
        return meet(self, item, self, other)

    def sizes(self, item: np.ndarray) -> np.ndarray:
        """(n,) how many neighbours each item row has."""
        return self.start[item + 1] - self.start[item]


def meet(first: Neighbours, item: np.ndarray, second: Neighbours, other: np.ndarray) -> np.ndarray:
    """(n,) bool: whether the ``first`` neighbours of ``item`` and the ``second`` ones of ``other`` share an item.

    The smaller set of each case is looked up in the larger one.
    """
    found = np.zeros(len(item), bool)
    smaller = first.sizes(item) <= second.sizes(other)
    for side, few, one, many, rest in ((smaller, first, item, second, other), (~smaller, second, other, first, item)):
        case = np.flatnonzero(side)
        case = case[np.argsort(rest[case], kind="stable")]  # neighbouring keys are looked up one after the other
        start, stop = few.start[one[case]], few.start[one[case] + 1]
        for block in blocks(stop - start, LOOKED_UP):
            owner, at = spread(start[block], stop[block])
            hit = many.has(rest[case[block]][owner], few.keys[at] % few.width)
            found[case[block][owner[hit]]] = True
    return found


def _distinct(keys: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(keys)
    joined.sort()  # and not np.unique, which is several times slower here
    first = np.ones(len(joined), bool)
    first[1:] = joined[1:] != joined[:-1]
    return joined[first]


def _require_room(count: int) -> None:
    if count > PAIRS:
        raise MemoryError(f"more than {PAIRS:,} pairs of items that stood near each other in training would be held")
