"""Reading on behind encoded histories: every wanted token is continued by tokens of its own, over kept keys and values.

A new token attends to what its wanted token sees of the history (its row up to there, or all of it) and to the new
tokens of the same continuation up to itself; the history never sees the new tokens, so its keys and values stand. The
padded keys and values that the encoder attended with are kept as they are: they are neither laid out anew nor copied
when a token is added.

Legend: T real tokens, Q wanted tokens, q those of one group, R rows of the group, W its width, S most wanted tokens of
one of its rows, K new tokens so far, H heads, C channels of a head, D = H C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.batch import Batch, Group
from recsys.nn.kernels.available import compiled


@dataclass(frozen=True)
class Place:
    """The wanted tokens of one group of rows, laid out as S a row, and what each sees of its row."""

    layout: Group  # lays (q, ...) out as (R, S, ...)
    reach: Tensor  # (q,) int64: how many tokens of its row, from the oldest on, each sees
    width: int  # W

    @cached_property
    def visible(self) -> Tensor | None:
        """(R, 1, S, W) bool: what each sees; None if that is the whole row for all."""
        reach = self.pad(self.reach)
        visible = torch.arange(self.width, device=reach.device) < reach[:, None, :, None]
        return None if bool(visible.all()) else visible

    def pad(self, tokens: Tensor) -> Tensor:
        """(q, ...) to (R, S, ...), without a copy where all rows have S."""
        layout = self.layout
        full = len(layout.index) == layout.size * layout.width
        return tokens.unflatten(0, (layout.size, layout.width)) if full else layout.pad(tokens)

    def flatten(self, padded: Tensor) -> Tensor:
        """(R, S, ...) back to (q, ...)."""
        full = len(self.layout.index) == self.layout.size * self.layout.width
        return padded.flatten(0, 1) if full else self.layout.flatten(padded)


@dataclass(frozen=True)
class Past:
    """Keys and values of one attention layer: those of the histories, by group, and those of the new tokens."""

    rows: list[Tensor]  # (R, W, 2 D) of each group
    own: tuple[Tensor, ...] = ()  # (Q, 2 D) of each of the K

    def append(self, key_value: Tensor) -> Past:
        """A past with one more token (Q, 2 D) in it; this one stays as it is, so that continuations can fork."""
        return replace(self, own=(*self.own, key_value))


@dataclass(frozen=True)
class Memory:
    """What an encoder of attention layers needs to read on."""

    places: list[Place]  # by group
    layers: list[Past]


def places_of(batch: Batch, causal: bool) -> list[Place]:
    """Where ``batch.wanted_tokens`` sits in the groups of ``batch``, and how far each wanted token sees."""
    row = batch.flat[batch.wanted_tokens] // batch.ids.shape[1]  # (Q,) ascending
    counts = torch.bincount(row, minlength=len(batch))  # (B,)
    number = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # within its row
    reach = batch.positions[batch.wanted_tokens] + 1 if causal else batch.lengths[row]
    places, start, done = [], 0, 0
    for group in batch.groups:
        own = counts[start : start + group.size]
        most, stop = max(int(own.max()), 1) if group.size else 1, done + int(own.sum())
        index = (row[done:stop] - start) * most + number[done:stop]
        places.append(Place(Group(group.size, most, index), reach[done:stop], group.width))
        start, done = start + group.size, stop
    return places


def read(query: Tensor, own: Tensor, row: Tensor, place: Place, dropout: float = 0.0) -> Tensor:
    """(q, D): attention of one new token per continuation over its row and its continuation.

    Args:
        query: (q, H, C).
        own: (q, K, 2, H, C) keys and values of the continuation, the new token's own last.
        row: (R, W, 2 D) keys and values of the rows.
        dropout: on the attention weights.

    One token a row without gradients, as in serving, is a compiled loop where that can run.
    """
    row = row.unflatten(2, own.shape[2:])  # (R, W, 2, H, C)
    query = query * query.shape[-1] ** -0.5
    if place.layout.width == 1 and not dropout and not torch.is_grad_enabled():
        loops = compiled("auto", "continuation", query.shape[2], query)
        if loops is not None:
            found: Tensor = loops.forward(query, own, row, place.layout.index, place.reach)
            return found.flatten(1)
    keys, values = own.unbind(2)  # (q, K, H, C)
    row_keys, row_values = row.unbind(2)  # (R, W, H, C)
    on_row = _scores(place.pad(query), row_keys)  # (R, H, S, W)
    if place.visible is not None:
        on_row = on_row.masked_fill(~place.visible, -torch.inf)
    on_own = place.pad((query.unsqueeze(1) * keys).sum(3)).permute(0, 3, 1, 2)  # (R, H, S, K)
    weights = F.dropout(torch.cat([on_row, on_own], 3).softmax(3), dropout)
    on_row, on_own = weights.split([row.shape[1], own.shape[1]], 3)
    mixed = place.flatten(_mix(on_row, row_values))  # (q, H, C)
    mixed = mixed + (place.flatten(on_own.permute(0, 2, 3, 1)).unsqueeze(3) * values).sum(1)
    return mixed.flatten(1)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """(R, H, S, W) products of queries (R, S, H, C) with keys (R, W, H, C).

    One token a row takes H queries that are zero outside their head against keys of width D: that is H times the
    arithmetic, but the keys are read once, where they lie, and reading them is what one token costs.
    """
    if query.shape[1] > 1:
        return query.transpose(1, 2) @ keys.permute(0, 2, 3, 1)
    heads = torch.eye(query.shape[2], dtype=query.dtype, device=query.device)
    apart = (query * heads.unsqueeze(2)).flatten(2)  # (R, H, D)
    return torch.bmm(apart, keys.flatten(2).transpose(1, 2)).unsqueeze(2)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """(R, S, H, C) sums of values (R, W, H, C) by weights (R, H, S, W); one token a row as in :func:`_scores`."""
    if weights.shape[2] > 1:
        return (weights @ values.transpose(1, 2)).transpose(1, 2)
    every = torch.bmm(weights.squeeze(2), values.flatten(2)).unflatten(2, values.shape[2:])  # (R, H, H, C)
    return every.diagonal(dim1=1, dim2=2).transpose(1, 2).unsqueeze(1)
