"""What a metric sees: where the targets landed among the candidates, exact under ties.

A metric is any object with a ``name`` and ``__call__(ranked, k) -> (n,) float64``; one written elsewhere is passed to
``evaluate(..., metrics=["ndcg", Mine()])`` like those of this folder. :class:`Ranked` shows it where the targets landed
as *tie groups*: ``above`` candidates are scored strictly higher, ``size`` candidates share the score, ``hits`` of them
are targets. Without ties every group has size 1 and sits at rank ``above + 1``; with ties a metric is the expected
value over every order of the equally scored items.

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
    """Where the targets of n users landed among their candidates, and (if wanted) what the lists show.

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

    def filled(self, k: int) -> np.ndarray:
        """(G,) how many of the first k ranks the group fills."""
        return np.clip(k - self.above, 0, self.size)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """(n,) float64: the sum of a value per group (G,) over the groups of each user."""
        return np.bincount(self.user, weights=values, minlength=len(self))

    def hits_within(self, k: int) -> np.ndarray:
        """(n,) float64: expected number of targets among the first k ranks."""
        return self.sum(self.hits * self.filled(k) / self.size)


@runtime_checkable
class Metric(Protocol):
    """One number per user from where the targets landed; users without a target that was reached get 0.

    Two optional attributes: ``lists = True`` asks for ``ranked.lists`` (which costs a top-k of every user's scores),
    and ``at_k = False`` says that the cut-off plays no role: the column is called ``name``, k is the number of items.
    """

    name: str

    def __call__(self, ranked: Ranked, k: int) -> np.ndarray: ...


def running_sum(values: np.ndarray) -> np.ndarray:
    """(k+1,) sums of the first 0, 1, ..., k values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def list_mean(ranked: Ranked, k: int, field: str) -> np.ndarray:
    """(n,) mean of a catalogue array over the first k items of each list, padding left out."""
    if ranked.lists is None or ranked.catalogue is None:
        raise ValueError("this metric reads ranked.lists and ranked.catalogue, which this view does not have")
    shown = ranked.lists[:, :k]
    return getattr(ranked.catalogue, field)[shown].sum(axis=1) / np.maximum((shown > 0).sum(axis=1), 1)
