"""Causal multi-head attention on right-padded histories: no mask is built, so fused kernels can run.

Right padding makes causality enough: a real token never sees the padding behind it. Projections work on the T real
tokens, only the attention itself on the padded view. Legend: B histories, L padded length, T real tokens, D width,
H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch, Group


class CausalAttention(nn.Module):
    """Multi-head attention whose queries may come from another tensor than keys and values.

    Args:
        output_projection: the W_O that most ports have and the SASRec authors' code lacks.
        dropout: on the attention weights. Fused CPU kernels have none, so a value above 0 takes the slow path there.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, output_projection: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads, found dim={dim}, num_heads={num_heads}")
        self.dim, self.num_heads, self.dropout = dim, num_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim) if output_projection else nn.Identity()

    def forward(self, query: Tensor, source: Tensor, batch: Batch) -> Tensor:
        """(T, D) from queries (T, D) and the tensor that keys and values come from (T, D)."""
        counts = [len(group.index) for group in batch.groups]
        queries, pairs = self.query(query).split(counts), self.key_value(source).split(counts)
        mixed = [self._attend(*tokens) for tokens in zip(queries, pairs, batch.groups, strict=True)]
        return self.output(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _attend(self, query: Tensor, key_value: Tensor, group: Group) -> Tensor:
        shape = group.size, group.width, -1, self.num_heads, self.dim // self.num_heads
        (queries,) = group.pad(query).view(shape).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, D / H)
        keys, values = group.pad(key_value).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return group.flatten(mixed.transpose(1, 2).reshape(group.size, group.width, self.dim))
