"""Ranking metrics per user, exact under ties: the expected value over every order of the equally scored items.

A metric is any object with a ``name`` and ``__call__(ranked, k) -> (n,) float64``; one written elsewhere is passed to
``evaluate(..., metrics=["ndcg", Mine()])`` like those of this file. :class:`Ranked` shows it where the targets landed
as *tie groups*: ``above`` candidates are scored strictly higher, ``size`` candidates share the score, ``hits`` of them
are targets. Without ties every group has size 1 and sits at rank ``above + 1``.

Legend: n users, G tie groups that hold a target, K longest list, k cut-off, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Catalogue:
    """What training knew about each of the N items; derived arrays are computed once per evaluation."""

    item_counts: np.ndarray  # (N+1,) events of each item row in training, entry 0 unused

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_counts) - 1

    @cached_property
    def bits(self) -> np.ndarray:
        """(N+1,) self-information -log2 (c + 1) / (sum c + N) of each item, 0 for row 0."""
        counts = self.item_counts[1:].astype(np.float64)
        return np.append(0.0, -np.log2((counts + 1) / (counts.sum() + len(counts))))

    @cached_property
    def percentile(self) -> np.ndarray:
        """(N+1,) share of the items with fewer events plus half of those with as many, 0 for row 0."""
        counts = self.item_counts[1:]
        ordered = np.sort(counts)
        below, upto = (np.searchsorted(ordered, counts, side=side) for side in ("left", "right"))
        return np.append(0.0, (below + upto) / 2 / len(counts))


@dataclass(frozen=True)
class Ranked:
    """Where the targets of n users landed among their candidates, and (if asked for) what the lists show.

    A target that no list can show (it repeats a history that is left out, or is scored -inf) is among ``relevant`` and
    in no group, so a user may have targets and no group. Groups are ordered by user, best score first. Arrays are
    int64. ``lists`` holds item rows, best first, 0 behind the end of a list that is shorter than K; equally scored
    items stand in it by ascending row, as they are recommended.
    """

    candidates: np.ndarray  # (n,) items that could be recommended
    relevant: np.ndarray  # (n,) distinct targets
    user: np.ndarray  # (G,) position of the user, 0..n-1, ascending
    above: np.ndarray  # (G,) candidates scored strictly higher
    size: np.ndarray  # (G,) candidates in the group, targets included
    hits: np.ndarray  # (G,) targets in the group
    lists: np.ndarray | None = None  # (n, K)
    catalogue: Catalogue | None = None

    def __len__(self) -> int:
        return len(self.candidates)

    @classmethod
    def from_pairs(
        cls,
        user: np.ndarray,
        above: np.ndarray,
        size: np.ndarray,
        candidates: np.ndarray,
        reached: np.ndarray | None = None,
        **others: Any,
    ) -> Ranked:
        """Tie groups of flat (user, target) pairs, each with its own ``above`` and ``size``; all (pairs,).

        Pairs that are not ``reached`` are targets in no group.
        """
        candidates = np.asarray(candidates, dtype=np.int64)
        relevant = np.bincount(user, minlength=len(candidates))
        if reached is not None and not reached.all():
            user, above, size = user[reached], above[reached], size[reached]
        order = np.lexsort((above, user))
        user, above, size = (np.asarray(values, dtype=np.int64)[order] for values in (user, above, size))
        new = np.ones(len(user), dtype=bool)
        new[1:] = (user[1:] != user[:-1]) | (above[1:] != above[:-1])
        start = np.flatnonzero(new)
        hits = np.diff(np.append(start, len(user)))
        return cls(candidates, relevant, user[start], above[start], size[start], hits, **others)

    @cached_property
    def first(self) -> np.ndarray:
        """(G,) bool: the best group of each user."""
        first = np.ones(len(self.user), dtype=bool)
        first[1:] = self.user[1:] != self.user[:-1]
        return first

    @cached_property
    def hits_above(self) -> np.ndarray:
        """(G,) targets of the same user in better groups."""
        before = np.cumsum(self.hits) - self.hits
        groups = np.diff(np.append(np.flatnonzero(self.first), len(self.user)))
        return before - np.repeat(before[self.first], groups)

    @cached_property
    def rank(self) -> np.ndarray:
        """(G,) float64: expected rank (from 1) of each target of the group."""
        return self.above + (self.size + 1) / 2

    def slots(self, k: int) -> np.ndarray:
        """(G,) how many of the first k places the group fills."""
        return np.clip(k - self.above, 0, self.size)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(n,) float64: the sum of a value per group (G,) over the groups of each user."""
        return np.bincount(self.user, weights=values, minlength=len(self))

    def hits_within(self, k: int) -> np.ndarray:
        """(n,) float64: expected number of targets among the first k places."""
        return self.sum(self.hits * self.slots(k) / self.size)


