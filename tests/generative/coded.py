"""Decoders and items for tests of searches, and what an exhaustive search finds.

Legend: B histories, N items, M levels, W beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.ranking.filters import Shown


class Coded:
    """Items with codes: what a search reads of a table."""

    def __init__(self, codes: Any, sizes: list[int]) -> None:
        self.sizes = list(sizes)
        self.codes = torch.cat([torch.zeros(1, len(sizes), dtype=torch.int64), torch.as_tensor(np.array(codes)).long()])
        self.num_items = len(self.codes) - 1


@dataclass
class Asked:
    """Stands for the states of histories: a vector of each."""

    users: Tensor  # (B, D)


class Recurrent:
    """A decoder with a state per beam: what comes next depends on all codes before it, in their order.

    It refuses what breaks the protocol: tokens of another level, parents that are not among the beams before.
    """

    ordered = True

    def __init__(self, sizes: list[int], dim: int = 8, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.sizes, self.first = list(sizes), [1 + sum(sizes[:level]) for level in range(len(sizes))]
        self.tokens = torch.randn(sum(sizes) + 2, dim, generator=draw, dtype=torch.float64)
        self.turn = torch.randn(dim, dim, generator=draw, dtype=torch.float64) / dim**0.5
        self.heads = [2 * torch.randn(dim, size, generator=draw, dtype=torch.float64) for size in sizes]
        self.widths: list[int] = []

    def begin(self, encoded: Asked, items: Any) -> tuple[Tensor, int]:
        self.widths = []
        return encoded.users.double()[:, None], -1

    def step(self, memory: Any, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Any]:
        state, level = memory
        if tokens is None:
            assert parents is None and level == -1
        else:
            assert tokens.shape == parents.shape and parents.min() >= 0 and parents.max() < state.shape[1]
            assert (tokens >= self.first[level]).all() and (tokens < self.first[level] + self.sizes[level]).all()
            self.widths.append(tokens.shape[1])
            state = state.gather(1, parents[:, :, None].expand(-1, -1, state.shape[2]))
            state = torch.tanh(state @ self.turn + self.tokens[tokens])
        level += 1
        return (state @ self.heads[level]).log_softmax(-1).float(), (state, level)


class Tabled:
    """A decoder whose log-probabilities are given per history and level: sums of halves, so that equal is equal."""

    ordered = True

    def __init__(self, tables: list[Tensor]) -> None:
        self.tables = tables  # of each level (B, C)

    def begin(self, encoded: Any, items: Any) -> int:
        return 0

    def step(self, memory: int, items: Any, tokens: Tensor | None, parents: Tensor | None) -> tuple[Tensor, int]:
        width = 1 if tokens is None else tokens.shape[1]
        return self.tables[memory][:, None].expand(-1, width, -1), memory + 1


def told(decoder: Any, encoded: Asked, items: Coded) -> Tensor:
    """(B, N) log-probabilities of all items, each history and item on its own."""
    found = torch.zeros(len(encoded.users), items.num_items)
    for user in range(len(encoded.users)):
        for item in range(items.num_items):
            memory, tokens, first = decoder.begin(Asked(encoded.users[user : user + 1]), items), None, 1
            for code, size in zip(items.codes[item + 1].tolist(), items.sizes):
                parents = None if tokens is None else torch.zeros(1, 1, dtype=torch.int64)
                log_probs, memory = decoder.step(memory, items, tokens, parents)
                found[user, item] += log_probs[0, 0, code]
                tokens, first = torch.tensor([[first + code]]), first + size
    return found


def ranked(scores: Tensor, shown: Shown | None, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Rows and scores of the ``k`` best of ``scores`` (B, N) that may be shown, equal ones by row."""
    scores = scores.clone()
    if shown is not None:
        shown.hide(scores)
    rows, values = [], []
    for one in scores.tolist():
        order = sorted((-value, row) for row, value in enumerate(one, 1) if value > -np.inf)[:k]
        rows.append([row for _, row in order])
        values.append([-value for value, _ in order])
    return rows, values


def lists(rows: Tensor, scores: Tensor) -> tuple[list[list[int]], list[list[float]]]:
    """The lists of a search without what is behind their ends."""
    assert torch.equal(rows > 0, scores > -torch.inf)
    kept = [int((one > 0).sum()) for one in rows]
    assert all(bool((one[:n] > 0).all()) for one, n in zip(rows, kept))
    return [one[:n].tolist() for one, n in zip(rows, kept)], [one[:n].tolist() for one, n in zip(scores, kept)]
