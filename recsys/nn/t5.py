"""Layers of T5 (Raffel et al. 2020, arXiv 1910.10683): what TIGER and those after it are made of.

    x = x + Drop(W_o Attention(RMSNorm(x)))        a = softmax(q . k + b(distance)), not divided by sqrt(d)
    x = x + Drop(W_o Attention(RMSNorm(x), memory)), of a decoder: without b
    x = x + Drop(W_2 Drop(relu(W_1 RMSNorm(x))))

No layer has a bias vector and no norm takes the mean off. b is learned per head and *bucket* of the distance of two
tokens: near distances have a bucket each, far ones share buckets whose width grows with the logarithm of the distance.
All layers of a stack share it. Dropout is where the published code has it: on what enters, on attention weights, on
what each sub-layer adds, inside the feed-forward part, and on what leaves. Equal to ``transformers`` with equal weights
(``tests/generative/test_t5_parity.py``).

What we do differently: projections work on the real tokens alone, queries, keys and values are one product, and
attention is handed in by who calls a stack (:data:`Mix`, :data:`Look`), so that padded views, prefixes that share what
they read, and a growing beam are one code.

Legend: n tokens of all sequences, R sequences, Q and K tokens that ask and are read, H heads, d their width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Group
from recsys.nn.dropout import Dropout

Mix = Callable[[int, Tensor], Tensor]  # layer, its queries, keys and values (n, 3, H, d) -> mixed values (n, H, d)
Look = Callable[[int, Tensor], Tensor]  # layer, its queries (n, H, d) -> mixed values of the memory (n, H, d)


def buckets(distance: Tensor, bidirectional: bool, count: int = 32, furthest: int = 128) -> Tensor:
    """The bucket of each distance (any shape, key minus query, int64).

    In both directions the first half of the buckets is for keys at or before the query and the other for those behind
    it; otherwise a key behind the query counts as at its place. Of the buckets of a direction the first half holds one
    distance each; the others reach to ``furthest``, evenly in the logarithm, and the last holds all beyond.

    >>> buckets(torch.tensor([-200, -9, -3, 0, 3]), bidirectional=True).tolist()
    [15, 8, 3, 0, 19]
    """
    if bidirectional:
        count //= 2
        first = (distance > 0) * count
        steps = distance.abs()
    else:
        first = torch.zeros_like(distance)
        steps = (-distance).clamp(min=0)
    single = count // 2
    grown = (steps.clamp(min=1).float() / single).log() / math.log(furthest / single) * (count - single)
    return first + torch.where(steps < single, steps, (single + grown.long()).clamp(max=count - 1))


def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, drop: Dropout) -> Tensor:
    """(R, H, Q, d) of queries (R, H, Q, d), keys and values (R, H, K, d); ``bias`` broadcasts to (R, H, Q, K).

    Each query must see a key. The fused kernels of the CPU drop no attention weights and give no gradient of the bias,
    so that training takes the products themselves there.
    """
    if queries.is_cuda or not (drop.training and drop.p):
        dropped = drop.p if drop.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, bias, dropout_p=dropped, scale=1.0)
    scores = queries @ keys.transpose(2, 3)
    return drop((scores if bias is None else scores + bias).softmax(-1)) @ values


def grouped(lengths: Tensor, sizes: Sequence[int]) -> list[Group]:
    """Consecutive rows with ``lengths`` (R,) of their own, ``sizes`` to a group, as ``Batch.groups`` cuts them."""
    groups = []
    for rows in lengths.split(list(sizes)):
        wide = max(int(rows.max()), 1) if len(rows) else 1
        inside = torch.arange(wide, device=rows.device) < rows[:, None]
        groups.append(Group(len(rows), wide, inside.flatten().nonzero().squeeze(1)))
    return groups


class RelativePositions(nn.Module):
    """b: a number per head for each distance of two tokens, by :func:`buckets`."""

    def __init__(self, num_heads: int, bidirectional: bool, count: int = 32, furthest: int = 128) -> None:
        super().__init__()
        self.bidirectional, self.count, self.furthest = bidirectional, count, furthest
        self.table = nn.Embedding(count, num_heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(1, H, Q, K) of the positions (Q,) and (K,) of tokens."""
        chosen = buckets(keys - queries[:, None], self.bidirectional, self.count, self.furthest)
        return self.table(chosen).permute(2, 0, 1)[None].contiguous()


