"""The selective scan of Mamba (arXiv 2312.00752) over ragged rows: h = exp(delta A) h + delta x B, y = C h + D x.

The decays differ per channel and state, so no matrix form with one decay per head applies (that is Mamba-2). All
kernels multiply decays in (0, 1] and never divide by their products, which overflow after a few tokens. None keeps a
state for every token: states are saved every 16 tokens and those between are computed again going back.

| kernel | what it does | for |
|---|---|---|
| ``numba`` | compiled loops (:mod:`recsys.nn.kernels.scan`) | float32 on a CPU |
| ``torch`` | one time step per token for all rows at once (:mod:`recsys.nn.scan_torch`) | many rows on a CPU |
| ``chunked`` | the same for all chunks of 16 tokens at once, in two rounds (there too) | one or two rows, a GPU |

Legend: T tokens of all rows, R rows, E channels, N states per channel, Q tokens asked for.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.nn import scan_torch
from recsys.nn.kernels.available import check_kernel, compiled, say_once

FEW = 2  # rows up to which chunks at once are faster on a CPU than one token after another


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: Tensor,
    kernel: str = "auto",
    at: Tensor | None = None,
) -> Tensor:
    """Outputs (T, E) of the scan, or (Q, E) at the tokens ``at``; differentiable, once, in all but ``start``.

    Kernels agree to rounding. The result is float32, or float64 if an input is: half precision comes in converted,
    with one warning per process, and autocast has no say inside.

    Args:
        x: (T, E) inputs, row after row.
        delta: (T, E) step sizes, >= 0.
        A: (E, N), <= 0.
        B: (T, N).
        C: (T, N).
        D: (E,) share of the input that goes straight to the output.
        start: (R + 1,) int64 from 0 to T: row r is tokens start[r] to start[r + 1], and its state begins at zero.
        kernel: "auto" takes what the table above says, by device, dtype and number of rows; where numba (the extra
            ``fast``) is missing or fails, "auto" and "numba" take the next best and one warning says so.
        at: (Q,) int64 tokens whose outputs are wanted: spares the others' read-out, about a third of the forward time.

    Raises:
        ValueError: shapes that do not fit, an unknown kernel, or "numba" off the CPU or not in float32.
    """
    check_kernel(kernel)
    _check_shapes(x, delta, A, B, C, D, start)
    values = _widen(x, delta, A, B, C, D)
    chosen = _choose(kernel, values[0], A.shape[1], len(start) - 1)
    asked = None if at is None else torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, at, True)
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Scan.apply(*values, start, asked, chosen)
    return y if at is None else y[at]


def _check_shapes(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Tensor) -> None:
    tokens, channels = x.shape
    states = A.shape[-1]
    found = [tuple(value.shape) for value in (delta, A, B, C, D)]
    expected = [(tokens, channels), (channels, states), (tokens, states), (tokens, states), (channels,)]
    if found != expected:
        raise ValueError(f"for x of shape {(tokens, channels)}, delta, A, B, C, D must be {expected}, found {found}")
    fits = start.dim() == 1 and start.dtype == torch.int64 and len(start) > 0
    if not fits or start[[0, -1]].tolist() != [0, tokens]:
        raise ValueError(f"start must be (R + 1,) int64 offsets from 0 to T={tokens}, found {start}")


def _widen(*values: Tensor) -> list[Tensor]:
    dtype = functools.reduce(torch.promote_types, [value.dtype for value in values], torch.float32)
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in values):
        say_once(f"selective_scan computes in {dtype}: its half-precision inputs were converted")
    return [value.to(dtype) for value in values]


def _choose(kernel: str, x: Tensor, states: int, rows: int) -> str:
    if compiled(kernel, "scan", states, x) is not None:
        return "numba"
    narrow = x.device.type != "cpu" or rows <= FEW
    return "chunked" if kernel == "chunked" or (kernel != "torch" and narrow) else "torch"


def _loops(x: Tensor, A: Tensor) -> Any:
    return compiled("numba", "scan", A.shape[1], x)


class _Scan(torch.autograd.Function):
    """The scan by one kernel; tokens not ``asked`` for may come out as zero."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        start: Tensor,
        asked: Tensor | None,
        kernel: str,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad)
        if kernel == "numba":
            y, saved = _loops(x, A).forward(x, delta, A, B, C, D, start, asked, keep)
        else:
            y, saved = scan_torch.forward(x, delta, A, B, C, D, start, kernel == "chunked")
        if keep:
            ctx.save_for_backward(x, delta, A, B, C, D, start, saved)
            ctx.kernel = kernel
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = outputs
        x, delta, A, B, C, D, start, saved = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if ctx.kernel == "numba":
                gradients = _loops(x, A).backward(x, delta, A, B, C, D, start, dy, saved)
            else:
                gradients = scan_torch.backward(x, delta, A, B, C, D, start, dy, saved, ctx.kernel == "chunked")
        return (*gradients, None, None, None)
