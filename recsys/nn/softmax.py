"""Softmax over all items, exact, without ever holding targets x items: the kernels of the item tables that are local.

    log_sum_exp    l_t = log sum_j exp(h_t . e_j)
    cross_entropy  sum_t w_t (l_t - h_t . e_target(t))

How: the scores of a chunk of targets are made in one reused buffer and turned into probabilities in place. The gradient
of the cross-entropy is known up to one factor while they are there, so its two products are taken at once, and the
backward pass only scales what it finds: one pass over targets x items instead of two. Of the logarithms of sums, whose
gradient can be anything, the backward pass makes the probabilities again. Whole chunks, whose shapes recur, are
multiplied by :mod:`recsys.nn.products`.

Legend: T targets, N classes (all items, and what stands behind them), D width, C targets of a chunk; ``blocks`` are
output vectors (n, D) of consecutive rows, the first of which is row 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.nn.products import add_product, product, transposed_zeros, wider
from recsys.nn.scoring import accumulate, accumulator

BUFFER = 2**21  # scores held at a time: 8 MB in fp32, which stays close to the cache
MIN_CHUNK, MAX_CHUNK = 64, 512

Multiply = Callable[..., Tensor]
Add = Callable[[Tensor, Tensor, Tensor], None]


def cross_entropy(
    hidden: Tensor, targets: Tensor, weights: Tensor | None, blocks: tuple[Tensor, ...], chunk: int | None = None
) -> Tensor:
    """Scalar sum over the targets of weight times cross-entropy, float32; 0 without targets.

    Args:
        hidden: (T, D) states.
        targets: (T,) rows, 1..N.
        weights: (T,), 1 where None.
        blocks: output vectors of rows 1..N.
        chunk: targets worked on at a time (default: as many as keep the scores near 8 MB, at most 512, at least 64).
    """
    hidden, blocks = _in_one_precision(hidden, blocks)
    total: Tensor = _CrossEntropy.apply(hidden, targets, weights, _chunk_of(chunk, blocks), *blocks)
    return total


def log_sum_exp(hidden: Tensor, blocks: tuple[Tensor, ...], chunk: int | None = None) -> Tensor:
    """(T,) logarithms of the sum over all rows of exp(h_t . e_j), float32; arguments as of :func:`cross_entropy`."""
    hidden, blocks = _in_one_precision(hidden, blocks)
    found: Tensor = _LogSumExp.apply(hidden, _chunk_of(chunk, blocks), *blocks)
    return found


def _in_one_precision(hidden: Tensor, blocks: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, blocks
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), tuple(block.to(dtype) for block in blocks)


def _chunk_of(chunk: int | None, blocks: tuple[Tensor, ...]) -> int:
    return chunk or max(MIN_CHUNK, min(MAX_CHUNK, BUFFER // max(sum(map(len, blocks)), 1)))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, weights: Tensor | None, chunk: int, *blocks: Tensor
    ) -> Tensor:
        work = _Work(hidden, blocks, chunk, (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]))
        losses = torch.empty(len(targets), device=hidden.device, dtype=work.dtype)
        each = losses.new_ones(len(targets)) if weights is None else weights.to(work.dtype)
        columns = targets - 1
        for part, scores in work.chunks():
            column = columns[part, None]
            correct = scores.gather(1, column).to(work.dtype)
            normaliser, probabilities = _normalised(scores, work.dtype)
            losses[part] = (normaliser - correct).squeeze(1)
            if work.asked:
                probabilities.scatter_add_(1, column, probabilities.new_full((len(column), 1), -1.0))
                work.add(probabilities, each[part, None].to(hidden.dtype), part)
        ctx.save_for_backward(losses if weights is not None and ctx.needs_input_grad[2] else None, *work.gradients)
        return losses.sum() if weights is None else (losses * each).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        scaled = [None if found is None else found * gradient.to(found.dtype) for found in ctx.saved_tensors]
        to_weights, to_hidden, *to_blocks = scaled
        return (to_hidden, None, to_weights, None, *to_blocks)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, chunk: int, *blocks: Tensor) -> Tensor:
        work = _Work(hidden, blocks, chunk, ())
        found = torch.empty(len(hidden), device=hidden.device, dtype=work.dtype)
        for part, scores in work.chunks():
            found[part] = _normalised(scores, work.dtype)[0].squeeze(1)
        ctx.chunk = chunk
        ctx.save_for_backward(hidden, *blocks)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        hidden, *blocks = ctx.saved_tensors
        work = _Work(hidden, tuple(blocks), ctx.chunk, (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]))
        for part, scores in work.chunks():
            work.add(torch.softmax(scores, 1, out=scores), gradient[part, None].to(hidden.dtype), part)
        to_hidden, *to_blocks = work.gradients
        return (to_hidden, None, *to_blocks)


def _normalised(scores: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(C, 1) logarithms of sums in ``dtype``, and the probabilities (C, N), which take the place of the scores."""
    peak = scores.amax(1, keepdim=True).to(dtype)
    probabilities = torch.softmax(scores, 1, out=scores)
    return peak - probabilities.amax(1, keepdim=True).to(dtype).log(), probabilities


class _Work:
    """Scores of one chunk of targets after the other, and the gradients that are summed up on the way.

    Args:
        wanted: for which of the states and of each block a gradient is asked for.
    """

    def __init__(self, hidden: Tensor, blocks: tuple[Tensor, ...], chunk: int, wanted: tuple[bool, ...]) -> None:
        self.hidden, self.blocks, self.chunk, self.asked = hidden, blocks, chunk, any(wanted)
        self.dtype = torch.promote_types(hidden.dtype, torch.float32)
        self.fast = wider(hidden, *blocks)
        zeros = transposed_zeros if self.fast else accumulator
        self.gradients: list[Tensor | None] = [torch.empty_like(hidden) if wanted and wanted[0] else None]
        self.gradients += [zeros(block) if asked else None for block, asked in zip(blocks, wanted[1:])]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which targets, and their scores (C, N) in a buffer that the next chunk overwrites."""
        hidden, chunk = self.hidden, self.chunk
        size = sum(len(block) for block in self.blocks)
        buffer = torch.empty((min(chunk, len(hidden)), size), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, min(start + chunk, len(hidden)))
            scores, offset = buffer[: part.stop - part.start], 0
            for block in self.blocks:
                self._multiply(part)(hidden[part], block.T, out=scores[:, offset : offset + len(block)])
                offset += len(block)
            yield part, scores

    def add(self, residual: Tensor, weight: Tensor, part: slice) -> None:
        """Add to the gradients: ``residual`` (C, N) times ``weight`` (C, 1) is that of the scores of these targets."""
        multiply, add = self._multiply(part), add_product if self._whole(part) else accumulate
        weighted, offset = self.hidden[part] * weight, 0
        to_hidden = None if self.gradients[0] is None else self.gradients[0][part]
        for block, to_block in zip(self.blocks, self.gradients[1:], strict=True):
            piece = residual[:, offset : offset + len(block)]
            if to_hidden is not None and offset == 0:
                multiply(piece, block, out=to_hidden)
            elif to_hidden is not None:
                to_hidden.add_(multiply(piece, block))
            if to_block is not None:
                add(to_block, piece, weighted)
            offset += len(block)
        if to_hidden is not None:
            to_hidden.mul_(weight)

    def _whole(self, part: slice) -> bool:
        return self.fast and part.stop - part.start == self.chunk

    def _multiply(self, part: slice) -> Multiply:
        return product if self._whole(part) else torch.mm
