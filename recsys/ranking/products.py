"""Products of a few vectors with all items, in the one way that models and indexes share, so that their lists agree.

Legend: B queries, N items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

EIGHT = 8  # queries multiplied at a time: libraries sum up the rest in an order that differs from item to item
FEW, LARGE = 32, 1 << 14  # more queries than this over more items than that go as many eights at once, which is faster


def products(queries: Tensor, vectors: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, N) inner products of ``queries`` (B, D) and ``vectors`` (N, D), into ``out`` if that is given.

    Equal vectors get equal numbers, whatever else is in the batch: in a product with a number of queries that is no
    multiple of eight, the remaining ones go through kernels in which the last bit depends on where an item stands.
    """
    rows = len(queries)
    size = EIGHT if not queries.is_cuda and (rows <= FEW or len(vectors) <= LARGE) else max(rows - rows % EIGHT, EIGHT)
    if torch.is_grad_enabled() and (queries.requires_grad or vectors.requires_grad):
        return torch.cat([torch.mm(_filled(some), vectors.T)[: len(some)] for some in queries.split(size)])
    found = queries.new_empty(rows, len(vectors)) if out is None else out
    for some, into in zip(queries.split(size), found.split(size)):
        if len(some) % EIGHT:
            into.copy_(torch.mm(_filled(some), vectors.T)[: len(some)])
        else:
            torch.mm(some, vectors.T, out=into)
    return found


def _filled(queries: Tensor) -> Tensor:
    missing = -len(queries) % EIGHT
    return torch.cat([queries, queries.new_zeros(missing, queries.shape[1])]) if missing else queries


def inverse_norms(vectors: Tensor) -> Tensor:
    """(N,) one over the length of each of ``vectors`` (N, D): inner products times these are cosines."""
    return 1 / torch.linalg.vector_norm(vectors, dim=1).clamp(min=1e-12)


def check_metric(metric: str) -> None:
    """Raise ValueError unless ``metric`` is one that items can be compared by."""
    if metric not in ("cosine", "dot"):
        raise ValueError(f'metric must be "cosine" or "dot" (the inner product), found {metric!r}')


def refuse_nonfinite(scores: Tensor, first: int = 0) -> None:
    """Raise ValueError if a row of ``scores`` (B, N) holds NaN or +infinity; -infinity says "never" and is a score.

    ``first`` is the position of the first row among the histories of the caller.
    """
    if not scores.numel():
        return
    wrong = ~(scores.amax(1) < torch.inf)
    if bool(wrong.any()):
        raise ValueError(
            f"{int(wrong.sum()):,} of {len(scores):,} histories get scores that are NaN or infinite, first the one at "
            f"position {first + int(wrong.nonzero()[0])}: the model has diverged or is damaged; train it again (lower "
            "learning rate) or load another one"
        )
