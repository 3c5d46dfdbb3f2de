"""TIGER's encoder (Rajput et al. 2023, "Recommender Systems with Generative Retrieval"): a history as code tokens.

Each item is the M tokens of its semantic id, so that a history of n items is a sequence of M n tokens that layers of T5
(:mod:`recsys.nn.t5`) read. Two forms:

- ``causal=False``, as in the paper: every token sees the whole history, an end token stands behind it, and training
  takes one row per prefix (``LastItem``).
- ``causal=True``: a token sees the tokens of its own item and of earlier items, so that the states at an item are those
  of the prefix that ends there. All positions of a history are trained in one pass (``NextItem``). There is no end
  token, which would have to stand behind every prefix. This is ours, not the paper's.

Training of the published sizes takes 3 to 4 times the targets per second in one pass on amazon-beauty (6.7 items are
read for a target there), 9 times on ml-100k with 20 items (``python benchmarks/speed/generate.py --part train``).

A decoder reads the states of all tokens (:class:`TokenMemory`); the state of an item is that of its last token.

Legend: B histories, L longest, T items of all histories, M levels, S tokens of the longest history, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch, Group
from recsys.nn.t5 import T5Stack, grouped, mixing
from recsys.protocols import Context, Encoded


@dataclass(frozen=True)
class TokenMemory:
    """States of all tokens of a batch, those of a history first in its row."""

    given_by = "TokenEncoder(...)"

    states: Tensor  # (B, S, D), zeros at padding
    item: Tensor  # (B, S) int64: the position in the history that each token belongs to, -1 for padding


class TokenEncoder(nn.Module):
    """Histories to the states of their code tokens; needs ``CodeItems``, and gives :class:`TokenMemory`.

    The published sizes are the defaults (with a width of 128 these have 4.8 million parameters, 13 are reported, which
    384 would have); released reproductions take 6 layers and a dropout of .15 or .2.

    Args:
        dim: width D, the same as the item table's.
        num_heads, head_dim: of attention; their product need not be the width.
        ff: width inside the feed-forward part.
        max_length: items read, the newest.
        causal: see above; with True it ``sees`` the past alone.

    Raises:
        ValueError: a number out of range.
    """

    gives = frozenset({TokenMemory})
    reads_behind = False  # a mask has no codes

    def __init__(
        self,
        dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 6,
        head_dim: int = 64,
        ff: int = 1024,
        dropout: float = 0.1,
        max_length: int = 20,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, found {max_length}")
        self.dim, self.num_layers, self.num_heads, self.head_dim = dim, num_layers, num_heads, head_dim
        self.ff, self.dropout, self.max_length, self.causal = ff, dropout, max_length, causal
        self.sees = "past" if causal else "all"
        self.stack = T5Stack(dim, num_layers, num_heads, head_dim, ff, dropout, bidirectional=True, looks=False)

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        self.stack.reset()

    def forward(self, batch: Batch, items: Any) -> Encoded:
        """States of all items (T, D), and of all tokens.

        Raises:
            TypeError: the items have no codes.
            ValueError: the item table has another width, or the batch has rows that are no items (a mask).
        """
        check_codes(items, self.dim, type(self).__name__)
        numbers, lengths = self._tokens(batch, items)
        levels = items.token_table.shape[1]
        sizes = [group.size for group in batch.groups]
        groups = grouped(lengths, sizes)
        place = torch.arange(numbers.shape[1], device=lengths.device)
        real = place < lengths[:, None]
        flat = Group(len(real), real.shape[1], real.flatten().nonzero().squeeze(1))
        x = F.embedding(numbers.flatten()[flat.index], items.tokens)
        biases = self._biases([group.width for group in groups], groups, levels)
        states = flat.pad(self.stack(x, mixing(groups, biases, self.stack.drop)))
        at = batch.flat // batch.ids.shape[1] * numbers.shape[1] + (batch.positions + 1) * levels - 1
        newest = (batch.lengths - 1).clamp(min=0)[:, None]
        item = torch.minimum(place // levels, newest).masked_fill(~real, -1)
        return Encoded(batch, states.flatten(0, 1)[at], (TokenMemory(states, item),))

    def _tokens(self, batch: Batch, items: Any) -> tuple[Tensor, Tensor]:
        """Token numbers (B, S) of the histories, and how many tokens each has (B,)."""
        if not batch.ids.is_cuda and batch.ids.numel() and int(batch.ids.max()) > items.num_items:
            raise ValueError(
                f"rows up to {int(batch.ids.max())} are read, and only the {items.num_items:,} items have codes: leave "
                "out what writes a mask or an end token into histories"
            )
        numbers: Tensor = items.token_table[batch.ids].flatten(1)
        lengths = batch.lengths * items.token_table.shape[1]
        if self.causal:
            return numbers, lengths
        numbers = F.pad(numbers, (0, 1)).scatter(1, lengths[:, None], items.tokens.shape[0] - 1)
        return numbers, lengths + 1

    def _biases(self, widths: list[int], groups: list[Group], levels: int) -> list[Tensor]:
        """What is added to the scores of each group, (1 or R, H, W, W)."""
        device = self.stack.after.weight.device
        place = torch.arange(max(widths, default=1), device=device)
        whole = self.stack.positions(place, place)
        if self.causal:
            item = place // levels
            whole = whole.masked_fill(item > item[:, None], -torch.inf)  # right padding is never seen
        biases = []
        for group, width in zip(groups, widths, strict=True):
            bias = whole[:, :, :width, :width]
            if not self.causal and len(group.index) < group.size * width:
                real = group.pad(torch.ones_like(group.index, dtype=torch.bool))
                bias = bias.masked_fill(~real[:, None, None], -torch.inf)
            biases.append(bias)
        return biases


def check_codes(items: Any, dim: int, reader: str) -> None:
    """Raise unless ``items`` has code tokens of width ``dim``.

    Raises:
        TypeError: it has no codes.
        ValueError: it has another width.
    """
    if not hasattr(items, "token_table"):
        raise TypeError(f"{reader} reads the codes of items, and {type(items).__name__} has none: use CodeItems")
    if items.dim != dim:
        raise ValueError(f"the item table has width {items.dim}, {reader} {dim}: give both the same dim")
