"""Products of a few vectors with all items, in the one way that models and indexes share, so that their lists agree.

Legend: B queries, N items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 8  # queries multiplied at a time: for fewer, libraries sum up in an order that differs from item to item


def products(queries: Tensor, vectors: Tensor, out: Tensor | None = None) -> Tensor:
    """(B, N) inner products of ``queries`` (B, D) and ``vectors`` (N, D), into ``out`` if that is given.

    Equal vectors get equal numbers, also for one query alone: a product with a single vector, or with two or three,
    goes through kernels in which the last bit depends on where an item stands.
    """
    rows = len(queries)
    if rows >= LEAST:
        return torch.mm(queries, vectors.T) if out is None else torch.mm(queries, vectors.T, out=out)
    padded = torch.cat([queries, queries.new_zeros(LEAST - rows, queries.shape[1])])
    found = torch.mm(padded, vectors.T)[:rows]
    return found if out is None else out.copy_(found)


def inverse_norms(vectors: Tensor) -> Tensor:
    """(N,) one over the length of each of ``vectors`` (N, D): inner products times these are cosines."""
    return 1 / torch.linalg.vector_norm(vectors, dim=1).clamp(min=1e-12)


def check_metric(metric: str) -> None:
    """Raise ValueError unless ``metric`` is one that similar items can be told by."""
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
