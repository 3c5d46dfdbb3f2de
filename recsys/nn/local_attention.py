"""Attention of each token to ``side`` tokens on each side and to the first token, as in Longformer (arXiv 2004.05150).

Short documents: one fused attention under a band mask. Long ones: queries go in blocks of 32, and the keys of a block
are the tokens that its band reaches and the first one, so work and memory grow with the length instead of its square.
Both compute the same.

Legend: B documents, H heads, S tokens of the longest, D width of a head, W = 32 + 2 side + 1 keys of a block.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
WORTH = 3  # times as long as the keys of a block: from here on two thirds of all pairs or more are never scored


def local_attention(real: Tensor, side: int) -> Whole | Blocks:
    """The form for documents of which the tokens ``real`` (B, S) are no padding; one serves all layers."""
    blocks = real.shape[1] >= WORTH * (BLOCK + 2 * side + 1)
    return Blocks(real, side) if blocks else Whole(real, side)


class Whole:
    """All pairs are scored, those outside of the band masked out."""

    def __init__(self, real: Tensor, side: int) -> None:
        self.visible = band(real.shape[1], side, real.device) & real[:, None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """(B, H, S, D) from (B, H, S, D) each."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.visible, dropout_p=dropout_p)


class Blocks:
    """Each block of queries is a document of its own, with W keys."""

    def __init__(self, real: Tensor, side: int) -> None:
        self.side, self.length = side, real.shape[1]
        self.padding = -self.length % BLOCK
        count = (self.length + self.padding) // BLOCK
        query = torch.arange(BLOCK, device=real.device)[:, None]
        key = torch.arange(-side, BLOCK + side, device=real.device)  # places, from the block's first token
        near = (query - key).abs() <= side
        behind = torch.arange(count, device=real.device)[:, None] * BLOCK + key > 0  # the first token comes once
        there = F.pad(real, (side, side + self.padding)).unfold(1, BLOCK + 2 * side, BLOCK) & behind
        self.visible = F.pad(near & there[:, :, None], (1, 0), value=True).flatten(0, 1)[:, None]  # (B n, 1, 32, W)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """(B, H, S, D) from (B, H, S, D) each."""
        blocks = F.pad(query, (0, 0, 0, self.padding)).unflatten(2, (-1, BLOCK)).transpose(1, 2)
        keys, values = self._reached(key, blocks.shape[1]), self._reached(value, blocks.shape[1])
        mixed = F.scaled_dot_product_attention(
            blocks.flatten(0, 1), keys, values, attn_mask=self.visible, dropout_p=dropout_p
        )
        return mixed.unflatten(0, blocks.shape[:2]).transpose(1, 2).flatten(2, 3)[:, :, : self.length]

    def _reached(self, x: Tensor, count: int) -> Tensor:
        """(B n, H, W, D): of each of the n blocks the first token and the tokens from ``side`` before to after it."""
        around = F.pad(x, (0, 0, self.side, self.side + self.padding)).unfold(2, BLOCK + 2 * self.side, BLOCK)
        first = x[:, None, :, :1].expand(-1, count, -1, -1, -1)
        return torch.cat([first, around.permute(0, 2, 1, 4, 3)], 3).flatten(0, 1)


@lru_cache(maxsize=64)
def band(length: int, side: int, device: torch.device) -> Tensor:
    """(S, S) bool: token i sees tokens i - side .. i + side, and the first one; made once per length."""
    with torch.inference_mode(False):
        place = torch.arange(length, device=device)
        return ((place[:, None] - place).abs() <= side) | (place == 0)
