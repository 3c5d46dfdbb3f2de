"""Beam search among the items there are: the most probable codes, level by level, as items.

    score(w, c) = score(w) + log p(c | history, codes of w)        for the children c of beam w in the trie

The ``width`` best of all children of all beams of a history go on. Scores are joint log-probabilities of the decoder,
never normalised over what exists or may be shown, so the score of an item is what :func:`exact_log_probs` tells, and a
beam as wide as the catalogue ranks exactly. Every id found exists; ids of equal codes are all found, and come by item
row. What a history may not be shown is left out on the way (:mod:`recsys.generative.reach`): each beam that goes on
leads to an item that may be shown, so a list of k has k items where there are k.

Beams, histories and children are dimensions of tensors; there is a loop over the levels only. Work and memory of a
level grow with the beams and their children, not with the catalogue.

Legend: B histories, W beams, M levels, N items, C candidates or codes of a level, K cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.generative.children import children
from recsys.generative.reach import Reach
from recsys.generative.trie import Trie, trie_of
from recsys.generative.widening import Tally, until_full
from recsys.protocols import Decoder, Encoded
from recsys.ranking.filters import Shown
from recsys.ranking.ties import best

NUMBERS = 1 << 24  # log-probabilities that a decoder gives at a time, where all items or many candidates are scored


class Beam(nn.Module):
    """The ``k`` most probable items of each history, found by ``width`` beams.

    A list longer than ``width`` is searched with as many beams as it has items. Where beams end in codes that the
    decoder gives no probability, the histories concerned are searched again with twice as many, and so on; an item of
    probability zero is never listed. ``tally`` counts that.

    Args:
        width: beams. Twice the longest list and more costs little quality; see ``exact_log_probs`` to measure it.

    Raises:
        ValueError: ``width`` is below 1.
    """

    ordered = True

    def __init__(self, width: int = 50) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"a beam search needs width >= 1, found {width}")
        self.width = width
        self.tally = Tally()

    @torch.no_grad()
    def forward(
        self, decoder: Decoder, encoded: Encoded, items: Any, shown: Shown | None, k: int
    ) -> tuple[Tensor, Tensor]:
        """Item rows (B, K) int64 and log-probabilities (B, K) float32, best first, equal ones by row; K = min(k, N).

        Behind the end of a list the row is 0 and the score -infinity.

        Args:
            items: a table with ``codes`` and ``sizes``.
            shown: what may be shown to the histories; None: everything.

        Raises:
            ValueError: ``k`` is below 1, or log-probabilities are NaN or of a wrong shape.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k}")
        search = _Search(decoder, encoded, items, shown)
        trie = search.trie
        k, leaves = min(k, trie.num_items), trie.nodes[-2]
        if not search.reach.count:
            return trie.items.new_zeros(0, k, dtype=torch.int64), torch.zeros(0, k, device=trie.device)
        width, wanted = min(max(self.width, k), leaves), search.reach.left.clamp(max=k)
        return until_full(
            lambda beams, again: search(beams, k, trim=again), wanted, width, leaves, self.tally, width > self.width
        )


