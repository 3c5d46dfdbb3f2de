"""Residual k-means: cluster the vectors, subtract what was found, and cluster what is left, level by level.

Exact (all vectors in each iteration, up to 256 per code, of which more are drawn), greedy: the code of a level is the
nearest centroid, so codes equal the sequential argmin. FAISS does the k-means; its ``ResidualQuantizer`` is not used,
as it encodes with a beam. The variant that scales residuals to length 1 before each level is that of the GRID framework
(Ju et al. 2025), which has no exact inverse; decoding multiplies by the mean length of a level's residuals.

Legend: n vectors, F width, M levels, K codes per level.
"""

from __future__ import annotations

import numpy as np

from recsys.index.clusters import MOST_POINTS, kmeans, nearest_centroid
from recsys.randomness import derive_seed
from recsys.semantic_ids.tokenizer import check_distinct, check_fitted, check_shape, sampled

_CHUNK = 1 << 14


class ResidualKMeans:
    """Ordered codes: the code of a level refines those before it.

    Use when: nothing speaks against it; it has no training to go wrong and is level with RQ-VAE in public comparisons.
    Prefer instead: :class:`~recsys.semantic_ids.product.ProductQuantiser` for models that predict all codes at once.

    Args:
        levels: M.
        size: K.
        iterations: of k-means, per level.
        restarts: beginnings of k-means, of which the best is kept.
        normalise: scale residuals to length 1 before each level.
    """

    ordered = True

    def __init__(
        self, levels: int = 3, size: int = 256, iterations: int = 25, restarts: int = 3, normalise: bool = False
    ) -> None:
        check_shape(levels, size)
        if iterations < 1 or restarts < 1:
            raise ValueError(f"iterations and restarts must be at least 1, found {iterations} and {restarts}")
        self.levels, self.size, self.iterations, self.restarts = levels, size, iterations, restarts
        self.normalise = normalise
        self._centroids: list[np.ndarray] = []
        self._lengths: list[float] = []  # mean length of the residuals before each level, 1 unless normalised

    @property
    def sizes(self) -> tuple[int, ...]:
        """(M,): codes per level."""
        return (self.size,) * self.levels

    @property
    def codewords(self) -> list[np.ndarray] | None:
        """(K, F) centroids of each level."""
        return self._centroids or None

    def fit(self, vectors: np.ndarray, seed: int) -> None:
        """Learn the centroids of ``vectors`` (n, F).

        Raises:
            DataError: fewer different vectors, or residuals at a level, than codes.
        """
        self._centroids, self._lengths = [], []
        left = sampled(vectors, self.size * MOST_POINTS, seed)
        for level in range(self.levels):
            left, length = self._scaled(left)
            what = "vectors" if level == 0 else f"what {level} levels leave of the vectors"
            check_distinct(left, self.size, what)
            start = derive_seed(seed, "residual k-means", level)
            centroids = _all_of(left, self.size)
            if centroids is None:
                centroids = kmeans(left, self.size, self.iterations, start, restarts=self.restarts)
            self._centroids.append(centroids)
            self._lengths.append(length)
            left = left - centroids[nearest_centroid(left, centroids)]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(N, M) int32 codes of ``vectors`` (N, F)."""
        check_fitted(bool(self._centroids))
        codes = np.empty((len(vectors), self.levels), np.int32)
        for first in range(0, len(vectors), _CHUNK):
            left = np.asarray(vectors[first : first + _CHUNK], np.float32)
            for level, centroids in enumerate(self._centroids):
                left, _ = self._scaled(left)
                found = nearest_centroid(left, centroids)
                codes[first : first + _CHUNK, level] = found
                left = left - centroids[found]
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(N, F) float32: the sum of the centroids (normalised: see the top of this file)."""
        check_fitted(bool(self._centroids))
        found = np.zeros((len(codes), self._centroids[0].shape[1]), np.float32)
        for level in reversed(range(self.levels)):
            found = np.float32(self._lengths[level]) * (self._centroids[level][codes[:, level]] + found)
        return found

    def _scaled(self, left: np.ndarray) -> tuple[np.ndarray, float]:
        """``left`` (n, F) at length 1 (rows of zeros stay) and its mean length; as it is unless normalised."""
        if not self.normalise:
            return left, 1.0
        lengths = np.linalg.norm(left, axis=1, keepdims=True)
        return (left / np.where(lengths > 0, lengths, 1)).astype(np.float32), float(lengths.mean())


def _all_of(vectors: np.ndarray, size: int) -> np.ndarray | None:
    """The different ones of ``vectors``, if they are just as many as there are codes: then each gets its own."""
    if len(vectors) > size * 16:
        return None
    different = np.unique(vectors, axis=0)
    return different if len(different) == size else None
