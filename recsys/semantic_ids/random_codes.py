"""Codes that say nothing: drawn evenly, whatever the vectors are. A control for what content contributes."""

from __future__ import annotations

import numpy as np

from recsys.randomness import numpy_generator
from recsys.semantic_ids.tokenizer import check_shape


class RandomCodes:
    """Evenly drawn codes.

    A model over them is a hashing model, not chance: items keep codes of their own, which similar items do not share.

    Args:
        levels: M.
        size: codes per level.
        ordered: what the codes claim to be, so that the model that is compared gets the kind that it takes.
    """

    reads_vectors = False
    codewords: list[np.ndarray] | None = None

    def __init__(self, levels: int = 3, size: int = 256, ordered: bool = True) -> None:
        check_shape(levels, size)
        self.levels, self.size, self.ordered = levels, size, ordered
        self._seed = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        return (self.size,) * self.levels

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Keep the seed."""
        self._seed = seed

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes, as many as there are ``vectors`` (N, F); always the same for one seed."""
        drawn = numpy_generator(self._seed, "random codes").integers(0, self.size, (len(vectors), self.levels))
        return drawn.astype(np.int32)