class Heads(nn.Module):
    """Projections to queries, keys and values of H heads in one product, and back.

    Args:
        asks: how many of the three come from the tokens that ask: 3, or 1 (queries) where a memory is read.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, asks: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        inner = num_heads * head_dim
        self.enter = nn.Linear(dim, asks * inner, bias=False)
        self.memory = nn.Linear(dim, (3 - asks) * inner, bias=False) if asks < 3 else None
        self.leave = nn.Linear(inner, dim, bias=False)

    def reset(self) -> None:
        """Queries N(0, (D d)^-1/2), keys and values N(0, D^-1/2), the way back N(0, (H d)^-1/2)."""
        inner, dim = self.num_heads * self.head_dim, self.enter.in_features
        nn.init.normal_(self.enter.weight[:inner], std=(dim * self.head_dim) ** -0.5)
        for weight in (self.enter.weight[inner:], None if self.memory is None else self.memory.weight):
            if weight is not None:
                nn.init.normal_(weight, std=dim**-0.5)
        nn.init.normal_(self.leave.weight, std=inner**-0.5)

    def split(self, made: Tensor) -> Tensor:
        """(n, j H d) to (n, j, H, d)."""
        return made.unflatten(1, (-1, self.num_heads, self.head_dim))


class T5Block(nn.Module):
    """One block: self-attention, attention to a memory if it ``looks``, and the feed-forward part."""

    def __init__(
        self, dim: int, num_heads: int, head_dim: int, ff: int, dropout: float, looks: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.own, self.own_norm = Heads(dim, num_heads, head_dim, 3), nn.RMSNorm(dim, norm_eps)
        self.look = Heads(dim, num_heads, head_dim, 1) if looks else None
        self.look_norm = nn.RMSNorm(dim, norm_eps) if looks else None
        self.inner, self.outer = nn.Linear(dim, ff, bias=False), nn.Linear(ff, dim, bias=False)
        self.feed_norm = nn.RMSNorm(dim, norm_eps)
        self.drop = Dropout(dropout)

    def reset(self) -> None:
        """Fresh weights, from torch's generator."""
        for heads in (self.own, self.look):
            if heads is not None:
                heads.reset()
        nn.init.normal_(self.inner.weight, std=self.inner.in_features**-0.5)
        nn.init.normal_(self.outer.weight, std=self.outer.in_features**-0.5)
        for norm in (self.own_norm, self.look_norm, self.feed_norm):
            if norm is not None:
                norm.reset_parameters()

    def forward(self, x: Tensor, mix: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, D) to (n, D)."""
        own = mix(self.own.split(self.own.enter(self.own_norm(x))))
        x = x + self.drop(self.own.leave(own.flatten(1)))
        if self.look is not None and self.look_norm is not None:
            seen = look(self.look.split(self.look.enter(self.look_norm(x)))[:, 0])
            x = x + self.drop(self.look.leave(seen.flatten(1)))
        return x + self.drop(self.outer(self.drop(F.relu(self.inner(self.feed_norm(x)), inplace=True))))


class T5Stack(nn.Module):
    """Blocks, the bias of distances that they share, and the norm behind them.

    Args:
        dim, num_heads, head_dim, ff: D, H, d (H d need not be D), and the width inside the feed-forward part.
        bidirectional: tokens see those behind them, as in an encoder.
        looks: the blocks read a memory as well, as those of a decoder.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        ff: int,
        dropout: float,
        bidirectional: bool,
        looks: bool,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if min(dim, num_layers, num_heads, head_dim, ff) < 1:
            raise ValueError(
                "dim, num_layers, num_heads, head_dim and ff must be at least 1, found "
                f"{dim}, {num_layers}, {num_heads}, {head_dim} and {ff}"
            )
        self.positions = RelativePositions(num_heads, bidirectional)
        self.blocks = nn.ModuleList(
            T5Block(dim, num_heads, head_dim, ff, dropout, looks, norm_eps) for _ in range(num_layers)
        )
        self.after, self.drop = nn.RMSNorm(dim, norm_eps), Dropout(dropout)

    def reset(self) -> None:
        """Fresh weights, from torch's generator, as T5 begins: deviations without 1/sqrt(d) in attention."""
        nn.init.normal_(self.positions.table.weight, std=self.after.normalized_shape[0] ** -0.5)
        for block in self.blocks:
            block.reset()  # type: ignore[operator]
        self.after.reset_parameters()

    def memories(self, states: Tensor) -> list[Tensor]:
        """Keys and values (n, 2, H, d) that each block reads of a memory of states (n, D)."""
        return [block.look.split(block.look.memory(states)) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, mix: Mix, look: Look | None = None) -> Tensor:
        """(n, D) to (n, D)."""
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, lambda made, i=layer: mix(i, made), lambda asked, i=layer: look(i, asked))  # type: ignore[misc]
        return self.drop(self.after(x))


def mixing(groups: Sequence[Group], biases: Sequence[Tensor], drop: Dropout) -> Mix:
    """Self-attention of right-padded sequences, the bias of each group (1 or R, H, W, W)."""
    counts = [len(group.index) for group in groups]

    def mix(layer: int, made: Tensor) -> Tensor:
        mixed = []
        for group, bias, part in zip(groups, biases, made.split(counts), strict=True):
            queries, keys, values = group.pad(part).permute(2, 0, 3, 1, 4)  # each (R, H, W, d)
            mixed.append(group.flatten(attention(queries, keys, values, bias, drop).transpose(1, 2)))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    return mix
