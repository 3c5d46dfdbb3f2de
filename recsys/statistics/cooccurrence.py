"""Who interacted with what, as a sparse matrix, which items share users, and how similar that makes them.

Legend: U users, N items (column j for item row j + 1), B histories, T real tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from scipy import sparse
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.progress import Progress

PAIRS = 2**25  # multiplications (and at most as many numbers held) per chunk of co-occurrences
EVENT_BYTES = 48  # of one event while the matrix of users and items is made and transposed, measured
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))


def interactions(training: TrainingEvents) -> Any:
    """(U, N) CSR float32 matrix: 1 where the user has the item in training, however often.

    Raises:
        MemoryError: the events do not fit, said before they are read.
    """
    what, instead = f"The matrix of {training.num_events:,} events", "keep fewer, as clean(max_history=...) does"
    require_memory(float(training.num_events) * EVENT_BYTES, what, instead)
    owner, items, _ = training.events(slice(None))
    shape = (training.num_users, training.num_items)
    matrix = sparse.csr_matrix((np.ones(len(items), np.float32), (owner, items.astype(np.int64) - 1)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def cooccurrence(matrix: Any, weighted: Any = None) -> Iterator[tuple[slice, Any]]:
    """Chunks of consecutive rows of the (N, N) matrix of shared users, as (rows, CSR chunk), each bounded in size.

    ``weighted`` (U, N) stands for ``matrix`` on the side of the other item, so that users or items may count less.
    """
    columns = matrix.T.tocsr()
    cost = columns @ np.diff(matrix.indptr).astype(np.float64)  # multiplications per item
    ends = np.cumsum(cost)
    first = 0
    while first < matrix.shape[1]:
        done = ends[first - 1] if first else 0.0
        last = max(first + 1, int(np.searchsorted(ends, done + PAIRS, side="right")))
        yield slice(first, last), columns[first:last] @ (matrix if weighted is None else weighted)
        first = last


def item_similarity(
    matrix: Any, weighted: Any = None, cosine: bool = True, shrink: float = 0.0, title: str = "item similarity"
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Chunks of pairs of different items that share users: (item row, other row, similarity), (n,) each.

    Pairs come by item, then by other item, all of an item in one chunk; chunks are bounded as in
    :func:`cooccurrence`. Similarities are computed in the precision of ``weighted``, or of ``matrix``.

    Args:
        matrix: (U, N) of :func:`interactions`.
        weighted: stands for it on the side of the other item, so that users or items may count less.
        cosine: divide the users that items i and j share by sqrt(N_i) sqrt(N_j) + ``shrink``, N_i the users of i; else
            the users they share are the similarity.
        shrink: damps similarities that rest on few users.
        title: of the line of progress.
    """
    count = matrix.shape[1]
    roots = np.sqrt(np.bincount(matrix.indices, minlength=count)).astype(
        (matrix if weighted is None else weighted).dtype
    )
    with Progress(count, title, "items") as progress:
        for rows, shared in cooccurrence(matrix, weighted):
            shared.sort_indices()
            row = rows.start + np.repeat(np.arange(rows.stop - rows.start), np.diff(shared.indptr))
            other = row != shared.indices
            row, column, value = row[other], shared.indices[other], shared.data[other]
            yield 1 + row, 1 + column, value / (roots[row] * roots[column] + shrink) if cosine else value
            progress.advance(rows.stop - rows.start)


def largest(item: np.ndarray, value: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each item's pairs the ``k`` with the largest values: their positions, best first, and ranks from 0.

    ``item`` is sorted, as :func:`item_similarity` gives it; of equal values the first pairs, of lower rows, are taken.
    """
    order = np.lexsort((-value, item))
    rank = np.arange(len(item)) - np.searchsorted(item, item)  # item stays sorted under the order
    return order[rank < k], rank[rank < k]


def distinct(batch: Batch, num_items: int, decay: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Each history as a set: (history, item row, weight), weight ``decay ** age`` of the item's newest occurrence."""
    owner = batch.flat // batch.ids.shape[1]
    keys, pair = torch.unique(owner * (num_items + 1) + batch.flat_ids, return_inverse=True)
    weights = torch.zeros(len(keys), device=batch.ids.device)
    weights.scatter_reduce_(0, pair, decay ** batch.ages.float(), "amax")
    return keys // (num_items + 1), keys % (num_items + 1), weights


def require_memory(needed: float, what: str, instead: str) -> None:
    """Raise MemoryError, before anything is allocated, if ``needed`` bytes are not free."""
    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise MemoryError(f"{what} needs {_size(needed)} of memory, {_size(free)} are free: {instead}")


def _size(count: float) -> str:
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} bytes"
