"""The convolution of :mod:`recsys.nn.convolution` as compiled loops for the CPU, in float32.

One pass each way over the tokens, ``LANES`` channels of a row at a time, where torch makes a dozen passes with as many
temporaries of the size of the input.

Legend: T tokens, R rows, E channels, W width of the convolution, L = ``LANES`` channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from recsys.nn.kernels.loops import LOG2_E, SHARES, compile_loops, plain, power, share_out, stack

LANES = 64


def forward(x: Tensor, weight: Tensor, bias: Tensor, start: Tensor) -> Tensor:
    """(T, E) of x (T, E), weight (E, W), bias (E,), start (R + 1,)."""
    out, run = np.empty(x.shape, np.float32), _kernels(weight.shape[1])[0]
    inputs = plain(x), plain(weight.T), plain(bias), plain(start)
    share_out(4 * out.size, lambda first, step: run(*inputs, first, step, out))
    return torch.from_numpy(out)


def backward(x: Tensor, weight: Tensor, bias: Tensor, start: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias."""
    dx, run = np.empty(x.shape, np.float32), _kernels(weight.shape[1])[1]
    taps = plain(weight.T)
    d_taps, d_bias = np.zeros((SHARES, *taps.shape), np.float32), np.zeros((SHARES, len(bias)), np.float32)
    inputs = plain(x), taps, plain(bias), plain(start), plain(gradient)
    share_out(8 * dx.size, lambda first, step: run(*inputs, first, step, dx, d_taps, d_bias))
    return torch.from_numpy(dx), torch.from_numpy(d_taps.sum(0).T), torch.from_numpy(d_bias.sum(0))


def rehearse(width: int) -> None:
    """Compile for a ``width`` and work out one small case: raises whatever is wrong with the installation."""
    x = torch.ones(3, 1, dtype=torch.float32, device="cpu")
    inputs = x, x.new_ones(1, width), x.new_zeros(1), torch.tensor([0, 1, 3], device="cpu")
    found = [*forward(*inputs).flatten().tolist(), float(backward(*inputs, x)[2])]
    sums = [1.0, 1.0, float(min(2, width))]
    ones = [1 / (1 + math.exp(-total)) for total in sums]
    slopes = [one * (1 + total * (1 - one)) for one, total in zip(ones, sums, strict=True)]
    expected = [*(one * total for one, total in zip(ones, sums, strict=True)), sum(slopes)]
    if not np.allclose(found, expected):
        raise RuntimeError(f"the compiled convolution gives {found} for {expected}")


@functools.cache
def _kernels(W: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two loops for a width."""
    L, size = LANES, W * LANES

    def run_forward(
        x: np.ndarray, taps: np.ndarray, bias: np.ndarray, start: np.ndarray, first: int, step: int, out: np.ndarray
    ) -> None:
        total = carray(stack(L), (L,))
        for share in range(first, SHARES, step):
            for row in range(share, len(start) - 1, SHARES):
                for left in range(0, x.shape[1], L):
                    count = min(L, x.shape[1] - left)
                    for t in range(start[row], start[row + 1]):
                        for n in range(count):
                            total[n] = bias[left + n] + taps[W - 1, left + n] * x[t, left + n]
                        for back in range(1, min(W, t - start[row] + 1)):
                            for n in range(count):
                                total[n] += taps[W - 1 - back, left + n] * x[t - back, left + n]
                        for n in range(count):
                            small = power(-abs(total[n]) * LOG2_E)
                            share_of_one = (np.float32(1) if total[n] >= 0 else small) / (np.float32(1) + small)
                            out[t, left + n] = total[n] * share_of_one

    def run_backward(
        x: np.ndarray,
        taps: np.ndarray,
        bias: np.ndarray,
        start: np.ndarray,
        gradient: np.ndarray,
        first: int,
        step: int,
        dx: np.ndarray,
        d_taps: np.ndarray,
        d_bias: np.ndarray,
    ) -> None:
        total = carray(stack(L), (L,))
        to_bias, to_taps = carray(stack(L), (L,)), carray(stack(size), (W, L))
        for share in range(first, SHARES, step):
            for row in range(share, len(start) - 1, SHARES):
                for left in range(0, x.shape[1], L):
                    count = min(L, x.shape[1] - left)
                    for n in range(L):
                        to_bias[n] = np.float32(0)
                        for k in range(W):
                            to_taps[k, n] = np.float32(0)
                    for t in range(start[row], start[row + 1]):
                        reach = min(W, t - start[row] + 1)
                        for n in range(count):
                            total[n] = bias[left + n] + taps[W - 1, left + n] * x[t, left + n]
                        for back in range(1, reach):
                            for n in range(count):
                                total[n] += taps[W - 1 - back, left + n] * x[t - back, left + n]
                        for n in range(count):
                            small = power(-abs(total[n]) * LOG2_E)
                            share_of_one = (np.float32(1) if total[n] >= 0 else small) / (np.float32(1) + small)
                            slope = share_of_one * (np.float32(1) + total[n] * (np.float32(1) - share_of_one))
                            total[n] = gradient[t, left + n] * slope
                            to_bias[n] += total[n]
                            dx[t, left + n] = np.float32(0)
                        for back in range(reach):
                            for n in range(count):
                                to_taps[W - 1 - back, n] += total[n] * x[t - back, left + n]
                            for n in range(count):
                                dx[t - back, left + n] += total[n] * taps[W - 1 - back, left + n]
                    for n in range(count):
                        d_bias[share, left + n] += to_bias[n]
                        for k in range(W):
                            d_taps[share, k, left + n] += to_taps[k, n]

    return compile_loops(run_forward), compile_loops(run_backward)
