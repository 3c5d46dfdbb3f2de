"""The selective scan as compiled loops for the CPU, in float32 (needs numba: ``pip install recsys[fast]``).

Rows are independent, so threads share them out; the work on one channel of one row for S tokens stays in the first
cache. What makes it fast is that the innermost loop, over the states of a channel, becomes vector instructions: its
length is a constant of the compiled code (N rounded up, the rest filled with zeros, which stay zero), everything it
touches lies in arrays on the stack, which the compiler knows to be apart, and exp is a polynomial.

Legend: T tokens, R rows, E channels, N states per channel, W states with their filling, S tokens between saved states.
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

STEPS = 16  # tokens between saved states
LANES = 16  # N is rounded up to a multiple of this
TINY = np.float32(1e-32)  # smaller gradients of a state count as zero, before they get denormal and slow


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: Tensor,
    asked: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs (T, E), zero at tokens not ``asked`` for, and if ``keep``, the states (M, E, W) every S tokens."""
    inputs = _inputs(x, delta, A, B, C, D, start)
    everywhere = asked is None
    marks = np.zeros(0, np.bool_) if asked is None else asked.numpy()
    y = np.empty(x.shape, np.float32) if everywhere else np.zeros(x.shape, np.float32)
    offsets, width = _saved_at(start), _width(A)
    saved = np.empty((offsets[-1] if keep else 0, len(A), width), np.float32)
    run = _kernels(width)[0]
    share_out(
        x.numel() * width, lambda first, step: run(*inputs, marks, everywhere, keep, offsets, first, step, saved, y)
    )
    return torch.from_numpy(y), torch.from_numpy(saved)


def backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    start: Tensor,
    dy: Tensor,
    saved: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C, D; ``saved`` from :func:`forward`."""
    inputs = _inputs(x, delta, A, B, C, D, start)
    dx, d_delta, dB, dC = (np.empty(value.shape, np.float32) for value in (x, delta, B, C))
    dA, dD = np.zeros((SHARES, *A.shape), np.float32), np.zeros((SHARES, len(D)), np.float32)
    outputs = dx, d_delta, dA, dB, dC, dD
    offsets, width = _saved_at(start), _width(A)
    run, given = _kernels(width)[1], (plain(dy), saved.numpy())
    share_out(2 * x.numel() * width, lambda first, step: run(*inputs, *given, offsets, first, step, *outputs))
    return tuple(torch.from_numpy(value) for value in (dx, d_delta, dA.sum(0), dB, dC, dD.sum(0)))


def rehearse(states: int) -> None:
    """Compile for a number of ``states`` and work out a small case: raises whatever is wrong with the installation."""
    x = torch.ones(3, 1, dtype=torch.float32, device="cpu")
    B = x.new_full((3, states), states**-0.5)
    inputs = x, x, -x.new_ones(1, states), B, B, x.new_ones(1), torch.tensor([0, 1, 3], device="cpu")
    y, saved = forward(*inputs, None, True)
    to_delta = backward(*inputs, x, saved)[1]
    found = [*y.flatten().tolist(), float(to_delta[1])]
    expected = [2.0, 2.0, 2.0 + math.exp(-1.0), 1.0 + math.exp(-1.0)]
    if not np.allclose(found, expected):
        raise RuntimeError(f"the compiled scan gives {found} for {expected}")


def _inputs(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, start: Tensor) -> tuple[Any, ...]:
    return tuple(plain(value) for value in (x, delta, A, B, C, D, start))


def _width(A: Tensor) -> int:
    return -(-A.shape[1] // LANES) * LANES


def _saved_at(start: Tensor) -> np.ndarray[Any, Any]:
    """(R + 1,) number of each row's first saved state, then of all."""
    counts = (np.diff(start.numpy()) + STEPS - 1) // STEPS
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


