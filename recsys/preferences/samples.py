"""Questions to a model: a history, what is said with it, and the item that is wanted (or not).

Legend: n samples, R texts that are said at once, E events, N items (rows 1..N).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recsys.data.split import Split
from recsys.ids.ranges import spread
from recsys.preferences.requests import PREFERENCE
from recsys.randomness import numpy_generator
from recsys.recommenders.history import History


@dataclass(frozen=True, eq=False)
class Samples:
    """The histories are runs of events [start, stop) of the split, empty where nothing but the preference is given."""

    axis: str
    split: Split
    texts: list[str]
    start: np.ndarray  # (n,) int64
    stop: np.ndarray  # (n,) int64
    target: np.ndarray  # (n,) int64 item rows
    said: np.ndarray  # (n, R) int32 numbers of texts, -1 for none
    negative: np.ndarray | None = None  # (n,) bool: the target is not wanted; None: all are
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)

    def take(self, index: np.ndarray) -> Samples:
        """Some of them."""
        names = ("start", "stop", "target", "said")
        negative = None if self.negative is None else self.negative[index]
        return replace(self, negative=negative, **{name: getattr(self, name)[index] for name in names})

    def drawn(self, most: int | None, seed: int) -> Samples:
        """At most ``most`` of them, drawn by ``seed``."""
        if most is None or len(self) <= most:
            return self
        return self.take(np.sort(numpy_generator(seed, "samples", self.axis).choice(len(self), most, replace=False)))

    def saying(self, said: np.ndarray) -> Samples:
        """The same with other preferences (n, R)."""
        return replace(self, said=said)

    def unwanted(self) -> Samples:
        """The same, their targets not wanted."""
        return replace(self, negative=np.ones(len(self), bool))

    def silent(self) -> Samples:
        """The same without preferences."""
        return self.saying(np.full_like(self.said, -1))

    def shuffled(self, seed: int) -> Samples:
        """The same, each with the preferences of another one, drawn by ``seed``."""
        return self.saying(self.said[another(len(self), seed)])

    def lists(self) -> list[list[str]]:
        """What is said with each."""
        return [[self.texts[code] for code in row if code >= 0] for row in self.said.tolist()]

    def histories(self, index: np.ndarray | slice = slice(None)) -> list[History]:
        """As raw histories, which any recommender answers."""
        start, stop = self.start[index], self.stop[index]
        if not len(start):
            return []
        items = np.split(
            self.split.items.raw(self.split.prepared.items[spread(start, stop)[1]]), np.cumsum(stop - start)
        )
        said = [[self.texts[code] for code in row if code >= 0] or None for row in self.said[index].tolist()]
        return [History(own.tolist(), features={PREFERENCE: texts}) for own, texts in zip(items, said, strict=False)]

    def blocks(self, size: int) -> Iterator[slice]:
        """Consecutive slices of ``size``."""
        for first in range(0, len(self), size):
            yield slice(first, min(first + size, len(self)))


def another(count: int, seed: int) -> np.ndarray:
    """(n,) for each number another one, each once (for one number itself)."""
    order = numpy_generator(seed, "another").permutation(count)
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found
