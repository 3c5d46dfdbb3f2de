"""Full softmax cross-entropy, exact, without ever holding tokens x items.

loss_t = log sum_j exp(h_t . e_j) - h_t . e_target(t), over the whole catalogue, padding excluded.

Use when: the catalogue fits the time (cost grows with T * N * D); it is the best plain loss at any size that does
(Klenitskiy & Vasilev 2023, arXiv 2309.07602: NDCG@10 .182 against .134 of one-negative BCE on ML-1M).
Prefer instead: :class:`recsys.objectives.sampled.SampledSoftmax` above some hundred thousand items.

How: the logits of a chunk of tokens are made in one reused buffer, turned into probabilities in place, and the two
products of the gradient are taken from it at once, so the backward pass only scales what is there. Whole chunks, whose
shapes recur, are multiplied by :mod:`recsys.nn.products`. Legend: T targets, N items, D width, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recsys.data.batch import Batch
from recsys.nn.products import add_product, product, transposed_zeros, wider
from recsys.nn.scoring import accumulate, accumulator
from recsys.protocols import Encoded, ItemTable

BUFFER = 2**21  # logits held at a time: 8 MB in fp32, which stays close to the cache
MIN_CHUNK, MAX_CHUNK = 64, 512


class FullSoftmax(nn.Module):
    """Cross-entropy over all items.

    Args:
        temperature: divides the scores (training only; ranking does not change).
        chunk: tokens per chunk (default: as many as keep the buffer near 8 MB, at most 512 and at least 64).
    """

    def __init__(self, temperature: float = 1.0, chunk: int | None = None) -> None:
        super().__init__()
        if temperature <= 0 or (chunk is not None and chunk < 1):
            raise ValueError(f"temperature and chunk must be positive, found {temperature} and {chunk}")
        self.temperature, self.chunk = temperature, chunk

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss; ``generator`` is not used."""
        hidden, targets, weights = encoded.at_targets(batch)
        hidden = hidden / self.temperature if self.temperature != 1.0 else hidden
        firsts, blocks = zip(*items.blocks(), strict=True)
        return full_softmax(hidden, targets, weights, firsts, blocks, self.chunk)


def full_softmax(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    firsts: tuple[int, ...],
    blocks: tuple[Tensor, ...],
    chunk: int | None = None,
) -> Tensor:
    """The scalar sum of weight times cross-entropy of ``hidden`` (T, D) against ``blocks`` of output vectors.

    Args:
        targets: (T,) rows, each in one of the blocks.
        weights: (T,) of the targets, 1 where None; no gradient reaches them.
        firsts: the first row of each block.
        chunk: tokens worked on at a time; None takes as many as keep the logits near 8 MB.
    """
    chunk = chunk or max(MIN_CHUNK, min(MAX_CHUNK, BUFFER // max(sum(map(len, blocks)), 1)))
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, blocks = hidden.to(dtype), tuple(block.to(dtype) for block in blocks)
    total: Tensor = _FullSoftmax.apply(hidden, targets, weights, firsts, chunk, *blocks)
    return total


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        firsts: tuple[int, ...],
        chunk: int,
        *blocks: Tensor,
    ) -> Tensor:
        weights = torch.ones(len(targets), device=hidden.device) if weights is None else weights.float()
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[-len(blocks) :])
        losses, gradients = _pass(hidden, targets, weights, firsts, chunk, blocks, wanted)
        ctx.save_for_backward(*gradients)
        return (losses * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        to_hidden, *to_blocks = (None if found is None else found * scale.to(found.dtype) for found in gradients)
        return (to_hidden, None, None, None, None, *to_blocks)


def _pass(
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    firsts: tuple[int, ...],
    chunk: int,
    blocks: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses (T,), and the gradients of their weighted sum: [to hidden, to each block], None where not ``wanted``."""
    size = sum(len(block) for block in blocks)
    losses = torch.empty(len(targets), device=hidden.device)
    columns = targets - firsts[0]
    gradients: list[Tensor | None] = [torch.empty_like(hidden) if wanted[0] else None]
    fast = wider(hidden, *blocks)
    zeros = transposed_zeros if fast else accumulator
    gradients += [zeros(block) if asked else None for block, asked in zip(blocks, wanted[1:], strict=True)]
    buffer = torch.empty((min(chunk, len(targets)), size), dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(targets), chunk):
        part = slice(start, min(start + chunk, len(targets)))
        whole = fast and part.stop - part.start == chunk
        logits = buffer[: part.stop - part.start]
        multiply, add = (product, add_product) if whole else (torch.mm, accumulate)
        _logits(hidden[part], blocks, logits, multiply)
        column = columns[part, None]
        correct = logits.gather(1, column).float()
        peak = logits.amax(1, keepdim=True).float()
        probabilities = torch.softmax(logits, 1, out=logits)
        normaliser = peak - probabilities.amax(1, keepdim=True).float().log()
        losses[part] = (normaliser - correct).squeeze(1)
        if any(wanted):
            weight = weights[part, None].to(hidden.dtype)
            probabilities.scatter_add_(1, column, probabilities.new_full((len(column), 1), -1.0))
            _gradients(probabilities, hidden[part] * weight, weight, blocks, gradients, part, multiply, add)
    return losses, gradients


def _logits(hidden: Tensor, blocks: tuple[Tensor, ...], out: Tensor, multiply: Callable[..., Tensor]) -> None:
    offset = 0
    for block in blocks:
        multiply(hidden, block.T, out=out[:, offset : offset + len(block)])
        offset += len(block)


def _gradients(
    residual: Tensor,
    weighted: Tensor,
    weight: Tensor,
    blocks: tuple[Tensor, ...],
    gradients: list[Tensor | None],
    part: slice,
    multiply: Callable[..., Tensor],
    add: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    offset = 0
    to_hidden = None if gradients[0] is None else gradients[0][part]
    for block, to_block in zip(blocks, gradients[1:], strict=True):
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
