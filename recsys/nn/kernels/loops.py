"""What compiled loops have in common: compiling, sharing out to threads, arrays on the stack, a fast exponential.

Import this, and numba with it, only behind :func:`recsys.nn.kernels.available.compiled`.

Legend: R rows, P pieces that the shares are handed out in.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

SHARES = 64  # parts that rows are dealt out to; sums over rows are taken share by share, however many threads there are
SMALL = 2**20  # work below this many elements is not worth a second thread
LOG2_E = np.float32(1.4426950408889634)


def share_out(elements: int, work: Callable[[int, int], None]) -> None:
    """Do all shares on torch's number of threads: ``work(first, P)`` does the shares first, first + P, ..."""
    threads = torch.get_num_threads() if elements >= SMALL else 1
    if threads == 1:
        work(0, 1)
    else:
        pieces = min(SHARES, 4 * threads)
        list(_pool(threads, os.getpid()).map(lambda first: work(first, pieces), range(pieces)))


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process (a fork has none of its parent's)."""
    return ThreadPoolExecutor(threads, thread_name_prefix="recsys-loops")


def plain(value: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's numbers, row after row."""
    return np.ascontiguousarray(value.detach().numpy())


def compile_loops(function: Callable[..., Any], *liberties: str) -> Callable[..., Any]:
    """The function compiled at its first call, and kept on disk for other processes where a folder can be written.

    ``liberties`` are the LLVM fast-math flags to allow besides fused products and the sign of zero.
    """
    settings = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", *liberties}}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # no folder to keep it in
        return njit(**settings)(function)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def stack(typing: Any, count: Any) -> Any:
    """A pointer to ``count`` float32 on the stack, ``count`` a constant of the compiled code.

    The compiler knows that such arrays do not overlap, with each other or with any argument, and so needs no checks
    before it turns a loop over several of them into vector instructions.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return cgutils.alloca_once(builder, ir.FloatType(), size=ir.Constant(ir.IntType(64), count.literal_value))

    return types.CPointer(types.float32)(count), generate


def _power(t):  # type: ignore[no-untyped-def]
    """2^t for float32 t <= 0, with a relative error below 3e-7, exactly 1 at 0, and 0 below -126.5.

    Adding 1.5 * 2^23 + 127 leaves round(t) + 127 in the low bits, which shifted are the bits of 2^round(t). The
    polynomial is our fit of least relative error to 2^f on [-1/2, 1/2] with the constant held at 1: a decay near 1 is
    multiplied with itself hundreds of times.
    """
    t = np.float32(-127.0) if t < np.float32(-127.0) else t
    shifted = np.float32(t + np.float32(12583039.0))
    f = t - (shifted - np.float32(12583039.0))
    p = np.float32(1.3264727e-3)
    p = p * f + np.float32(9.6715130e-3)
    p = p * f + np.float32(5.5507336e-2)
    p = p * f + np.float32(2.4022242e-1)
    p = p * f + np.float32(6.9314700e-1)
    p = p * f + np.float32(1.0)
    return p * np.int32(shifted.view(np.int32) << np.int32(23)).view(np.float32)


power = compile_loops(_power)  # never "reassoc", which lets the compiler cancel the number that is added and subtracted
