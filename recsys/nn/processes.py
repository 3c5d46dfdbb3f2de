"""Rows of all processes, for losses whose rows are each other's negatives.

Legend: B rows of all processes, b of this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def from_all(own: Tensor) -> Tensor:
    """(B, ...) the rows of all processes, in the order of their ranks, of ``own`` (b, ...); with gradient to ``own``.

    Vectors of different widths are filled up with zeros. The gradient is the own part's times the number of processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return own
    if own.dim() == 1:
        return from_all(own[:, None])[:, 0]
    return _FromAll.apply(own) if own.is_floating_point() else _collect(own)[0]


class _FromAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        everything, ctx.first = _collect(own)
        ctx.size, ctx.width = len(own), own.shape[-1]
        return everything

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        mine = gradients[0][ctx.first : ctx.first + ctx.size, ..., : ctx.width]
        return mine * distributed.get_world_size()


def _collect(own: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, and which of them is the first of this one."""
    rank, size = distributed.get_rank(), own.new_tensor([len(own), own.shape[-1]], dtype=torch.int64)
    shapes = [torch.empty_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shapes, size)
    counts, widths = zip(*(shape.tolist() for shape in shapes), strict=True)
    padded = own.new_zeros(max(counts), *own.shape[1:-1], max(widths))
    padded[: len(own), ..., : own.shape[-1]] = own
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]), sum(counts[:rank])
