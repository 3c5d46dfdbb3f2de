"""Training events with the same item: whose histories end alike (DuoRec's same-target positives).

Legend: E events of all users, n training events that have a history, B rows.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

from recsys.data.split import TrainingEvents
from recsys.ids.ranges import blocks

_KNOWN: WeakKeyDictionary[TrainingEvents, SameItem] = WeakKeyDictionary()


def same_item(training: TrainingEvents) -> SameItem:
    """Which training events have the same item; built once for each split, at first use."""
    if training not in _KNOWN:
        _KNOWN[training] = SameItem(training)
    return _KNOWN[training]


class SameItem:
    """For a training event, another training event with the same item, drawn uniformly.

    Only events with a history count (not a user's first). One sorted array of n int64 is all that is held; building it
    takes O(n log n) once, a draw O(log n) per row.
    """

    def __init__(self, training: TrainingEvents) -> None:
        self._start = training.start
        self._size = int(training.stop.max(initial=0)) + 1
        keys = []
        for users in blocks(training.lengths):
            owner, items, _ = training.events(users)
            first = np.r_[True, owner[1:] != owner[:-1]] if len(owner) else np.zeros(0, bool)
            position = np.arange(len(owner)) - np.maximum.accumulate(np.where(first, np.arange(len(owner)), 0))
            event = training.start[users][owner] + position
            keys.append(items[~first].astype(np.int64) * self._size + event[~first])
        self._keys = np.sort(np.concatenate(keys)) if keys else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def counts(self, items: np.ndarray) -> np.ndarray:
        """(B,) int64: how many training events with a history each item has."""
        first, end = self._bounds(np.asarray(items, dtype=np.int64))
        return end - first

    def draw(self, events: np.ndarray, items: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(user rows (B,), events (B,)) of another event with the same item; itself where there is none.

        Args:
            events: (B,) training events, as in ``events`` of a batch.
            items: (B,) the item row of each.
            generator: where chance comes from.
        """
        events, items = np.asarray(events, dtype=np.int64), np.asarray(items, dtype=np.int64)
        first, end = self._bounds(items)
        own = np.searchsorted(self._keys, items * self._size + events)
        known = (own < end) & (own >= first)
        known[known] &= self._keys[own[known]] == items[known] * self._size + events[known]
        others = end - first - known
        draws = torch.rand(len(events), generator=generator, device=generator.device, dtype=torch.float64)
        chosen = first + np.minimum((draws.cpu().numpy() * others).astype(np.int64), np.maximum(others - 1, 0))
        chosen += known & (chosen >= own)
        found = np.where(others > 0, self._keys[np.minimum(chosen, max(len(self) - 1, 0))] % self._size, events)
        return np.searchsorted(self._start, found, side="right") - 1, found

    def _bounds(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low = items * self._size
        return np.searchsorted(self._keys, low), np.searchsorted(self._keys, low + self._size)