class _Search:
    """The search for some histories, which can be done with one number of beams and another."""

    def __init__(self, decoder: Decoder, encoded: Encoded, items: Any, shown: Shown | None) -> None:
        self.decoder, self.encoded, self.items = decoder, encoded, items
        self._begun: tuple[Tensor, Any] | None = begun(decoder, encoded, items)
        log_probs = self._begun[0]
        self.trie = trie_of(items, log_probs.device)
        self.reach = Reach(self.trie, shown, len(log_probs))
        self.offsets = offsets(self.trie.sizes)

    def __call__(self, width: int, k: int, trim: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, k), scores (B, k), and (B,) whether more beams could find more, which ``trim`` makes it look at."""
        log_probs, memory = self._begun or begun(self.decoder, self.encoded, self.items)
        self._begun = None  # a decoder may write into its memory
        beams = torch.zeros(len(log_probs), 1, dtype=torch.int64, device=log_probs.device)
        scores, more = beams.float(), beams[:, 0] > 0
        for depth in range(self.trie.levels):
            found = children(self.reach, depth, beams, scores > -torch.inf, log_probs)
            candidates = found.scores.add_(scores[:, :, None]).flatten(1)
            wide = width
            if trim:
                number = (candidates > -torch.inf).sum(1)
                more |= number > width
                wide = min(width, max(int(number.max()), 1))
            scores, columns = best(candidates, wide)
            parents, beams, codes = found.take(columns)
            if depth + 1 < self.trie.levels:
                log_probs, memory = self.decoder.step(memory, self.items, codes + self.offsets[depth], parents)
        refuse_nan(scores)
        return *self._listed(beams, scores, k), more

    def _listed(self, leaves: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Item rows (B, k) and scores (B, k) of the items of ``leaves`` (B, W), best first, equal ones by row."""
        count, width = leaves.shape
        beams, rows = self.reach.items(leaves, scores > -torch.inf, k)
        keys, order = ((beams // width) * (self.trie.num_items + 1) + rows).sort()  # by history and row
        owners, beams, rows = keys // (self.trie.num_items + 1), beams[order], rows[order]
        number = torch.bincount(owners, minlength=count)
        at = torch.arange(len(rows), device=rows.device) - (number.cumsum(0) - number)[owners]
        room = max(k, int(number.max()))
        listed = rows.new_zeros(count, room)
        listed[owners, at] = rows
        values = scores.new_full((count, room), -torch.inf)
        values[owners, at] = scores.flatten()[beams]
        values, columns = best(values, k)
        return listed.gather(1, columns), values


def begun(decoder: Decoder, encoded: Encoded, items: Any) -> tuple[Tensor, Any]:
    """Log-probabilities (B, 1, C) of the first codes, and the decoder's memory."""
    return decoder.step(decoder.begin(encoded, items), items, None, None)


def offsets(sizes: Sequence[int]) -> list[int]:
    """Of each level what makes a code a token: token 0 is the start, token 1 the first code of the first level."""
    return [1 + sum(sizes[:level]) for level in range(len(sizes))]


def exact_log_probs(decoder: Decoder, encoded: Encoded, items: Any, rows: Tensor) -> Tensor:
    """Log-probabilities (B, C) float32 of candidate item ``rows`` (B, C) for each history; -inf for row 0.

    Each candidate is a beam that is told its codes, so this holds for any of them, whatever a search finds.
    """
    codes = items.codes.to(rows.device)[rows]  # (B, C, M)
    first, memory = begun(decoder, encoded, items)
    together = max(1, NUMBERS // (max(items.sizes) * max(len(rows), 1)))
    found = []
    for start in range(0, rows.shape[1], together):
        if start:
            first, memory = begun(decoder, encoded, items)
        found.append(_told(decoder, items, codes[:, start : start + together], first, memory))
    scores = torch.cat(found, 1) if found else first.new_zeros(rows.shape)
    return scores.masked_fill(rows == 0, -torch.inf)


def _told(decoder: Decoder, items: Any, codes: Tensor, log_probs: Tensor, memory: Any) -> Tensor:
    """Log-probabilities (B, C) of ``codes`` (B, C, M), after those (B, 1, K) of the first level."""
    parents = torch.zeros_like(codes[:, :, 0])
    scores = torch.zeros(parents.shape, device=log_probs.device)
    for level, offset in enumerate(offsets(items.sizes)):
        own = log_probs.float().expand(-1, codes.shape[1], -1).gather(2, codes[:, :, level : level + 1])
        scores = scores + own.squeeze(2)
        if level + 1 < codes.shape[2]:
            log_probs, memory = decoder.step(memory, items, codes[:, :, level] + offset, parents)
            parents = torch.arange(codes.shape[1], device=parents.device).expand_as(parents)
    return scores


def all_log_probs(decoder: Decoder, encoded: Encoded, items: Any, numbers: int = NUMBERS) -> Tensor:
    """Log-probabilities (B, N) float32 of all items, column j for item row j + 1.

    Codes that items share at the front are decoded once, but for those on the borders of chunks. It costs as much as a
    beam as wide as the catalogue: for small ones, and to measure on some histories what a beam misses.

    Args:
        numbers: log-probabilities that the decoder gives at a time, at most (but for one item).
    """
    first, memory = begun(decoder, encoded, items)
    trie = trie_of(items, first.device)
    found = first.new_empty((len(first), trie.num_items), dtype=torch.float32)
    together = max(1, numbers // (max(trie.sizes) * max(len(first), 1)))
    for start in range(0, trie.num_items, together):
        if start:
            first, memory = begun(decoder, encoded, items)
        stop = min(start + together, trie.num_items)
        found[:, trie.items[start:stop].long() - 1] = _ranged(decoder, items, trie, start, stop, first, memory)
    return found


def _ranged(decoder: Decoder, items: Any, trie: Trie, start: int, stop: int, log_probs: Tensor, memory: Any) -> Tensor:
    """Log-probabilities (B, n) of the items at the positions ``start``..``stop`` of the trie's order."""
    ends = torch.tensor([start, stop - 1], device=trie.device)
    scores = torch.zeros(len(log_probs), 1, device=trie.device)
    low = 0
    for depth, offset in enumerate(offsets(trie.sizes)):
        first, last = trie.above(ends, depth + 1).tolist()
        nodes = torch.arange(first, last + 1, device=trie.device)
        parents = trie.parents(nodes, depth + 1) - low
        codes = trie.code[depth + 1][first : last + 1].long()
        scores = scores[:, parents] + log_probs.float()[:, parents, codes]
        low = first
        if depth + 1 < trie.levels:
            tokens = (codes + offset).expand(len(log_probs), -1)
            log_probs, memory = decoder.step(memory, items, tokens, parents.expand(len(log_probs), -1))
    leaves = trie.above(torch.arange(start, stop, device=trie.device), trie.levels) - low
    return scores[:, leaves]


def refuse_nan(scores: Tensor) -> None:
    """Raise ValueError if a row of ``scores`` (B, W) holds NaN."""
    wrong = scores.isnan().any(1)
    if bool(wrong.any()):
        raise ValueError(
            f"{int(wrong.sum()):,} of {len(scores):,} histories get log-probabilities that are NaN, first the one at "
            f"position {int(wrong.nonzero()[0])}: the model has diverged or is damaged; train it again (lower learning "
            "rate) or load another one"
        )
