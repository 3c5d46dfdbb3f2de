"""What a history may be shown, as nodes of a trie: a search that leaves out dead nodes always fills its list.

A node is dead for a history if nothing below it may be shown to it. Lists for everybody are counted per node once a
search; those of each history (its own items, allow and deny lists) along the paths of the items they name, so their
cost is that of the lists. The items below a node are a range of the trie's order, so items sorted in that order come by
nodes at every depth, and equal neighbours are counted.

Legend: B histories, W beams, L children of a node at most, N items, n_d nodes of depth d (M + 1: the items).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.generative.trie import Trie
from recsys.ranking.filters import NO_PAIRS, Pairs, Shown


@dataclass(frozen=True)
class Nodes:
    """Nodes of one depth, each of one history."""

    owners: Tensor  # (n,) int64, ascending
    nodes: Tensor  # (n,) int64
    parents: Tensor  # (n,) int64, one depth up


class Reach:
    """Which nodes of ``trie`` lead to an item that each of ``count`` histories may be shown.

    Attributes:
        left: (B,) int64 items that each history may be shown.
    """

    def __init__(self, trie: Trie, shown: Shown | None, count: int) -> None:
        shown = Shown() if shown is None else shown
        self.trie, self.count, self.device = trie, count, trie.device
        self._open = self._shared(shown)  # (N,) bool by position in the order, None: all
        self._below = None if self._open is None else torch.cat([self._open.new_zeros(1), self._open]).long().cumsum(0)
        self.listed = None  # (B,) bool: histories that have a list of what is allowed
        if shown.allowed is not None and shown.unrestricted is not None:
            self.listed = torch.from_numpy(~shown.unrestricted).to(self.device)
        denied = self._keys(shown.denied)
        granted = self._keys(shown.allowed or NO_PAIRS)
        self.granted = granted[~torch.isin(granted, denied)]  # owner x N + position, ascending
        if self.listed is not None:
            denied = denied[~self.listed[denied // trie.num_items]]
        self.denied = denied
        total = torch.full(
            (count,), trie.num_items if self._below is None else int(self._below[-1]), device=self.device
        )
        self._hidden = self._per_history(self.denied)
        self.left = total - self._hidden
        if self.listed is not None:
            self.left = torch.where(self.listed, self._per_history(self.granted), self.left)

    @property
    def shared(self) -> bool:
        """Whether there are lists for everybody."""
        return self._open is not None

    def penalties(self, depth: int) -> Tensor | None:
        """(n_d, C) what is added to log-probabilities of the children of a node by code: 0, or -inf where there is none
        that may be shown to everybody; None where children stand in no table."""
        table = self.trie.tables[depth]
        if table is None:
            return None
        absent = table < 0
        if self._below is not None:
            absent |= ~self.alive(table.clamp(min=0).long(), depth + 1)
        return torch.zeros(table.shape, device=self.device).masked_fill_(absent, -torch.inf)

    def alive(self, nodes: Tensor, depth: int) -> Tensor:
        """Whether ``nodes`` (any shape) of ``depth`` have items below them that may be shown to everybody."""
        if self._below is None:
            return torch.ones_like(nodes, dtype=torch.bool)
        return self._items_below(nodes, depth) > 0

    def hide(self, scores: Tensor, depth: int, beams: Tensor, live: Tensor) -> None:
        """Set the scores (B, W, L) of children that are dead for their history alone to -infinity, in place.

        Args:
            depth: of ``beams`` (B, W), the nodes whose children are scored; those that are not ``live`` (B, W) count
                for nothing.
        """
        if self.listed is not None:
            hidden = self.listed[:, None, None].expand_as(scores).clone()
            hidden[self._at(self._granted(depth + 1), depth, beams, live)] = False
            scores.masked_fill_(hidden, -torch.inf)
        if len(self.denied):
            scores[self._at(self._dead(depth + 1), depth, beams, live)] = -torch.inf

    def items(self, leaves: Tensor, live: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
        """Items of ``leaves`` (B, W) that may be shown: number b x W + w of the beam, ascending, and row, (n,) both.

        Those of one beam come by row. At least the first ``most`` of each leaf are among them (None: all).
        """
        trie, width = self.trie, leaves.shape[1]
        owners = torch.arange(self.count, device=self.device).repeat_interleave(width)
        leaves, live = leaves.flatten(), live.flatten()
        ends = [trie.begin[-1][leaves + i].long() for i in (0, 1)]
        start, stop = ends if self._below is None else [self._below[end] for end in ends]
        if most is not None:
            stop = torch.minimum(stop, start + most + self._hidden[owners])
        listed = None if self.listed is None else self.listed[owners]
        if listed is not None:
            first, last = (torch.searchsorted(self.granted, owners * trie.num_items + end) for end in ends)
            last = last if most is None else torch.minimum(last, first + most)
            start, stop = torch.where(listed, first, start), torch.where(listed, last, stop)
        number = (stop - start) * live
        beams = torch.repeat_interleave(number)
        at = torch.arange(len(beams), device=self.device) + (start - number.cumsum(0) + number)[beams]
        position = at
        if self._open is not None:
            shared = self._open.nonzero().squeeze(1)
            position = shared[at.clamp(max=len(shared) - 1)] if len(shared) else at
        if listed is not None and len(self.granted):
            own = self.granted[at.clamp(max=len(self.granted) - 1)] % trie.num_items
            position = torch.where(listed[beams], own, position)
        kept = ~_among(self.denied, owners[beams] * trie.num_items + position)
        return beams[kept], trie.items[position[kept]].long()

    def _shared(self, shown: Shown) -> Tensor | None:
        """(N,) which positions may be shown to everybody; None: all."""
        if shown.allowed_to_all is None and not len(shown.denied_to_all):
            return None
        columns = torch.full((self.trie.num_items,), shown.allowed_to_all is None, device=self.device)
        if shown.allowed_to_all is not None:
            columns[torch.from_numpy(shown.allowed_to_all).to(self.device)] = True
        columns[torch.from_numpy(shown.denied_to_all).to(self.device)] = False
        return columns[self.trie.items.long() - 1]

    def _keys(self, pairs: Pairs) -> Tensor:
        """(n,) owner x N + position of what may be shown to everybody, ascending, each once."""
        owners = torch.from_numpy(np.asarray(pairs.owners, np.int64)).to(self.device)
        position = self.trie.position[torch.from_numpy(np.asarray(pairs.columns, np.int64)).to(self.device)].long()
        keys = owners * self.trie.num_items + position
        return (keys if self._open is None else keys[self._open[position]]).unique()

    def _per_history(self, keys: Tensor) -> Tensor:
        return torch.bincount(keys // self.trie.num_items, minlength=self.count)

    def _items_below(self, nodes: Tensor, depth: int) -> Tensor:
        """Items below ``nodes`` of ``depth`` that may be shown to everybody."""
        start, stop = (self.trie.begin[depth][nodes + i].long() for i in (0, 1))
        return stop - start if self._below is None else self._below[stop] - self._below[start]

    def _granted(self, depth: int) -> Nodes:
        """Nodes of ``depth`` above the items that the lists of what is allowed name."""
        return self._above(self.granted, depth)[0]

    def _dead(self, depth: int) -> Nodes:
        """Nodes of ``depth`` below which everything that everybody may be shown is denied to a history."""
        found, denied = self._above(self.denied, depth)
        dead = denied == self._items_below(found.nodes, depth)
        return Nodes(found.owners[dead], found.nodes[dead], found.parents[dead])

    def _above(self, keys: Tensor, depth: int) -> tuple[Nodes, Tensor]:
        """Distinct nodes of ``depth`` above items, and how many of the items lie below each."""
        owners, position = keys // self.trie.num_items, keys % self.trie.num_items
        size = self.trie.nodes[depth]
        found, number = torch.unique_consecutive(owners * size + self.trie.above(position, depth), return_counts=True)
        nodes = found % size
        return Nodes(found // size, nodes, self.trie.parents(nodes, depth)), number

    def _at(self, found: Nodes, depth: int, beams: Tensor, live: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the children ``found`` of ``beams`` stand in scores (B, W, L), those whose parent is a live beam."""
        size = self.trie.nodes[depth] + 1  # one more number than nodes, for beams that are not live
        first = torch.arange(self.count, device=self.device)[:, None] * size
        keys, order = (first + beams.masked_fill(~live, size - 1)).flatten().sort()
        wanted = found.owners * size + found.parents
        start, stop = torch.searchsorted(keys, wanted), torch.searchsorted(keys, wanted, right=True)
        number = stop - start  # beams on that parent, several where they are samples
        hit = torch.repeat_interleave(number)
        at = torch.arange(len(hit), device=self.device) + (start - number.cumsum(0) + number)[hit]
        beam, nodes = order[at], found.nodes[hit]
        if self.trie.tables[depth] is None:
            child = nodes - self.trie.first[depth][found.parents[hit]]
        else:
            child = self.trie.code[depth + 1][nodes].long()
        return beam // beams.shape[1], beam % beams.shape[1], child


def _among(ascending: Tensor, values: Tensor) -> Tensor:
    """Whether each of ``values`` is one of those that are ``ascending``."""
    if not len(ascending):
        return torch.zeros_like(values, dtype=torch.bool)
    at = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return ascending[at] == values
