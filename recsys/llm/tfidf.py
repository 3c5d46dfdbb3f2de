"""Text vectors without a model: TF-IDF and truncated SVD (latent semantic analysis).

Deerwester et al., "Indexing by latent semantic analysis", JASIS 1990. Weights: (1 + ln count) (1 + ln((1 + n) / (1 +
documents))) per word, rows scaled to length 1 before and after the SVD. Legend: n texts, V words, D width.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from recsys.randomness import numpy_generator

_WORD = re.compile(r"\w+")
_DENSE = 1 << 20  # numbers up to which the table is decomposed whole


class Tfidf:
    """:func:`tfidf_vectors` as a text encoder; all texts must come in one call."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """(n, D) float32."""
        return tfidf_vectors(texts)


def tfidf_vectors(texts: Sequence[str], dim: int = 128) -> np.ndarray:
    """(n, D) float32 vectors of length 1, D = ``dim`` or, for few texts or words, less; always the same.

    A text without any word has the zero vector.

    Use when no text model is at hand, or as the floor that one must beat. It knows words, not meanings.

    >>> a, b, c = tfidf_vectors(["red nail polish", "nail polish, blue", "guitar strings"], dim=2)
    >>> bool(a @ b > a @ c)
    True
    """
    if dim < 1:
        raise ValueError(f"dim must be >= 1, found {dim}")
    table = _weights(texts)
    if not table.shape[1]:
        raise ValueError(f"none of the {len(texts):,} texts holds a word")
    if table.shape[0] * table.shape[1] <= _DENSE or min(table.shape) < 3:
        left, sizes, right = np.linalg.svd(table.toarray(), full_matrices=False)
    else:
        k = min(dim, min(table.shape) - 1)
        start = numpy_generator(0, "tfidf").standard_normal(min(table.shape))
        left, sizes, right = sparse.linalg.svds(table, k=k, v0=start)
        left, sizes, right = left[:, ::-1], sizes[::-1], right[::-1]
    keep = (sizes > 1e-6 * sizes[0]) & (np.arange(len(sizes)) < dim)
    left, sizes, right = left[:, keep], sizes[keep], right[keep]
    # A singular vector is known up to its sign: the largest word counts positive.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return unit(left * (sizes * signs))


def unit(array: np.ndarray) -> np.ndarray:
    """The rows of ``array`` (n, D) as float32 at length 1; rows of zeros stay."""
    array = np.asarray(array, np.float32)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return (array / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _weights(texts: Sequence[str]) -> Any:
    """(n, V) CSR float64: the weight of each word in each text, rows of length 1."""
    columns: dict[str, int] = {}
    indices, counts, edges = [], [], [0]
    for text in texts:
        for word, count in Counter(_WORD.findall(text.lower())).items():
            indices.append(columns.setdefault(word, len(columns)))
            counts.append(count)
        edges.append(len(indices))
    table = sparse.csr_matrix((np.array(counts, np.float64), indices, edges), shape=(len(texts), len(columns)))
    documents = np.bincount(table.indices, minlength=len(columns))
    table.data = (1 + np.log(table.data)) * (1 + np.log((1 + len(texts)) / (1 + documents)))[table.indices]
    lengths = np.sqrt(np.asarray(table.multiply(table).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(lengths > 0, lengths, 1)) @ table
