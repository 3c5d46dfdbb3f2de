"""Edits of histories: keep, delete, or insert items before a token; and the view that they make of a batch.

An operation belongs to a token. Items to insert are listed nearest to their anchor first, as an editor writes them, and
their list ends with the end token unless it is full (STEAM, WWW 2023; LACLRec, arXiv 2503.20232).

Legend: B histories, L longest, M most items inserted before one token, W = L (M + 1), N items; row N + 1 of the item
table is the mask, row N + 2 the end token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.data.batch import PAD, Batch

KEEP, DELETE, INSERT = 0, 1, 2
OPERATIONS = ("keep", "delete", "insert")
DEDUPS = ("none", "first")


def end_token(num_items: int) -> int:
    """The item row that ends a list of insertions: the second behind the items (the first is the mask)."""
    return num_items + 2


def assemble(
    batch: Batch, operations: Tensor, inserted: Tensor, num_items: int, max_length: int, dedup: str = "none"
) -> Batch:
    """The view that the edits make of ``batch``: per token its insertions, furthest first, then itself unless deleted.

    Whole-batch tensor operations. The newest ``max_length`` tokens stay; a history of which nothing is left is a
    lone end token; an empty history stays empty. Insertions have the time of the token they stand before.

    Args:
        operations: (B, L); padding is ignored.
        inserted: (B, L, M), nearest first; what stands behind an end token, or before no INSERT, is ignored.
        dedup: of equal items keep all ("none"), or the "first".
    """
    depth, end = inserted.shape[2] + 1, end_token(num_items)
    listed = (inserted == end).cumsum(2) == 0
    listed = listed & (inserted > PAD) & (inserted <= num_items) & (batch.mask & (operations == INSERT))[:, :, None]
    stays = batch.mask & (operations != DELETE) & (batch.ids <= num_items)
    ids = torch.cat([inserted.flip(2), batch.ids[:, :, None]], 2).flatten(1)  # (B, L (M + 1))
    valid = torch.cat([listed.flip(2), stays[:, :, None]], 2).flatten(1)
    times = None if batch.times is None else batch.times.repeat_interleave(depth, 1)
    if dedup != "none":
        valid = valid & ~_repeats(ids * valid)
    total = valid.sum(1)
    alone = (total == 0) & (batch.lengths > 0)
    lengths = total.clamp(max=max_length) + alone.long()
    width = max(int(lengths.max()), 1) if len(batch) else 1
    column = valid.cumsum(1) - 1 - (total - max_length).clamp(min=0)[:, None]
    column = torch.where(valid & (column >= 0), column, width)

    def lay(values: Tensor, lone: Tensor) -> Tensor:
        laid = values.new_zeros(len(batch), width + 1).scatter(1, column, values)[:, :width].contiguous()
        laid[:, 0] = torch.where(alone, lone, laid[:, 0])
        return laid

    newest = (batch.lengths - 1).clamp(min=0)[:, None]
    return Batch(
        rows=batch.rows,
        users=batch.users,
        ids=lay(ids, torch.full_like(batch.lengths, end)),
        lengths=lengths,
        times=None if batch.times is None or times is None else lay(times, batch.times.gather(1, newest).squeeze(1)),
        query_time=batch.query_time,
    )


def _repeats(ids: Tensor) -> Tensor:
    """(B, W) bool: rows that stand earlier in the same line already; 0 never repeats."""
    order = ids.sort(dim=1, stable=True)
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = (order.values[:, 1:] == order.values[:, :-1]) & (order.values[:, 1:] > PAD)
    return torch.zeros_like(again).scatter(1, order.indices, again)
