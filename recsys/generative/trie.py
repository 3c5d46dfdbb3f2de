"""The codes of all items as a trie in flat arrays, in which a search finds what exists.

Items are sorted by their codes, equal ones by row; the items below a node are then a range of that order, and the
children of a node a range of the nodes one level down. So three integers a node say all: where its items begin, where
its children begin, its code. Nothing here depends on how often a code is used, and no node is a Python object.

Where nodes of a level and codes of the next are few, and a node may have a good part of those codes (the first two
levels of four codes of 256), a table of children by code stands beside the ranges: a search then adds a row of it
instead of picking children one by one.

Measured with ``python benchmarks/speed/generate.py --part trie`` on one core: a million items of four codes are built
in 0.3 s of processor time and take 29 MB; a level of a search costs 1.3 to 1.5 times what it does among 10,000 items.

Legend: N items, M levels, n_d nodes of depth d (depth 0 is the root, M the leaves), n distinct codes or pairs.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

TABLE = 1 << 17  # entries up to which the children of a level stand in a table as well
SHARE = 4  # one over the share of the codes that some node must have as children: with fewer, ranges are quicker


class Trie:
    """Which codes follow which, and the items behind them; all tensors are int32.

    Args:
        codes: (N, M) codes of the item rows 1..N, code m in 0..sizes[m]-1. Items may share all their codes.
        sizes: codes per level.

    Raises:
        ValueError: there are no items, ``sizes`` is of another length, or a code is outside its level.

    >>> trie = Trie(np.array([[0, 1], [1, 0], [0, 1]]), [2, 2])
    >>> trie.nodes, trie.items.tolist(), trie.first[2].tolist()
    ([1, 2, 2, 3], [1, 3, 2], [0, 2, 3])
    """

    num_items: int
    sizes: list[int]
    nodes: list[int]  # of each depth 0..M; the items are depth M + 1
    items: Tensor  # (N,) item rows by codes, equal ones by row
    position: Tensor  # (N,) where each item stands in that order
    begin: list[Tensor]  # depth 0..M: (n_d + 1,) where the items below each node begin in that order
    first: list[Tensor]  # depth 0..M: (n_d + 1,) where the children of each node begin one depth down, items at last
    code: list[Tensor]  # depth 0..M: (n_d,) the code by which a node is reached; 0 at the root
    tables: list[Tensor | None]  # depth 0..M-1: (n_d, sizes[d]) child by code, -1: there is none

    def __init__(self, codes: np.ndarray, sizes: Sequence[int]) -> None:
        codes, self.sizes = np.asarray(codes), [int(size) for size in sizes]
        _check(codes, self.sizes)
        self.num_items, levels = codes.shape
        order = np.lexsort(_words(codes, self.sizes)[::-1])
        ordered = codes[order]
        fresh = np.zeros(self.num_items, bool)  # whether an item begins a node
        fresh[0] = True
        begins, code = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        for level in range(levels):
            column = ordered[:, level]
            fresh[1:] |= column[1:] != column[:-1]
            begins.append(np.flatnonzero(fresh))
            code.append(column[begins[-1]])
        ends = [np.append(begin, self.num_items) for begin in begins]
        firsts = [np.searchsorted(below, begin) for begin, below in itertools.pairwise(ends)]
        self.nodes = [*(len(begin) for begin in begins), self.num_items]
        position = np.empty(self.num_items, np.int32)
        position[order] = np.arange(self.num_items, dtype=np.int32)
        self.position = torch.from_numpy(position)
        self.items = _int32(order + 1)
        self.begin, self.code = [*map(_int32, ends)], [*map(_int32, code)]
        self.first = [*map(_int32, firsts), self.begin[-1]]
        self.tables = [self._table(depth) for depth in range(levels)]

    @property
    def levels(self) -> int:
        """Codes per item."""
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.items.device

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum({one.data_ptr(): one.nbytes for one in self._tensors()}.values())

    def to(self, device: torch.device | str) -> Trie:
        """The same on another device; itself if it is there."""
        if torch.device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.items, moved.position = self.items.to(device), self.position.to(device)
        moved.begin, moved.first, moved.code = (
            [one.to(device) for one in some] for some in (self.begin, self.first, self.code)
        )
        moved.tables = [None if one is None else one.to(device) for one in self.tables]
        return moved

    def above(self, positions: Tensor, depth: int) -> Tensor:
        """Nodes (n,) int64 of ``depth`` that items lie below, given by their ``positions`` (n,) in the order."""
        if depth > self.levels:
            return positions.long()
        return torch.searchsorted(self.begin[depth], positions.to(torch.int32), right=True) - 1

    def parents(self, nodes: Tensor, depth: int) -> Tensor:
        """Nodes (n,) int64 one depth up of ``nodes`` (n,) of ``depth``, which is 1 or more."""
        return torch.searchsorted(self.first[depth - 1], nodes.to(torch.int32), right=True) - 1

    def paths(self, rows: Tensor) -> Tensor:
        """Nodes (n, M) int64 of the depths 1..M above the item ``rows`` (n,)."""
        positions = self.position[rows.long() - 1]
        return torch.stack([self.above(positions, depth) for depth in range(1, self.levels + 1)], 1)

    def _table(self, depth: int) -> Tensor | None:
        number, size = self.first[depth].diff().long(), self.sizes[depth]
        if self.nodes[depth] * size > TABLE or int(number.max()) * SHARE < size:
            return None
        table = torch.full((self.nodes[depth], size), -1, dtype=torch.int32)
        parents = torch.repeat_interleave(torch.arange(self.nodes[depth]), number)
        table[parents, self.code[depth + 1].long()] = torch.arange(self.nodes[depth + 1], dtype=torch.int32)
        return table

    def _tensors(self) -> list[Tensor]:
        tables = [one for one in self.tables if one is not None]
        return [self.items, self.position, *self.begin, *self.first, *self.code, *tables]


_known: weakref.WeakKeyDictionary[Any, tuple[Tensor, int, Trie]] = weakref.WeakKeyDictionary()


def trie_of(items: Any, device: torch.device | str | None = None) -> Trie:
    """The trie of a table with ``codes`` (N+1, M), row 0 for padding, and ``sizes``, on a device (None: of the codes).

    It is built once per table, and again when the table got other codes.
    """
    codes: Tensor = items.codes
    device = codes.device if device is None else torch.device(device)
    version = 0 if codes.is_inference() else codes._version
    known = _known.get(items)
    if known is not None and known[0] is codes and known[1] == version:
        trie = known[2]
        if trie.device == device:
            return trie
    else:
        trie = Trie(codes[1:].cpu().numpy(), items.sizes)
    _known[items] = codes, version, trie.to(device)
    return _known[items][2]


def _check(codes: np.ndarray, sizes: list[int]) -> None:
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes must be (N, M), M codes for each of N items; found shape {codes.shape}")
    if codes.shape[1] != len(sizes):
        raise ValueError(f"sizes must say how many codes each of the {codes.shape[1]} levels has; found {sizes}")
    wrong = (codes < 0) | (codes >= np.array(sizes))
    if wrong.any():
        item, level = (int(one) for one in np.argwhere(wrong)[0])
        raise ValueError(
            f"{int(wrong.any(1).sum()):,} of {len(codes):,} items have codes outside their level, first item row "
            f"{item + 1}: {codes[item].tolist()} at level {level + 1} of sizes {sizes}; take the sizes that the codes "
            "were made with"
        )


def _words(codes: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """The codes as few whole numbers per item, the more significant first: one for four levels of 256."""
    words, room = [np.zeros(len(codes), np.int64)], 1 << 62
    for column, size in zip(codes.T, sizes):
        if room < size:
            words.append(np.zeros(len(codes), np.int64))
            room = 1 << 62
        words[-1] = words[-1] * size + column
        room //= max(size, 1)
    return words


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
