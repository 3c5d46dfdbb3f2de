"""Clusters of vectors."""

from __future__ import annotations

import numpy as np

from recsys.index.search import checked_vectors, load_faiss
from recsys.randomness import derive_seed


def kmeans(
    vectors: np.ndarray, clusters: int, iterations: int = 20, seed: int = 0, start: np.ndarray | None = None
) -> np.ndarray:
    """(clusters, D) float32 centroids of ``vectors`` (n, D) by Lloyd's algorithm; ``start``: where to begin.

    Raises:
        ValueError: there are fewer vectors than clusters.
    """
    vectors = checked_vectors(vectors, None)
    if not 1 <= clusters <= len(vectors):
        raise ValueError(f"{clusters} clusters need at least as many vectors, found {len(vectors)}: ask for fewer")
    faiss = load_faiss()
    made = faiss.Kmeans(
        vectors.shape[1], clusters, niter=iterations, seed=derive_seed(seed, "kmeans") % 2**31,
        min_points_per_centroid=1, max_points_per_centroid=256,
    )  # fmt: skip
    made.train(vectors, init_centroids=None if start is None else checked_vectors(start, vectors.shape[1]))
    return np.asarray(made.centroids, np.float32)
