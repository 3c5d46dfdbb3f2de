"""The attention of :mod:`recsys.nn.continuation` with one new token a row, without gradients, as a compiled loop for
the CPU.

Every number that is kept of a row is read once and used once, so a token should run at the speed of memory; products of
matrices that have one row or two are far from it.

Legend: q new tokens, R rows, W their width, K tokens of a continuation, H heads, C channels of a head.
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


def forward(query: Tensor, own: Tensor, row: Tensor, place: Tensor, reach: Tensor) -> Tensor:
    """(q, H, C) of query (q, H, C), already scaled, own (q, K, 2, H, C) and row (R, W, 2, H, C).

    Args:
        place: (q,) int64, the row of each token.
        reach: (q,) int64, how many tokens of it the new one sees.
    """
    out, run = np.empty(query.shape, np.float32), _kernel(query.shape[2])
    inputs = plain(query), plain(own), plain(row), plain(place), plain(reach)
    share_out(row.numel(), lambda first, step: run(*inputs, first, step, out))
    return torch.from_numpy(out)


def rehearse(channels: int) -> None:
    """Compile for so many ``channels`` and work out one small case: raises whatever is wrong with the installation."""
    own = torch.ones(1, 1, 2, 1, channels, dtype=torch.float32, device="cpu")
    row = torch.stack([torch.zeros_like(own[0]), own[0] * 3]).flatten(0, 1).unsqueeze(0)  # (1, 2, 2, 1, C)
    row[:, 0, 1] = 2.0
    query, first = (
        torch.full_like(own[:, 0, 0], math.log(2) / channels),
        torch.zeros(1, dtype=torch.int64, device="cpu"),
    )
    found = forward(query, own, row, first, first + 2).flatten().tolist()
    expected = (1 * 2 + 8 * 3 + 2 * 1) / (1 + 8 + 2)  # weights are powers of two: 2^0, 2^3 and 2^1
    if not np.allclose(found, expected):
        raise RuntimeError(f"the compiled attention gives {found} for {expected}")


@functools.cache
def _kernel(C: int) -> Callable[..., Any]:
    """The loop for a number of channels."""

    def run(
        query: np.ndarray,
        own: np.ndarray,
        row: np.ndarray,
        place: np.ndarray,
        reach: np.ndarray,
        first: int,
        step: int,
        out: np.ndarray,
    ) -> None:
        total = carray(stack(C), (C,))
        scores = np.empty(row.shape[1] + own.shape[1], np.float32)
        for share in range(first, SHARES, step):
            for token in range(share, len(query), SHARES):
                keys, behind = row[place[token]], reach[token]
                count = behind + own.shape[1]
                for head in range(query.shape[1]):
                    highest = np.float32(-np.inf)
                    for j in range(count):
                        key = keys[j, 0, head] if j < behind else own[token, j - behind, 0, head]
                        score = np.float32(0)
                        for n in range(C):
                            score += query[token, head, n] * key[n]
                        scores[j] = score
                        highest = max(highest, score)
                    for n in range(C):
                        total[n] = np.float32(0)
                    weights = np.float32(0)
                    for j in range(count):
                        value = keys[j, 1, head] if j < behind else own[token, j - behind, 1, head]
                        weight = power((scores[j] - highest) * LOG2_E)
                        weights += weight
                        for n in range(C):
                            total[n] += weight * value[n]
                    for n in range(C):
                        out[token, head, n] = total[n] / weights

    return compile_loops(run, "reassoc")
