"""Products of float32 matrices on the CPU by the library of torch's two that uses the processor's widest instructions.

torch multiplies float32 matrices by MKL, which keeps AVX-512 to Intel's processors: on others it computes with half
their width. oneDNN, which torch carries along for layers, makes code for what the processor has, and is called here for
products without gradient, such as those inside the full softmax (``benchmarks/speed/products.py`` measures both).

It makes that code once per shape, in about a millisecond, so it is for shapes that recur: chunks, not remainders.
Legend: M, K, N sizes of a product.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

LEAST = 2**20  # products M K N below which a call costs more than it saves
PIECE = 4096  # columns at a time: larger results leave the cache, and their memory has to be mapped anew


def wider(*operands: Tensor) -> bool:
    """Whether :func:`product` of ``operands`` is oneDNN's to compute on this machine."""
    fits = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in operands)
    return fits and onednn_is_wider()


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """(M, N) product of ``left`` (M, K) and ``right`` (K, N), without gradient; in ``out`` if that is given."""
    small = left.shape[0] * right.numel() < LEAST
    if small or not wider(left, right):
        return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)
    if out is None and right.shape[1] <= PIECE:
        return _onednn(left, right)
    out = left.new_empty((len(left), right.shape[1])) if out is None else out
    for piece, into in zip(right.split(PIECE, 1), out.split(PIECE, 1), strict=True):
        into.copy_(_onednn(left, piece))
    return out


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of ``left`` (K, M), transposed, and ``right`` (K, N) to ``total`` (M, N).

    Made for few columns and many rows in ``total``, which is best one of :func:`transposed_zeros`.
    """
    for piece, into in zip(left.split(PIECE, 1), total.split(PIECE), strict=True):
        into.add_(product(right.T, piece).T)


def transposed_zeros(like: Tensor) -> Tensor:
    """Zeros of the shape of ``like`` (M, N), whose columns lie next to each other in memory."""
    return torch.zeros_like(like.T, memory_format=torch.contiguous_format).T


@functools.cache
def onednn_is_wider() -> bool:
    """Whether oneDNN computes with AVX-512 here and MKL does not: a processor that has it and is not Intel's."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() not in ("", "GenuineIntel")


def _onednn(left: Tensor, right: Tensor) -> Tensor:
    if not (right.is_contiguous() or right.T.is_contiguous()):
        right = right.contiguous()  # between gaps in memory oneDNN goes number by number
    return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")


def _vendor() -> str:
    """The processor's vendor, "" where the system does not tell."""
    known = Path("/proc/cpuinfo")
    if known.is_file():
        lines = known.read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return platform.processor().rpartition(",")[2].strip()  # Windows: "AMD64 Family 25 ..., AuthenticAMD"