@functools.cache
def _kernels(W: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two loops for states filled up to W."""
    block, longer = STEPS * W, (STEPS + 1) * W

    def run_forward(
        x: np.ndarray,
        delta: np.ndarray,
        A: np.ndarray,
        B: np.ndarray,
        C: np.ndarray,
        D: np.ndarray,
        start: np.ndarray,
        asked: np.ndarray,
        everywhere: bool,
        keep: bool,
        offsets: np.ndarray,
        first: int,
        step: int,
        saved: np.ndarray,
        y: np.ndarray,
    ) -> None:
        E, N = A.shape
        b, c = carray(stack(block), (STEPS, W)), carray(stack(block), (STEPS, W))
        state, rate = carray(stack(W), (W,)), carray(stack(W), (W,))
        states = np.empty((E, W), np.float32)
        for share in range(first, SHARES, step):
            for row in range(share, len(start) - 1, SHARES):
                states[:] = np.float32(0)
                for number in range(offsets[row + 1] - offsets[row]):
                    begin = start[row] + number * STEPS
                    length = min(STEPS, start[row + 1] - begin)
                    if keep:
                        saved[offsets[row] + number] = states
                    for i in range(length):
                        for n in range(W):
                            b[i, n] = B[begin + i, n] if n < N else np.float32(0)
                            c[i, n] = C[begin + i, n] if n < N else np.float32(0)
                    for e in range(E):
                        for n in range(W):
                            state[n] = states[e, n]
                            rate[n] = A[e, n] * LOG2_E if n < N else np.float32(0)
                        for i in range(length):
                            t = begin + i
                            size = delta[t, e]
                            driven = size * x[t, e]
                            if everywhere or asked[t]:
                                total = np.float32(0)
                                for n in range(W):
                                    value = power(size * rate[n]) * state[n] + driven * b[i, n]
                                    state[n] = value
                                    total += value * c[i, n]
                                y[t, e] = total + D[e] * x[t, e]
                            else:
                                for n in range(W):
                                    state[n] = power(size * rate[n]) * state[n] + driven * b[i, n]
                        for n in range(W):
                            states[e, n] = state[n]

    def run_backward(
        x: np.ndarray,
        delta: np.ndarray,
        A: np.ndarray,
        B: np.ndarray,
        C: np.ndarray,
        D: np.ndarray,
        start: np.ndarray,
        dy: np.ndarray,
        saved: np.ndarray,
        offsets: np.ndarray,
        first: int,
        step: int,
        dx: np.ndarray,
        d_delta: np.ndarray,
        dA: np.ndarray,
        dB: np.ndarray,
        dC: np.ndarray,
        dD: np.ndarray,
    ) -> None:
        E, N = A.shape
        b, c = carray(stack(block), (STEPS, W)), carray(stack(block), (STEPS, W))
        db, dc = carray(stack(block), (STEPS, W)), carray(stack(block), (STEPS, W))
        state, decay = carray(stack(longer), (STEPS + 1, W)), carray(stack(block), (STEPS, W))
        gradient, rate = carray(stack(W), (W,)), carray(stack(W), (W,))
        slope, d_slope = carray(stack(W), (W,)), carray(stack(W), (W,))
        gradients = np.empty((E, W), np.float32)
        for share in range(first, SHARES, step):
            for row in range(share, len(start) - 1, SHARES):
                gradients[:] = np.float32(0)
                for number in range(offsets[row + 1] - offsets[row] - 1, -1, -1):
                    begin = start[row] + number * STEPS
                    length = min(STEPS, start[row + 1] - begin)
                    for i in range(length):
                        for n in range(W):
                            b[i, n] = B[begin + i, n] if n < N else np.float32(0)
                            c[i, n] = C[begin + i, n] if n < N else np.float32(0)
                            db[i, n] = np.float32(0)
                            dc[i, n] = np.float32(0)
                    for e in range(E):
                        for n in range(W):
                            gradient[n] = gradients[e, n]
                            slope[n] = A[e, n] if n < N else np.float32(0)
                            rate[n] = slope[n] * LOG2_E
                            d_slope[n] = np.float32(0)
                            if abs(gradient[n]) < TINY:  # denormal numbers would be slow
                                gradient[n] = np.float32(0)
                            state[0, n] = saved[offsets[row] + number, e, n]
                        for i in range(length):
                            size = delta[begin + i, e]
                            driven = size * x[begin + i, e]
                            for n in range(W):
                                value = power(size * rate[n])
                                decay[i, n] = value
                                state[i + 1, n] = value * state[i, n] + driven * b[i, n]
                        direct = np.float32(0)
                        for i in range(length - 1, -1, -1):
                            t = begin + i
                            size, value, slack = delta[t, e], x[t, e], dy[t, e]
                            driven = size * value
                            to_driven, to_size = np.float32(0), np.float32(0)
                            for n in range(W):
                                here = gradient[n] + c[i, n] * slack
                                dc[i, n] += slack * state[i + 1, n]
                                db[i, n] += here * driven
                                to_driven += here * b[i, n]
                                before = here * decay[i, n]
                                product = before * state[i, n]
                                to_size += product * slope[n]
                                d_slope[n] += product * size
                                gradient[n] = before
                            dx[t, e] = to_driven * size + slack * D[e]
                            d_delta[t, e] = to_driven * value + to_size
                            direct += slack * value
                        dD[share, e] += direct
                        for n in range(W):
                            gradients[e, n] = gradient[n]
                        for n in range(N):
                            dA[share, e, n] += d_slope[n]
                    for i in range(length):
                        for n in range(N):
                            dB[begin + i, n] = db[i, n]
                            dC[begin + i, n] = dc[i, n]

    return compile_loops(run_forward, "reassoc"), compile_loops(run_backward, "reassoc")
