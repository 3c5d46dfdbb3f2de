"""Sets of codes as paths among the items there are: which items a begun set leaves, and which codes may come next.

A trie knows one order of the codes; here each path may visit the codebooks in an order of its own, so a beam keeps the
list of items that have all its codes. The first code takes its list from an inverted index, shared and not copied; each
further code filters the list of its beam, which shrinks by about the number of codes. Lists hold only items that may be
shown, so a beam never leads to nothing, and k beams lead to k items at least. Work and memory are bounded by the lists
of the beams, which are cut into blocks.

Legend: N items (columns 0..N-1), B histories, W beams, M codebooks, K codes of the largest, C codes of all, n members
of lists.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.ranking.filters import Pairs, Shown

BLOCK = 1 << 22  # members of lists looked at at a time


class SetIndex:
    """The items of each code.

    Args:
        codes: (N, M) int64 codes of the items.
        sizes: (M,) codes per codebook; code c of codebook r is column ``first[r] + c`` of all C.
    """

    def __init__(self, codes: Tensor, sizes: list[int]) -> None:
        self.sizes = sizes
        small = torch.int16 if max(sizes) < 2**15 else torch.int32
        self.codes = codes.T.to(small).contiguous()  # (M, N): a codebook's column stays in the cache
        self.size = torch.tensor(sizes, device=codes.device)
        self.first = self.size.cumsum(0) - self.size
        total = sum(sizes)
        counts = torch.zeros(total, dtype=torch.int64, device=codes.device)
        members = []
        for level in range(len(sizes)):
            order = codes[:, level].argsort(stable=True)
            members.append(order.int())
            counts += torch.bincount(codes[:, level] + self.first[level], minlength=total)
        self.members = torch.cat(members) if members else codes.new_zeros(0, dtype=torch.int32)
        self.ends = counts.cumsum(0)
        self.begins = self.ends - counts

    @property
    def num_items(self) -> int:
        """N."""
        return self.codes.shape[1]

    def at(self, levels: Tensor, items: Tensor) -> Tensor:
        """Codes (n,) int64 of a codebook each, ``levels`` (n,), of the item columns (n,)."""
        return self.codes.flatten()[levels * self.num_items + items].long()

    def columns(self, items: Tensor) -> Tensor:
        """(n, M) columns among all C of the codes of item columns (n,)."""
        return self.codes[:, items].T + self.first


_known: weakref.WeakKeyDictionary[Any, tuple[Tensor, int, SetIndex]] = weakref.WeakKeyDictionary()


def index_of(items: Any) -> SetIndex:
    """The items of each code of a table with ``codes`` (N+1, M), row 0 for padding, and ``sizes``.

    It is made once per table, and again when the table got other codes or moved.
    """
    codes: Tensor = items.codes
    version = 0 if codes.is_inference() else codes._version
    known = _known.get(items)
    if known is None or known[0] is not codes or known[1] != version:
        _known[items] = known = codes, version, SetIndex(codes[1:], items.sizes)
    return known[2]


class Reach:
    """What may be shown to each of B histories, as far as it is asked for: nothing is made of size B x N."""

    def __init__(self, index: SetIndex, shown: Shown | None, histories: int) -> None:
        self.index, self.histories = index, histories
        device, count = index.codes.device, index.num_items
        self.open = torch.ones(count, dtype=torch.bool, device=device)  # (N,) to everybody
        shown = Shown() if shown is None else shown
        if shown.allowed_to_all is not None:
            self.open.fill_(False)
            self.open[torch.from_numpy(shown.allowed_to_all).to(device)] = True
        if len(shown.denied_to_all):
            self.open[torch.from_numpy(shown.denied_to_all).to(device)] = False
        self.everything = shown.allowed_to_all is None and not len(shown.denied_to_all)
        self.denied = _keys(shown.denied, count, device)
        self.allowed: Tensor | None = None
        self.free = torch.ones(histories, dtype=torch.bool, device=device)  # (B,) no list of what is allowed
        if shown.allowed is not None and shown.unrestricted is not None:
            self.allowed = _keys(shown.allowed, count, device)
            self.free = torch.from_numpy(shown.unrestricted).to(device)

    def keeps(self, history: Tensor, item: Tensor) -> Tensor:
        """(n,) bool: whether each item column may be shown to the history."""
        keys = history * self.index.num_items + item
        kept = ~_among(keys, self.denied)
        if not self.everything:
            kept &= self.open[item]
        return kept if self.allowed is None else kept & (self.free[history] | _among(keys, self.allowed))

    @property
    def counts(self) -> Tensor:
        """(B, C) int64: items that each code leads each history to."""
        index, total = self.index, sum(self.index.sizes)
        found = index.ends - index.begins
        if not self.everything:
            parts = zip(index.codes[:, self.open].long(), index.sizes, strict=True)
            found = torch.cat([torch.bincount(codes, minlength=size) for codes, size in parts])
        counts = found.expand(self.histories, -1) * self.free[:, None]
        for keys, sign in self._changes():
            history, item = keys // index.num_items, keys % index.num_items
            places = history[:, None] * total + index.columns(item)
            ones = torch.full_like(places, sign).flatten()
            counts = counts.flatten().index_add(0, places.flatten(), ones).view(self.histories, total)
        return counts

    @property
    def available(self) -> Tensor:
        """(B,) int64: items that may be shown to each history."""
        found = self.open.sum() * self.free
        for keys, sign in self._changes():
            history = keys // self.index.num_items
            found = found.index_add(0, history, torch.full_like(history, sign))
        return found

    def _changes(self) -> Iterator[tuple[Tensor, int]]:
        """Keys of what is taken from the histories that are free, and of what is left to the others."""
        history, item = self.denied // self.index.num_items, self.denied % self.index.num_items
        yield self.denied[self.free[history] & self.open[item]], -1
        if self.allowed is not None:
            history, item = self.allowed // self.index.num_items, self.allowed % self.index.num_items
            yield self.allowed[~self.free[history] & self.keeps(history, item)], 1


class Lists:
    """The items of each of B x W beams, as ranges of one array; of beams of one code, ranges of the index."""

    def __init__(
        self, index: SetIndex, reach: Reach, begins: Tensor, ends: Tensor, members: Tensor, whole: bool
    ) -> None:
        self.index, self.reach = index, reach
        self.begins, self.ends, self.members = begins, ends, members  # (B, W), (B, W), (n,) item columns
        self.whole = whole  # whether members hold what may not be shown, too

    @classmethod
    def first(cls, index: SetIndex, reach: Reach, columns: Tensor, alive: Tensor) -> Lists:
        """The lists of beams of one code each: ``columns`` (B, W) of all C."""
        begins = index.begins[columns]
        return cls(index, reach, begins, torch.where(alive, index.ends[columns], begins), index.members, True)

    def blocks(self, beams: Tensor, shown: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Of ``beams`` (m,), numbers of 0..BW-1: which of the m and which item, (n,) each, some beams at a time.

        Args:
            shown: leave out what may not be shown.
        """
        begins, ends = self.begins.flatten()[beams], self.ends.flatten()[beams]
        lengths = ends - begins
        sums = lengths.cumsum(0).cpu().numpy()
        first = 0
        while first < len(sums):
            done = sums[first - 1] if first else 0
            last = max(int(np.searchsorted(sums, done + BLOCK, side="right")), first + 1)
            own = lengths[first:last]
            owner = torch.arange(first, last, device=own.device).repeat_interleave(own)
            shift = (begins[first:last] - (own.cumsum(0) - own)).repeat_interleave(own)
            item = self.members[shift + torch.arange(len(owner), device=own.device)].long()
            if self.whole and shown:
                kept = self.reach.keeps(beams[owner] // self.begins.shape[1], item)
                owner, item = owner[kept], item[kept]
            yield owner, item
            first = last

    def allowed(self, levels: Tensor) -> Tensor:
        """(B, W, J, K) bool: codes of the codebooks ``levels`` (B, W, J) that the items of each beam have."""
        histories, width = levels.shape[:2]
        size = max(self.index.sizes)
        counts = torch.zeros(histories * width * size, dtype=torch.int64, device=levels.device)
        found = []
        quick = self.whole and self.reach.allowed is None  # what is denied to a history is little, and taken off
        for level in levels.flatten(0, 1).unbind(1):
            counts.zero_()
            for owner, item in self.blocks(torch.arange(len(level), device=levels.device), shown=not quick):
                if quick and not self.reach.everything:
                    kept = self.reach.open[item]
                    owner, item = owner[kept], item[kept]
                counts += torch.bincount(owner * size + self.index.at(level[owner], item), minlength=len(counts))
            if quick:
                counts -= self._denied(level, size)
            found.append(counts.view(histories, width, size) > 0)
        return torch.stack(found, 2)

    def _denied(self, level: Tensor, size: int) -> Tensor:
        """(B W K) how many items of each code of the codebooks ``level`` (B W,) are denied to the history of a beam."""
        count, width = self.index.num_items, self.begins.shape[1]
        history, item = self.reach.denied // count, self.reach.denied % count
        kept = self.reach.open[item]
        history, item = history[kept], item[kept]
        beam = history[:, None] * width + torch.arange(width, device=level.device)  # (n, W)
        held = self._columns[history][:, :, None] == self.index.columns(item)[:, None]  # (n, W, M)
        pair, at = held.any(2).nonzero(as_tuple=True)
        own = beam[pair, at]
        return torch.bincount(own * size + self.index.at(level[own], item[pair]), minlength=len(level) * size)

    @property
    def _columns(self) -> Tensor:
        """(B, W) the one code of each beam among all C, -1 of a beam that is none."""
        found = torch.searchsorted(self.index.begins, self.begins, right=True) - 1
        return torch.where(self.ends > self.begins, found, -1)

    def filtered(self, parents: Tensor, levels: Tensor, codes: Tensor, alive: Tensor) -> Lists:
        """The lists of beams (B, W') that add a code to those of their ``parents``; of dead ones empty lists."""
        histories, width = parents.shape
        beams = parents + torch.arange(histories, device=parents.device)[:, None] * self.begins.shape[1]
        chosen = alive.flatten().nonzero().squeeze(1)
        level, code, beam = levels.flatten()[chosen], codes.flatten()[chosen], beams.flatten()[chosen]
        counts = torch.zeros(histories * width, dtype=torch.int64, device=parents.device)
        kept = []
        for owner, item in self.blocks(beam, shown=False):
            has = (self.index.at(level[owner], item) == code[owner]).nonzero().squeeze(1)
            owner, item = owner[has], item[has]
            if self.whole:
                may = self.reach.keeps(beam[owner] // self.begins.shape[1], item)
                owner, item = owner[may], item[may]
            counts += torch.bincount(chosen[owner], minlength=len(counts))
            kept.append(item.int())
        members = torch.cat(kept) if kept else self.members[:0]
        ends = counts.cumsum(0)
        shape = (histories, width)
        return Lists(self.index, self.reach, (ends - counts).view(shape), ends.view(shape), members, False)


def found_items(lists: Lists, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The items of whole sets: rows (B, k) and scores (B, k) of the k best.

    Best first, equal scores by item row; 0 and -inf behind the end. ``scores`` (B, W) are those of the beams.
    """
    histories, width = scores.shape
    none = torch.zeros(0, dtype=torch.int64, device=scores.device)
    owners, items = [none], [none]
    for owner, item in lists.blocks(torch.arange(histories * width, device=scores.device)):
        owners.append(owner)
        items.append(item)
    owner, item = torch.cat(owners), torch.cat(items)
    item, order = item.sort()
    owner = owner[order]
    value, order = scores.flatten()[owner].sort(descending=True, stable=True)
    item, owner = item[order], owner[order]
    history, order = (owner // width).sort(stable=True)
    item, value = item[order], value[order]
    counts = torch.bincount(history, minlength=histories)
    place = torch.arange(len(history), device=scores.device) - (counts.cumsum(0) - counts)[history]
    kept = place < k
    rows = torch.zeros(histories, k, dtype=torch.int64, device=scores.device)
    values = scores.new_full((histories, k), -torch.inf)
    rows[history[kept], place[kept]] = item[kept] + 1
    values[history[kept], place[kept]] = value[kept]
    return rows, values


def _keys(pairs: Pairs, count: int, device: torch.device) -> Tensor:
    """Sorted distinct numbers of the pairs of history and item column."""
    return torch.from_numpy(np.unique(pairs.owners * count + pairs.columns)).to(device)


def _among(keys: Tensor, known: Tensor) -> Tensor:
    """Whether each of ``keys`` (n,) is among the sorted ``known``."""
    if not len(known):
        return torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    at = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return known[at] == keys
