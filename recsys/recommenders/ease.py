"""EASE: a linear item-to-item model in closed form (Steck 2019, arXiv 1905.03375).

With P the inverse of (X'X + l2 I), the weights are -P_ij / P_jj off the diagonal and 0 on it. The matrix is dense,
items by items, and is factored in place, so that the memory is one double-precision copy and the weights. Very strong
where the order of a history matters little and the catalogue is small; prefer item-kNN where the matrix does not fit.

Legend: N items, M items in the model (N, or the M most popular), B histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import lapack
from torch import Tensor

from recsys.data.batch import Batch
from recsys.progress import Progress
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.statistics.cooccurrence import cooccurrence, distinct, interactions, require_memory

PRECISIONS = {"float64": (np.float64, "d"), "float32": (np.float32, "s")}
ROWS = 1024  # rows of the inverse turned into weights at a time


class EASE(Ranker):
    """Items by a learned linear combination of the items in the history.

    Args:
        l2: regularisation; about the number of users who must agree before a weight counts.
        limit_items: model only the N most popular items; the others rank behind all of these.
        precision: of the solve, "float64" or "float32" (two thirds of the memory, about 4 digits).

    Raises:
        ValueError: an argument out of range.
        MemoryError: items x items does not fit, said before anything starts.
    """

    scale = "share"
    weights: Tensor  # (M, M) float32, from history item (row) to scored item (column)
    kept: Tensor  # (M,) int64 item rows, ascending

    def __init__(self, l2: float = 500.0, limit_items: int | None = None, precision: str = "float64") -> None:
        super().__init__()
        if not l2 > 0 or (limit_items is not None and limit_items < 1) or precision not in PRECISIONS:
            raise ValueError(
                f"l2 > 0, limit_items >= 1 (or None) and precision float64 or float32 are needed; "
                f"found {l2}, {limit_items} and {precision!r}"
            )
        self.l2, self.limit_items, self.precision = l2, limit_items, precision
        self.register_buffer("weights", torch.zeros(0, 0))
        self.register_buffer("kept", torch.zeros(0, dtype=torch.int64))

    def learn(self, context: Context) -> None:
        """Solve for the weights."""
        if context.training is None:
            raise ValueError("EASE is solved from training events, and the context has none")
        dtype, letter = PRECISIONS[self.precision]
        size = min(context.num_items, self.limit_items or context.num_items)
        needed = float(size) ** 2 * (np.dtype(dtype).itemsize + 4)
        require_memory(needed, f"EASE on {size:,} items", "use ItemKNN, or set limit_items to the most popular ones")
        super().bind(context)
        counts = context.training.item_counts()[1:]
        kept = np.sort(np.argsort(-counts, kind="stable")[:size])
        matrix = interactions(context.training)[:, kept]
        gram = np.zeros((size, size), dtype)
        with Progress(size, "EASE: co-occurrences", "items") as progress:
            for rows, shared in cooccurrence(matrix):
                gram[rows] = shared.toarray()
                progress.advance(rows.stop - rows.start)
        gram[np.diag_indices(size)] += self.l2
        self.weights = torch.from_numpy(_weights(_inverse(gram, letter)))
        self.kept = torch.as_tensor(kept + 1)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) summed weights from the distinct items of each history."""
        owner, items, _ = distinct(batch, self.num_items)
        column = torch.searchsorted(self.kept, items).clamp(max=len(self.kept) - 1)
        inside = self.kept[column] == items
        counts = torch.bincount(owner[inside], minlength=len(batch))
        scores = F.embedding_bag(column[inside], self.weights, counts.cumsum(0) - counts, mode="sum")
        if len(self.kept) == self.num_items:
            return scores
        lowest = scores.amin(1, keepdim=True) - 1.0
        return lowest.repeat(1, self.num_items).index_copy_(1, self.kept - 1, scores)


def _inverse(gram: np.ndarray, letter: str) -> np.ndarray:
    """The inverse of a positive definite matrix, computed in place; only the lower triangle is meaningful."""
    factor, failed = getattr(lapack, f"{letter}potrf")(gram.T, lower=0, overwrite_a=1, clean=0)
    if not failed:
        inverse, failed = getattr(lapack, f"{letter}potri")(factor, lower=0, overwrite_c=1)
    if failed:
        raise ValueError("the items' Gram matrix is not positive definite at this precision: raise l2 or use float64")
    transposed: Any = inverse.T
    return np.asarray(transposed)


def _weights(inverse: np.ndarray) -> np.ndarray:
    """-P_ij / P_jj with a zero diagonal, from the lower triangle of P, in float32."""
    diagonal = np.diag(inverse).copy()
    weights = np.empty(inverse.shape, np.float32)
    for first in range(0, len(inverse), ROWS):
        rows = slice(first, min(first + ROWS, len(inverse)))
        upper = np.arange(len(inverse)) > np.arange(rows.start, rows.stop)[:, None]
        weights[rows] = np.where(upper, inverse[:, rows].T, inverse[rows]) / -diagonal
    np.fill_diagonal(weights, 0.0)
    return weights
