"""A short causal convolution, channel by channel, over ragged rows, and SiLU: what comes before Mamba's scan.

Token t of a row gets SiLU(b + sum_k w_k x_{t-k}) over the W newest tokens of its row; nothing lies in front of a row.

Legend: T tokens of all rows, R rows, E channels, W width of the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.nn.kernels.available import compiled


def causal_silu(x: Tensor, weight: Tensor, bias: Tensor, start: Tensor, kernel: str = "auto") -> Tensor:
    """(T, E) from x (T, E), weight (E, W) whose last column is for the token itself, and bias (E,).

    Args:
        start: (R + 1,) int64, row r is tokens start[r] to start[r + 1].
        kernel: "auto" or "numba" for compiled loops where they can run, else torch.
    """
    loops = compiled(kernel, "convolution", weight.shape[1], x)
    if loops is not None:
        out: Tensor = _Convolution.apply(x, weight, bias, start)
        return out
    positions = torch.arange(len(x), device=x.device) - start[:-1].repeat_interleave(start.diff())
    total = x * weight[:, -1] + bias
    for back in range(1, weight.shape[1]):
        outside = (positions < back).unsqueeze(1)  # filled, not multiplied by 0: another row may hold a NaN
        total = total + F.pad(x, (0, 0, back, 0))[: len(x)].masked_fill(outside, 0.0) * weight[:, -1 - back]
    return F.silu(total)


class _Convolution(torch.autograd.Function):
    """The compiled form; the sums in front of SiLU are computed again going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, start)
        return _loops(x, weight).forward(x, weight, bias, start)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        x, weight, bias, start = ctx.saved_tensors
        return (*_loops(x, weight).backward(x, weight, bias, start, gradient), None)


def _loops(x: Tensor, weight: Tensor) -> Any:
    return compiled("auto", "convolution", weight.shape[1], x)
