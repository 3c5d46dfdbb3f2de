"""Dot products of states with a few items each, without gathering T x K vectors at once.

Legend: T targets, K items per target, M distinct items, D width, C targets of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.protocols import ItemTable

BUFFER = 2**22  # numbers gathered at a time
DENSE = 32  # score all M items by one product where that is below DENSE times the K wanted ones


def score_targets(hidden: Tensor, items: ItemTable, targets: Tensor) -> Tensor:
    """(T,) scores of the states ``hidden`` (T, D) with the item rows ``targets`` (T,)."""
    return (hidden * items.output(targets)).sum(1)


def score_ids(hidden: Tensor, items: ItemTable, ids: Tensor) -> Tensor:
    """(T, K) scores of the states ``hidden`` (T, D) with item rows ``ids``: (K,) for all, or (T, K) of each."""
    if ids.dim() == 1:
        return hidden @ items.output(ids).T
    distinct, index = ids.unique(return_inverse=True)
    vectors = items.output(distinct)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, vectors = hidden.to(dtype), vectors.to(dtype)
    scores: Tensor = _ScoreIndex.apply(hidden, vectors, index)
    return scores


def accumulator(vectors: Tensor) -> Tensor:
    """Zeros (M, D) for the gradient of ``vectors`` (M, D): at least float32, as bfloat16 drops late terms."""
    return torch.zeros_like(vectors, dtype=torch.promote_types(vectors.dtype, torch.float32))


def accumulate(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Add the product of ``gradient`` (C, M), transposed, and ``hidden`` (C, D) to ``total`` (M, D)."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total.add_(torch.mm(gradient.T, hidden))


class _ScoreIndex(torch.autograd.Function):
    """scores[t, k] = hidden[t] . vectors[index[t, k]], in chunks of targets, forward and backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, vectors: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, vectors, index)
        scores = hidden.new_empty(index.shape)
        for part, dense in _chunks(index, vectors):
            if dense:
                scores[part] = (hidden[part] @ vectors.T).gather(1, index[part])
            else:
                scores[part] = torch.einsum("cd,ckd->ck", hidden[part], vectors[index[part]])
        return scores

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        hidden, vectors, index = ctx.saved_tensors
        to_hidden, to_vectors = torch.empty_like(hidden), accumulator(vectors)
        for part, dense in _chunks(index, vectors):
            if dense:
                spread = gradient.new_zeros((part.stop - part.start, len(vectors)))
                spread.scatter_add_(1, index[part], gradient[part])
                to_hidden[part] = spread @ vectors
                accumulate(to_vectors, spread, hidden[part])
            else:
                to_hidden[part] = torch.einsum("ck,ckd->cd", gradient[part], vectors[index[part]])
                each = gradient[part].unsqueeze(2) * hidden[part].unsqueeze(1)  # (C, K, D)
                to_vectors.index_add_(0, index[part].flatten(), each.flatten(0, 1).to(to_vectors.dtype))
        return to_hidden, to_vectors, None


def _chunks(index: Tensor, vectors: Tensor) -> list[tuple[slice, bool]]:
    count, wide = index.shape
    dense = len(vectors) <= DENSE * wide
    step = max(1, BUFFER // max(len(vectors) if dense else wide * vectors.shape[1], 1))
    return [(slice(start, min(start + step, count)), dense) for start in range(0, count, step)]
