"""Ranges of events, a run of indices for each user: laid out flat, or cut into pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def spread(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every index of the ranges [start, stop), with the range it belongs to: (owner (n,), index (n,)) int64.

    >>> spread(np.array([5, 0]), np.array([7, 1]))
    (array([0, 0, 1]), array([5, 6, 0]))
    """
    lengths = np.maximum(stop - start, 0)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    before = np.cumsum(lengths) - lengths
    index = np.arange(len(owner), dtype=np.int64) + (start - before)[owner]
    return owner, index


def blocks(sizes: np.ndarray, budget: int = 1 << 22) -> Iterator[slice]:
    """Consecutive slices of ranges whose sizes sum to about ``budget`` each, to work through much data in little."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(ends):
        done = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, done + budget, side="right")), first + 1)
        yield slice(first, last)
        first = last


def padded_blocks(lengths: np.ndarray, budget: int, per_row: int, per_token: int) -> Iterator[slice]:
    """Consecutive slices of rows that cost ``per_row`` each and ``per_token`` for each place once they are padded to
    the longest of the slice, within ``budget`` (one row at least): a long history shrinks its own slice only.

    >>> list(padded_blocks(np.array([1, 1, 1, 9, 1]), budget=27, per_row=5, per_token=1))
    [slice(0, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    most, first = max(budget // max(per_row, 1), 1), 0
    while first < len(lengths):
        longest = np.maximum.accumulate(lengths[first : first + most].astype(np.int64))
        cost = (per_row + per_token * longest) * np.arange(1, len(longest) + 1)
        last = first + max(int(np.searchsorted(cost, budget, side="right")), 1)
        yield slice(first, last)
        first = last
