"""What a decoder of sets is made of: layers that read a set of tokens and the history, whatever the order of the set.

The targets of a history share the keys and values of its states, each seeing those up to its own position, and so do
the beams of a search: these are made once per layer and never copied.

Legend: B histories, T targets, Q tokens that ask (of a target), S states of a history, n states of all, H heads, d
their width, D width, R histories of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.encoders.tokens import TokenMemory
from recsys.nn.blocks import GatedFeedForward
from recsys.nn.dropout import Dropout
from recsys.nn.t5 import grouped
from recsys.protocols import Encoded

Held = list[tuple[Tensor, Tensor]]  # keys and values (R, H, S, d) of each group of histories
Look = Callable[[int, Tensor], Tensor]  # layer, queries (m, Q, H, d) -> what they read of their histories


class Reading:
    """Which states of which history each of T targets sees.

    Args:
        encoded: the histories; their token states where the encoder gives these, else the states of their items.
        rows: (T,) ascending, the history of each target.
        positions: (T,), the position of the history that a target stands behind.
    """

    def __init__(self, encoded: Encoded, rows: Tensor, positions: Tensor) -> None:
        batch, given = encoded.batch, encoded.get(TokenMemory)
        if given is None:
            place = torch.arange(batch.ids.shape[1], device=rows.device).expand(batch.ids.shape)
            self.states, item = encoded.tokens, place.masked_fill(~batch.mask, -1)
        else:
            item = given.item
            self.states = given.states[item >= 0]
        sizes = [group.size for group in batch.groups]
        self.asked = grouped(torch.bincount(rows, minlength=len(batch)), sizes)
        self.read = grouped((item >= 0).sum(1), sizes)
        self.masks = self._masks(item, positions)

    def _masks(self, item: Tensor, positions: Tensor) -> list[Tensor]:
        """Of each group (R, 1, targets, S) bool: what they see. Each sees the first state, also where there is none."""
        masks, row, first = [], 0, 0
        for group, other in zip(self.asked, self.read, strict=True):
            own = item[row : row + group.size, None, : other.width]
            at = group.pad(positions[first : first + len(group.index)])[:, :, None]
            seen = (own >= 0) & (own <= at)
            seen[:, :, 0] = True
            masks.append(seen[:, None])
            row, first = row + group.size, first + len(group.index)
        return masks

    def held(self, pairs: Tensor) -> Held:
        """Keys and values (n, 2, H, d) of all states on the padded view of each group."""
        parts = pairs.split([len(group.index) for group in self.read])
        found = []
        for group, part in zip(self.read, parts, strict=True):
            keys, values = group.pad(part).permute(2, 0, 3, 1, 4)
            found.append((keys, values))
        return found

    def look(self, queries: Tensor, held: Held, dropout: float) -> Tensor:
        """(m, Q, H, d) what queries (m, Q, H, d), m a multiple of T, read of their histories."""
        shape = queries.shape
        counts = [len(group.index) for group in self.asked]
        wide = queries.reshape(sum(counts), -1, *shape[2:]) if sum(counts) else queries
        many = wide.shape[1]
        mixed = []
        for group, mask, part, (keys, values) in zip(self.asked, self.masks, wide.split(counts), held, strict=True):
            own = group.pad(part).flatten(1, 2).transpose(1, 2)  # (R, H, targets x Q, d)
            seen = F.scaled_dot_product_attention(
                own, keys, values, mask.repeat_interleave(many, 2) if many > 1 else mask, dropout_p=dropout
            )
            mixed.append(group.flatten(seen.transpose(1, 2).unflatten(1, (group.width, many))))
        return torch.cat(mixed).reshape(shape)


class SetLayer(nn.Module):
    """Attention to tokens, attention to the history, a gated feed-forward part; each behind a norm and added."""

    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads >= 1, found dim={dim}, num_heads={num_heads}")
        self.heads, self.dropout = (num_heads, dim // num_heads), dropout
        self.own_norm, self.look_norm, self.feed_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.key_value, self.output = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.look_query, self.look_output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.memory = nn.Linear(dim, 2 * dim)
        self.feed = GatedFeedForward(dim, hidden, dropout, "silu")
        self.drop = Dropout(dropout)

    def pairs(self, tokens: Tensor) -> Tensor:
        """Keys and values (m, K, 2, H, d) of tokens (m, K, D)."""
        return self.key_value(self.own_norm(tokens)).unflatten(-1, (2, *self.heads))

    def memories(self, states: Tensor) -> Tensor:
        """Keys and values (n, 2, H, d) of a history's states (n, D)."""
        return self.memory(states).unflatten(-1, (2, *self.heads))

    def forward(self, x: Tensor, pairs: Tensor, mask: Tensor | None, look: Callable[[Tensor], Tensor]) -> Tensor:
        """(m, Q, D) of tokens x (m, Q, D) that see ``pairs`` (m, K, 2, H, d) where ``mask`` (..., Q, K) allows."""
        queries = self.query(self.own_norm(x)).unflatten(-1, self.heads).transpose(1, 2)
        keys, values = pairs.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, mask, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.output(mixed.transpose(1, 2).flatten(2)))
        seen = look(self.look_query(self.look_norm(x)).unflatten(-1, self.heads))
        x = x + self.drop(self.look_output(seen.flatten(2)))
        return x + self.drop(self.feed(self.feed_norm(x)))


@dataclass(frozen=True)
class Beams:
    """What is known of B histories and of the sets that were begun for each."""

    reading: Reading
    held: list[Held]  # of each layer
    now: Tensor  # (B, D) the newest states
    chosen: Tensor  # (B, W, s) the tokens of each beam, in the order in which they were chosen
    past: list[Tensor]  # of each layer keys and values (B, W, s, 2, H, d) of earlier tokens, if their order counts
    state: Tensor | None = None  # (B, W, D) of what was asked last


def of_parents(parents: Tensor, values: Tensor) -> Tensor:
    """Values (B, W, ...) of the beams that ``parents`` (B, W') continue: (B, W', ...)."""
    index = parents.view(*parents.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))
