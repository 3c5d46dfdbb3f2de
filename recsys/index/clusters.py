"""Clusters of vectors."""

from __future__ import annotations

import numpy as np

from recsys.index.search import checked_vectors, load_faiss
from recsys.randomness import derive_seed

MOST_POINTS = 256  # vectors per cluster that are looked at; of more, that many are drawn
_CHUNK = 1 << 14  # vectors compared at a time


def kmeans(
    vectors: np.ndarray,
    clusters: int,
    iterations: int = 20,
    seed: int = 0,
    start: np.ndarray | None = None,
    restarts: int = 1,
) -> np.ndarray:
    """(clusters, D) float32 centroids of ``vectors`` (n, D) by Lloyd's algorithm.

    Args:
        start: where to begin, instead of vectors that are drawn.
        restarts: the best of so many beginnings.

    Raises:
        ValueError: there are fewer vectors than clusters.
    """
    vectors = checked_vectors(vectors, None)
    if not 1 <= clusters <= len(vectors):
        raise ValueError(f"{clusters} clusters need at least as many vectors, found {len(vectors)}: ask for fewer")
    faiss = load_faiss()
    made = faiss.Kmeans(
        vectors.shape[1], clusters, niter=iterations, nredo=restarts, seed=derive_seed(seed, "kmeans") % 2**31,
        min_points_per_centroid=1, max_points_per_centroid=MOST_POINTS,
    )  # fmt: skip
    made.train(vectors, init_centroids=None if start is None else checked_vectors(start, vectors.shape[1]))
    return np.asarray(made.centroids, np.float32)


def nearest_centroid(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """(n,) int32: of each of ``vectors`` (n, D) the nearest of ``centroids`` (K, D) in L2, of equal ones the first."""
    found = np.empty(len(vectors), np.int32)
    halves = 0.5 * (centroids.astype(np.float64) ** 2).sum(1).astype(np.float32)
    for first in range(0, len(vectors), _CHUNK):
        chunk = vectors[first : first + _CHUNK]
        found[first : first + _CHUNK] = (halves - chunk @ centroids.T).argmin(1)
    return found
