"""Multi-head attention on right-padded histories, causal or over the whole history, and on from there token by token.

Right padding makes causality enough: a real token never sees the padding behind it, so no mask is built and fused
kernels can run. Attention in both directions masks the padded keys of a group, where it has any. Projections work on
the T real tokens, only the attention itself on the padded view. Legend: B histories, L padded length, T real tokens,
Q wanted tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch, Group
from recsys.nn.continuation import Past, Place, read


class Attention(nn.Module):
    """Multi-head attention whose queries may come from another tensor than keys and values.

    Args:
        output_projection: the W_O that most ports have and the SASRec authors' code lacks.
        dropout: on the attention weights. Fused CPU kernels have none, so a value above 0 takes the slow path there.
        causal: a token attends to itself and the tokens before it; otherwise to all tokens of its history.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float = 0.0, output_projection: bool = True, causal: bool = True
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads >= 1, found dim={dim}, num_heads={num_heads}")
        self.dim, self.num_heads, self.dropout, self.causal = dim, num_heads, dropout, causal
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim) if output_projection else nn.Identity()

    def forward(self, query: Tensor, source: Tensor, batch: Batch) -> Tensor:
        """(T, D) from queries (T, D) and the tensor that keys and values come from (T, D)."""
        return self.begin(query, source, batch)[0]

    def begin(self, query: Tensor, source: Tensor, batch: Batch) -> tuple[Tensor, Past]:
        """The same, and the keys and values that later tokens read."""
        return self._begin(query, source, batch.groups, batch.groups)

    def newest(self, query: Tensor, source: Tensor, batch: Batch) -> tuple[Tensor, Past]:
        """The same at the newest token alone of each history that has one: (Q, D) from its query (Q, D)."""
        return self._begin(query, source, batch.groups, batch.newest_groups)

    def _begin(
        self, query: Tensor, source: Tensor, groups: Sequence[Group], asked: Sequence[Group]
    ) -> tuple[Tensor, Past]:
        """From queries on the view ``asked`` and sources on the view ``groups`` of the same rows."""
        counts, own = [len(group.index) for group in groups], [len(group.index) for group in asked]
        queries = [group.pad(one) for one, group in zip(self.query(query).split(own), asked, strict=True)]
        pairs = zip(self.key_value(source).split(counts), groups, strict=True)
        rows = [group.pad(pair) for pair, group in pairs]
        del pairs  # the flat ones need not stay in memory beside the padded ones
        mixed = [self._attend(*views) for views in zip(queries, rows, groups, asked, strict=True)]
        return self.output(mixed[0] if len(mixed) == 1 else torch.cat(mixed)), Past(rows)

    def extend(self, query: Tensor, source: Tensor, past: Past, places: Sequence[Place]) -> tuple[Tensor, Past]:
        """(Q, D) of one more token behind each wanted one, from its query and source (Q, D), and the past with it."""
        past = past.append(self.key_value(source))
        heads = self.num_heads, self.dim // self.num_heads
        own = torch.stack(past.own, 1).unflatten(2, (2, *heads))  # (Q, K, 2, H, D / H)
        counts = [len(place.layout.index) for place in places]
        queries = self.query(query).unflatten(1, heads).split(counts)
        dropout = self.dropout if self.training else 0.0
        mixed = [
            read(query, pairs, row, place, dropout)
            for query, pairs, row, place in zip(queries, own.split(counts), past.rows, places, strict=True)
        ]
        return self.output(torch.cat(mixed)), past

    def _attend(self, query: Tensor, row: Tensor, group: Group, asked: Group) -> Tensor:
        heads = self.num_heads, self.dim // self.num_heads
        queries = query.unflatten(2, heads).transpose(1, 2)  # (R, H, S, D / H), S asked for a row
        keys, values = row.unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)  # (R, H, W, D / H)
        causal = self.causal and asked is group
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if causal else _real_keys(group),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return asked.flatten(mixed.transpose(1, 2).flatten(2))


def _real_keys(group: Group) -> Tensor | None:
    """(B, 1, 1, L) bool, True at real tokens; None if there is no padding. An empty row sees its first padding."""
    if len(group.index) == group.size * group.width:
        return None
    real = group.pad(torch.ones_like(group.index, dtype=torch.bool))
    real[:, 0] = True  # a softmax over nothing is not a number
    return real[:, None, None]
