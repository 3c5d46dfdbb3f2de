"""Who answers for a history without a known item: a chain of named lists, each topped up by the next.

``popular`` is what was most popular in training. Any other name stands for a list of raw ids that somebody chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys.errors import DataError, closest
from recsys.ids.vocabulary import Vocabulary

POPULAR = "popular"


class Fallbacks:
    """A chain of fallbacks over the rows of one catalogue.

    Args:
        chain: names, the first one first; ``popular`` or names in ``lists``.
        lists: name -> raw ids, best first; ids that the catalogue does not hold are counted in ``unknown``.

    Raises:
        ValueError: a name is neither, or there is no name.
        DataError: no id of a list is in the catalogue.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        chain: Sequence[str] = (POPULAR,),
        lists: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        lists = lists or {}
        if not chain:
            raise ValueError(f"a chain of fallbacks has at least one name, such as {POPULAR!r}")
        for name in chain:
            if name != POPULAR and name not in lists:
                raise ValueError(f"there is no fallback {name!r}; {closest(name, [POPULAR, *lists])}")
        self.chain = tuple(dict.fromkeys(chain))
        self.unknown: dict[str, int] = {}
        self._rows: dict[str, np.ndarray] = {}
        for name in self.chain:
            if name == POPULAR:
                continue
            rows = vocabulary.rows(list(lists[name])) if len(lists[name]) else np.zeros(0, np.int64)
            self.unknown[name] = int((rows < 1).sum())
            self._rows[name] = np.array(list(dict.fromkeys(rows[rows > 0].tolist())), np.int64)
            if not len(self._rows[name]):
                raise DataError(f"no id of the fallback {name!r} is in the catalogue: name items that it holds")

    @property
    def only_popular(self) -> bool:
        """Whether what the model does by itself is all of it."""
        return self.chain[0] == POPULAR

    def answer(
        self, popular: np.ndarray, scores: np.ndarray, hidden: np.ndarray, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Rows (K,) of one history, their scores, and the name of the first fallback that gave any.

        Args:
            popular, scores: (K,) rows of the most popular items that may be shown, 0 behind the end, and their counts.
            hidden: (n,) rows that may not be shown.
            allowed: (n,) rows that alone may be; None: all.

        What somebody chose has no scores: NaN.
        """
        first = ""
        found: list[int] = []
        values: list[float] = []
        for name in self.chain:
            rows = popular[popular > 0] if name == POPULAR else self._rows[name]
            said = scores[popular > 0] if name == POPULAR else np.full(len(rows), np.nan, np.float32)
            kept = ~np.isin(rows, [*found, *hidden.tolist()])
            kept &= True if allowed is None else np.isin(rows, allowed)
            first = first or (name if kept.any() else "")
            found += rows[kept].tolist()
            values += said[kept].tolist()
        k = len(popular)
        padded = np.zeros(k, np.int64)
        told = np.full(k, -np.inf, np.float32)
        padded[: len(found[:k])], told[: len(found[:k])] = found[:k], values[:k]
        return padded, told, first or self.chain[-1]
