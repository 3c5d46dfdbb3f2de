"""Attention of each token to ``side`` tokens on each side and to the first token, as in Longformer (arXiv 2004.05150).

Short documents: one fused attention under a band mask. Long ones: queries go in chunks of 32, and the keys of a chunk
are the tokens that its band reaches and the first one, so work and memory grow with the length instead of its square.
Both compute the same.

Legend: B documents, H heads, S tokens of the longest, D width of a head, W = 32 + 2 side + 1 keys of a chunk.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
WORTH = 3  # times as long as the keys of a chunk: from here on two thirds of all pairs or more are never scored


def local_attention(real: Tensor, side: int) -> Whole | Chunks:
    """The form for documents of which the tokens ``real`` (B, S) are not padding; one serves all layers."""
    chunks = real.shape[1] >= WORTH * (CHUNK + 2 * side + 1)
    return Chunks(real, side) if chunks else Whole(real, side)


class Whole:
    """All pairs are scored, those outside of the band masked out."""

    def __init__(self, real: Tensor, side: int) -> None:
        self.visible = band(real.shape[1], side, real.device) & real[:, None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """(B, H, S, D) from (B, H, S, D) each."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.visible, dropout_p=dropout_p)


class Chunks:
    """Each chunk of queries is a document of its own, with W keys."""

    def __init__(self, real: Tensor, side: int) -> None:
        self.side, self.length = side, real.shape[1]
        self.padding = -self.length % CHUNK
        count = (self.length + self.padding) // CHUNK
        query = torch.arange(CHUNK, device=real.device)[:, None]
        key = torch.arange(-side, CHUNK + side, device=real.device)  # positions, from the chunk's first token
        near = (query - key).abs() <= side
        behind = torch.arange(count, device=real.device)[:, None] * CHUNK + key > 0  # the first token comes once
        there = F.pad(real, (side, side + self.padding)).unfold(1, CHUNK + 2 * side, CHUNK) & behind
        self.visible = F.pad(near & there[:, :, None], (1, 0), value=True).flatten(0, 1)[:, None]  # (B n, 1, 32, W)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """(B, H, S, D) from (B, H, S, D) each."""
        chunks = F.pad(query, (0, 0, 0, self.padding)).unflatten(2, (-1, CHUNK)).transpose(1, 2)
        keys, values = self._reached(key, chunks.shape[1]), self._reached(value, chunks.shape[1])
        mixed = F.scaled_dot_product_attention(
            chunks.flatten(0, 1), keys, values, attn_mask=self.visible, dropout_p=dropout_p
        )
        return mixed.unflatten(0, chunks.shape[:2]).transpose(1, 2).flatten(2, 3)[:, :, : self.length]

    def _reached(self, x: Tensor, count: int) -> Tensor:
        """(B n, H, W, D): of each of the n chunks the first token and the tokens from ``side`` before to after it."""
        around = F.pad(x, (0, 0, self.side, self.side + self.padding)).unfold(2, CHUNK + 2 * self.side, CHUNK)
        first = x[:, None, :, :1].expand(-1, count, -1, -1, -1)
        return torch.cat([first, around.permute(0, 2, 1, 4, 3)], 3).flatten(0, 1)


@lru_cache(maxsize=64)
def band(length: int, side: int, device: torch.device) -> Tensor:
    """(S, S) bool: token i sees tokens i - side .. i + side, and the first one; made once per length."""
    with torch.inference_mode(False):
        at = torch.arange(length, device=device)
        return ((at[:, None] - at).abs() <= side) | (at == 0)
