"""Rows that were logged twice: the same user, item and time; a genuine repeat of an item has another time.

Legend: E events.
"""

from __future__ import annotations

import numpy as np


def repeated_rows(
    owner: np.ndarray, items: np.ndarray, moments: np.ndarray | None, ordered: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that say again what an earlier one says, and the first row that says it: (n,) int64 each, n of E.

    Args:
        owner: (E,) the user of each event, ascending.
        items: (E,) the item.
        moments: (E,) one number per time, at full precision. Without times a row says the same as the one right before
            it with the same user and item, or, where rows have no order (``ordered`` False), as any such row.

    >>> repeated_rows(np.array([0, 0, 0, 0]), np.array([7, 8, 7, 7]), np.array([5, 5, 5, 6]))
    (array([2]), array([0]))
    """
    if moments is None and ordered:
        same = np.zeros(len(owner), dtype=bool)
        same[1:] = (owner[1:] == owner[:-1]) & (items[1:] == items[:-1])
        again = np.flatnonzero(same)
        return again, np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))[again]
    starts = np.ones(len(owner), dtype=bool)  # of a run of one user and one time
    starts[1:] = owner[1:] != owner[:-1]
    order: np.ndarray | None = None
    if moments is not None:
        if np.any((moments[1:] < moments[:-1]) & ~starts[1:]):
            order = np.lexsort((moments, owner))
            items, moments = items[order], moments[order]
        starts[1:] |= moments[1:] != moments[:-1]
    tied = ~starts
    tied[:-1] |= ~starts[1:]
    rows = np.flatnonzero(tied)
    run = np.cumsum(starts, dtype=np.int64)[rows]
    by_item = np.lexsort((items[rows], run))  # stable, so equal rows stay as they come
    run, rows = run[by_item], rows[by_item]
    same = np.zeros(len(rows), dtype=bool)
    same[1:] = (run[1:] == run[:-1]) & (items[rows[1:]] == items[rows[:-1]])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
    again, first = rows[same], rows[first[same]]
    if order is not None:
        again, first = order[again], order[first]
    by_row = np.argsort(again, kind="stable")
    return again[by_row], first[by_row]


def kept_text(count: int, timed: bool) -> str:
    """What a report says of rows that stay although another says the same."""
    what = "user, item and time of another" if timed else "user and item of the row before them"
    return f'{count:,} events have the {what}; if they were logged twice, .clean(duplicates="exact") drops them'
