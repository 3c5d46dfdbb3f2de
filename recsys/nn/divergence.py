"""How far apart the softmax distributions of several states of a token are, over all items: exact, in chunks.

Legend: Q tokens, S states of each, D width, N items, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.nn.scoring import accumulate, accumulator
from recsys.nn.softmax import MAX_CHUNK

NUMBERS, LEAST = 2**18, 32  # of a chunk: numbers in each of its few buffers, and tokens at least


def divergence(steps: Tensor, blocks: tuple[Tensor, ...], pairs: Tensor, stop_gradient: bool = True) -> Tensor:
    """Sum over tokens and j, i of pairs[j, i] KL(p_j || p_i), p_k = softmax(r_k E^T) over all items; exact.

    The pairs of one token cost a product of (S, S) and (S, N), never a row of N per pair, and only a chunk's
    distributions are held.

    Args:
        steps: (Q, S, D) states r.
        blocks: output vectors E of all items, in blocks (n, D).
        pairs: (S, S) weights; the diagonal does not matter.
        stop_gradient: no gradient through the second argument.
    """
    device = steps.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        steps, blocks = steps.to(dtype), tuple(block.to(dtype) for block in blocks)
    with torch.autocast(device, enabled=False):  # products of log-probabilities stay in float32
        total: Tensor = _Divergence.apply(steps, pairs, stop_gradient, *blocks)
    return total


class _Divergence(torch.autograd.Function):
    """Sum_j p_j M_j with M = A log p and A = diag(pairs 1) - pairs; the gradient is taken in the same pass.

    To the scores of step j: p_j (M_j - p_j . M_j) through the first argument, and row j of
    (diag(pairs^T 1) - pairs^T) p through the second.
    """

    @staticmethod
    def forward(ctx: Any, steps: Tensor, pairs: Tensor, stop_gradient: bool, *blocks: Tensor) -> Tensor:
        dtype = torch.promote_types(steps.dtype, torch.float32)
        pairs = pairs.to(dtype)
        first, second = _laplacian(pairs), None if stop_gradient else _laplacian(pairs.T)
        total = torch.zeros((), device=steps.device, dtype=dtype)
        gradients = []
        if any(ctx.needs_input_grad):
            gradients = [torch.empty_like(steps), *(accumulator(block) for block in blocks)]
        rows = sum(len(block) for block in blocks) * steps.shape[1]
        chunk = max(LEAST, min(MAX_CHUNK, NUMBERS // max(rows, 1)))
        for start in range(0, len(steps), chunk):
            part = steps[start : start + chunk].transpose(0, 1)  # (S, C, D)
            hidden = part.flatten(0, 1)
            log_p = _scores(hidden, blocks).to(dtype).log_softmax(1).view(len(part), -1)  # (S, C N)
            p = log_p.exp()
            products = torch.mm(first, log_p).mul_(p).view(len(hidden), -1)
            each = products.sum(1, keepdim=True)
            total += each.sum()
            if gradients:
                slope = products.addcmul_(p.view_as(products), each, value=-1)  # (S C, N)
                if second is not None:
                    slope.view_as(p).addmm_(second, p)
                into = gradients[0][start : start + chunk].transpose(0, 1)
                into.copy_(_propagate(slope.to(hidden.dtype), hidden, blocks, gradients[1:]).view_as(part))
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        steps, *blocks = (saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors)
        return steps, None, None, *blocks


def _scores(hidden: Tensor, blocks: tuple[Tensor, ...]) -> Tensor:
    """(S C, N)."""
    scores = [hidden @ block.T for block in blocks]
    return scores[0] if len(scores) == 1 else torch.cat(scores, 1)


def _propagate(slope: Tensor, hidden: Tensor, blocks: tuple[Tensor, ...], totals: list[Tensor]) -> Tensor:
    """The gradient (S C, D) of the states from that of their scores (S C, N); those of the blocks go to ``totals``."""
    pieces = slope.split([len(block) for block in blocks], 1)
    for piece, total in zip(pieces, totals, strict=True):
        accumulate(total, piece, hidden)
    parts = [piece @ block for piece, block in zip(pieces, blocks, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _laplacian(pairs: Tensor) -> Tensor:
    return torch.diag(pairs.sum(1)) - pairs
