"""Segments of users: by history length, popularity of the targets, cohort and transition; plus a caller's own.

Boundaries depend only on the data, never on the users of one report, so segments of two reports match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys.statistics.transitions import LABELS

HISTORY_STARTS = (0, 1, 6, 11, 21, 51, 101)  # first length of each bucket


@dataclass(frozen=True)
class Grouping:
    """A division of n users: ``labels[codes[i]]`` is the segment of user i."""

    name: str
    labels: tuple[str, ...]
    codes: np.ndarray  # (n,)

    def members(self) -> list[tuple[str, np.ndarray]]:
        """(label, positions of its users) of every segment that has any."""
        found = [(label, np.flatnonzero(self.codes == code)) for code, label in enumerate(self.labels)]
        return [(label, index) for label, index in found if len(index)]


def groupings(columns: Mapping[str, np.ndarray], thresholds: tuple[float, float]) -> list[Grouping]:
    """All divisions of the users of a report, from its per-user columns."""
    own = [
        by_label(column.removeprefix("segment:"), values)
        for column, values in columns.items()
        if column.startswith("segment:")
    ]
    return [
        by_history(columns["history_length"]),
        by_popularity(columns["target_popularity"], thresholds),
        by_cohort(columns["history_length"], columns["cold_targets"], columns["repeated_targets"]),
        *([by_transition(columns["transition"])] if "transition" in columns else []),
        *own,
    ]


def by_history(lengths: np.ndarray) -> Grouping:
    """Buckets of history length: 0, 1-5, 6-10, 11-20, 21-50, 51-100, 101+."""
    ends = [start - 1 for start in HISTORY_STARTS[1:]]
    labels = [f"{a}-{b}" if a < b else str(a) for a, b in zip(HISTORY_STARTS[:-1], ends, strict=True)]
    codes = np.searchsorted(HISTORY_STARTS, lengths, side="right") - 1
    return Grouping("history length", (*labels, f"{HISTORY_STARTS[-1]}+"), codes)


def by_popularity(popularity: np.ndarray, thresholds: tuple[float, float]) -> Grouping:
    """Tail, mid and head by the (mean) training count of a user's targets; see :func:`popularity_thresholds`."""
    return Grouping("target popularity", ("tail", "mid", "head"), np.searchsorted(thresholds, popularity, side="right"))


def popularity_thresholds(item_counts: np.ndarray) -> tuple[int, int]:
    """Smallest training counts of a mid and of a head item.

    Head are the most popular items that together hold a third of the training events, mid the next third; items with
    equal counts stay together.

    >>> popularity_thresholds(np.array([0, 40, 30, 20, 10]))
    (30, 40)
    """
    counts = np.sort(item_counts[1:])[::-1]
    share = np.cumsum(counts)
    head, mid = (int(counts[np.searchsorted(share, share[-1] * part)]) for part in (1 / 3, 2 / 3))
    return max(mid, 1), max(head, 1)


def by_cohort(lengths: np.ndarray, cold_targets: np.ndarray, repeated_targets: np.ndarray) -> Grouping:
    """The first that holds: no history; a target never seen in training; a target from the history; none of these."""
    labels = ("no history", "cold target", "repeat", "ordinary")
    return Grouping("cohort", labels, np.select([lengths == 0, cold_targets > 0, repeated_targets > 0], [0, 1, 2], 3))


def by_transition(codes: np.ndarray) -> Grouping:
    """How the target follows from training: memorised, composed, neither; :mod:`recsys.statistics.transitions`."""
    return Grouping("transition", LABELS, codes)


def by_label(name: str, labels: np.ndarray) -> Grouping:
    """A caller's own labels."""
    known, codes = np.unique(labels, return_inverse=True)
    return Grouping(name, tuple(str(label) for label in known), codes)
