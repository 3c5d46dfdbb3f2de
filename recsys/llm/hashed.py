"""Text vectors without a model that any single text has: words hashed to signed places (feature hashing).

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009. A text is the sum over its distinct
words of a fixed sign at a fixed place, scaled to length 1, so that the inner product of two texts is about the share of
words that they have in common. Nothing is learned from other texts, unlike in :mod:`recsys.llm.tfidf`.

Legend: n texts, D width.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from recsys.llm.tfidf import unit

_WORD = re.compile(r"\w+")


class HashedWords:
    """Words at signed places by their hash.

    Use for tests, and where a text that comes with a request must have a vector without any model; it knows words, not
    meanings. Two words fall into the same place with probability 1 / ``dim``.

    Args:
        dim: width D.

    >>> a, b, c = HashedWords(64).encode(["red nail polish", "nail polish, blue", "guitar strings"])
    >>> bool(a @ b > a @ c)
    True
    """

    def __init__(self, dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, found {dim}")
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) float32 vectors of length 1; zero for a text without a word."""
        found = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in set(_WORD.findall(text.lower())):
                code = zlib.crc32(word.encode("utf-8", "replace"))
                found[row, (code >> 1) % self.dim] += 1 if code & 1 else -1
        return unit(found)