@runtime_checkable
class Metric(Protocol):
    """One number per user from where the targets landed; users without a target that was reached get 0.

    Two optional attributes: ``lists = True`` asks for ``ranked.lists`` (which costs a top-k of every user's scores),
    and ``at_k = False`` says that the cut-off plays no role: the column is called ``name``, k is the number of items.
    """

    name: str

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray: ...


class HitRate:
    """``hr@k``: the chance that at least one target is among the first k.

    Only the best tie group of a user decides; within it the number of hits in m drawn places is hypergeometric.
    """

    name = "hr"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        size, hits = ranked.size[ranked.first], ranked.hits[ranked.first]
        drawn = ranked.slots(k)[ranked.first]
        none = np.ones(len(size))  # C(size - hits, drawn) / C(size, drawn), symmetric in hits and drawn
        few, many = np.minimum(hits, drawn), np.maximum(hits, drawn)
        for step in range(int(few.max(initial=0))):
            left = np.maximum(size - many - step, 0) / np.maximum(size - step, 1)
            none = np.where(step < few, none * left, none)
        result = np.zeros(len(ranked))
        result[ranked.user[ranked.first]] = 1.0 - none
        return result


class Recall:
    """``recall@k``: the share of a user's targets among the first k. With one target it equals ``hr@k``."""

    name = "recall"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return ranked.hits_within(k) / np.maximum(ranked.relevant, 1)


class Precision:
    """``precision@k``: targets among the first k, divided by k (also where fewer than k candidates exist)."""

    name = "precision"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return ranked.hits_within(k) / k


class NDCG:
    """``ndcg@k``: sum of 1 / log2(rank + 1) over the targets within k, divided by its largest possible value.

    The largest possible value has min(targets, k) targets in front.
    """

    name = "ndcg"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        gain = _running_sum(1.0 / np.log2(np.arange(2, k + 2)))
        start = np.minimum(ranked.above, k)
        expected = ranked.hits / ranked.size * (gain[start + ranked.slots(k)] - gain[start])
        return ranked.sum(expected) / gain[np.clip(ranked.relevant, 1, k)]


class MRR:
    """``mrr@k``: 1 / rank of the best target, 0 if it is not within k (papers such as SLMRec's have no cut-off).

    The best target is at place j of its group with chance C(size - j, hits - 1) / C(size, hits).
    """

    name = "mrr"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        best = np.flatnonzero(ranked.first)
        above, size, hits = ranked.above[best], ranked.size[best], ranked.hits[best]
        slots = ranked.slots(k)[best]
        chance, value = hits / size, np.zeros(len(best))
        active = np.flatnonzero(slots > 0)
        place = 1
        while len(active):
            value[active] += chance[active] / (above[active] + place)
            active = active[slots[active] > place]
            left = np.maximum(size[active] - place - hits[active] + 1, 0)
            chance[active] *= left / (size[active] - place)
            place += 1
        result = np.zeros(len(ranked))
        result[ranked.user[best]] = value
        return result


class MAP:
    """``map@k``: the precision at each target within k, summed and divided by min(targets, k).

    At place j of a group, a target (chance hits / size) sees all targets of better groups, itself, and of the j - 1
    places before it the share (hits - 1) / (size - 1).
    """

    name = "map"

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        harmonic = _running_sum(1.0 / np.arange(1, k + 1))
        slots, start = ranked.slots(k), np.minimum(ranked.above, k)
        inverse = harmonic[start + slots] - harmonic[start]  # sum of 1 / rank over the places within k
        mates = (ranked.hits - 1) / np.maximum(ranked.size - 1, 1)
        inside = (ranked.hits_above + 1 - (ranked.above + 1) * mates) * inverse + mates * slots
        return ranked.sum(ranked.hits / ranked.size * inside) / np.clip(ranked.relevant, 1, k)


class Novelty:
    """``novelty@k``: mean self-information -log2 p(item) of the first k items, in bits; higher is less obvious.

    p is the item's share of the training events with one event added to every item, (c + 1) / (sum c + N), so that
    items never seen in training count as the rarest instead of infinitely rare.
    """

    name = "novelty"
    lists = True

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return _list_mean(ranked, k, "bits")


class PopularityBias:
    """``popularity@k``: mean training-popularity percentile of the first k items, 1 = only the most popular.

    The percentile of an item is (items with fewer events + half of those with as many) / N: recommending uniformly at
    random gives 0.5.
    """

    name = "popularity"
    lists = True

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray:
        return _list_mean(ranked, k, "percentile")


def _running_sum(values: np.ndarray) -> np.ndarray:
    """(k+1,) sums of the first 0, 1, ..., k values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _list_mean(ranked: Ranked, k: int, field: str) -> np.ndarray:
    """(n,) mean of a catalogue array over the first k items of each list, empty places left out."""
    if ranked.lists is None or ranked.catalogue is None:
        raise ValueError("this metric reads ranked.lists and ranked.catalogue, which this view does not have")
    shown = ranked.lists[:, :k]
    return getattr(ranked.catalogue, field)[shown].sum(axis=1) / np.maximum((shown > 0).sum(axis=1), 1)
