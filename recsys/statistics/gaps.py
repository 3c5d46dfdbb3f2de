"""How evenly users and items recur, and which items go together: statistics of training events, for UniRec.

Every function takes a :class:`recsys.data.split.TrainingEvents` and nothing else, so a held-out event cannot enter.
Follows section 2 of UniRec (Liu, Wang & Feng, CIKM 2024, arXiv 2406.18470, as its code has it). What we do differently:
the statistics leave validation and test out, an item with fewer than three interactions counts as rare (its variance of
0 made it frequent), a user with fewer is not even, and mean gaps are counted only for pairs among the most similar
ones. The authors' script looks the variances of neighbours up by whole numbers while its items are text, so it finds
none and every neighbour gets the same .5: the published neighbours are by similarity and gap alone.

Legend: U users, N items (arrays of items have N + 1 entries, entry 0 is padding), E events, K neighbours.
Times are turned into seconds; variances are those of the population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from recsys.data.split import TrainingEvents
from recsys.ids.ranges import blocks

DEFINITIONS = ("variance", "count")
DENSE = 1 << 26  # cells of a table of all pairs of items, where pairs are looked up rather than searched
LEAST = 3  # events that have a variance of gaps: one gap, or none, does not vary
UNKNOWN = 99_999_999.0  # stands for the variance of an item with fewer events
PAIRS = 1 << 22  # pairs of events, or products of a sparse chunk, worked on at a time


def user_variance(training: TrainingEvents) -> tuple[np.ndarray, np.ndarray]:
    """Of each user's gaps between consecutive interactions: variance in s² (0 without gaps) and number, both (U,)."""
    variance, count = np.zeros(training.num_users), np.maximum(training.lengths - 1, 0)
    for users in blocks(training.lengths):
        owner, _, times = training.events(users)
        variance[users] = _gap_variance(owner, _seconds(times), users.stop - users.start)
    return variance, count


def item_variance(training: TrainingEvents) -> np.ndarray:
    """(N+1,) variance in s² of the gaps between successive interactions with an item, over all users; 0 without."""
    _, items, times = training.events(slice(None))
    seconds = _seconds(times)
    order = np.lexsort((seconds, items))
    return _gap_variance(items[order], seconds[order], training.num_items + 1)


def normalised(variance: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N+1,) float32: item variances between those of the items that occur, from 0 to 100; 0 for the others."""
    seen = count > 0
    low, high = (variance[seen].min(), variance[seen].max()) if seen.any() else (0.0, 0.0)
    scaled = (variance - low) / (high - low) * 100 if high > low else np.zeros_like(variance)
    return np.where(seen, scaled, 0.0).astype(np.float32)


def even_users(training: TrainingEvents, share: float = 0.6) -> np.ndarray:
    """(U,) bool: the ``share`` of users with the lowest variances, of those with at least two gaps (one does not vary).

    From their sequences the sequence enhancement starts.

    Raises:
        ValueError: a share outside 0..1, or training without times.
    """
    variance, gaps = user_variance(training)
    return lowest(variance, gaps >= LEAST - 1, share)


def frequent_items(
    variance: np.ndarray, count: np.ndarray, share: float = 0.3, by: str = "variance", least: int = LEAST
) -> np.ndarray:
    """(N+1,) bool: the ``share`` of items that recur most evenly, of those with at least ``least`` interactions.

    Args:
        variance: of the items' gaps, from :func:`item_variance`.
        count: interactions of each item (N+1,), from ``training.item_counts()``.
        by: "variance" takes the lowest variances, "count" the most interactions.
        least: 3, as fewer have no variance of gaps to speak of.

    Raises:
        ValueError: an unknown definition, or a share outside 0..1.
    """
    if by not in DEFINITIONS:
        raise ValueError(f"by must be one of {', '.join(DEFINITIONS)}, found {by!r}")
    return lowest(variance if by == "variance" else -count, count >= max(least, 1), share)


def neighbours(
    training: TrainingEvents, variance: np.ndarray, k: int = 10, candidates: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` items that go best with each item, best first: rows (N+1, k) int64 and their scores (N+1, k).

    score_ij = .4 sim / (1 + sim) + .8 / (1 + ln(1 + gap)) + .5 / (1 + ln(1 + var_j)), with sim of :func:`similar`,
    gap the mean |t_i - t_j| in seconds over all pairs of their interactions by one user, and var_j the variance of
    item j. Of an item with fewer than three interactions it is not known and counts as 99,999,999, the authors' value:
    a bonus of .026, where gaps that vary by days give about .02. An item with fewer neighbours is its own for the rest,
    with score 0.

    Args:
        candidates: of each item only this many most similar ones are scored.

    Raises:
        ValueError: ``k`` or ``candidates`` below 1, or training without times.
    """
    if k < 1 or candidates < 1:
        raise ValueError(f"k and candidates must be at least 1, found {k} and {candidates}")
    row, column, similarity = similar(training, candidates)
    gap = _mean_gaps(training, row, column)
    variance = np.where(training.item_counts() < LEAST, UNKNOWN, variance)
    score = 0.4 * similarity / (1 + similarity) + 0.8 / (1 + np.log1p(gap)) + 0.5 / (1 + np.log1p(variance[column]))
    chosen, rank = _best(row, score, k)
    rows = np.repeat(np.arange(training.num_items + 1)[:, None], k, axis=1)
    scores = np.zeros(rows.shape)
    rows[row[chosen], rank], scores[row[chosen], rank] = column[chosen], score[chosen]
    return rows, scores


def similar(training: TrainingEvents, candidates: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``candidates`` most similar other items of each item: (item, other, similarity), by item, best first.

    sim_ij = sum over common users u of 1 / ln(1 + |I_u|), divided by sqrt(n_i n_j): n users have an item, user u has
    the distinct items I_u. Items without a common user are left out.
    """
    matrix = _interactions(training)
    users = np.bincount(matrix.indices, minlength=matrix.shape[1])
    widths = np.diff(matrix.indptr)
    weighted = sparse.diags(1 / np.log1p(np.maximum(widths, 1))) @ matrix
    columns = matrix.T.tocsr()
    found = [
        _similar_block(columns[part] @ weighted, part.start, users, candidates) for part in _items(columns, widths)
    ]
    row, column, value = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return row, column, value


def lowest(values: np.ndarray, eligible: np.ndarray, share: float) -> np.ndarray:
    """The ``share`` of the eligible entries with the lowest values, as a mask; equal ones by position."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0..1, found {share}")
    index = np.flatnonzero(eligible)
    order = index[np.argsort(values[index], kind="stable")]
    mask = np.zeros(len(values), dtype=bool)
    mask[order[: round(share * len(order))]] = True
    return mask


def _similar_block(
    shared: Any, first: int, users: np.ndarray, candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shared.sort_indices()
    row = np.repeat(np.arange(first, first + shared.shape[0]), np.diff(shared.indptr))
    column = shared.indices.astype(np.int64)
    value = shared.data / np.sqrt(users[row].astype(np.float64) * users[column])
    row, column, value = (array[row != column] for array in (row, column, value))
    chosen, _ = _best(row, value, candidates)
    return row[chosen], column[chosen], value[chosen]


def _interactions(training: TrainingEvents) -> Any:
    """(U, N+1) CSR: 1 where the user has the item in training, however often."""
    owner, items, _ = training.events(slice(None))
    shape = (training.num_users, training.num_items + 1)
    matrix = sparse.csr_matrix((np.ones(len(items)), (owner, items)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _items(columns: Any, widths: np.ndarray) -> Iterator[slice]:
    """Chunks of items whose rows of shared users cost about ``PAIRS`` products each."""
    return blocks((columns @ widths).astype(np.int64), PAIRS)


def _mean_gaps(training: TrainingEvents, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """(P,) mean |t_i - t_j| in seconds over a user's interactions with both items of each pair, over all users."""
    size = training.num_items + 1
    wanted, pair = np.unique(np.minimum(row, column) * size + np.maximum(row, column), return_inverse=True)
    find = _finder(wanted, size)
    total, count = np.zeros(len(wanted)), np.zeros(len(wanted))
    owner, items, times = training.events(slice(None))
    seconds, items = _seconds(times), items.astype(np.int64)
    # Each event with every later one of its user: bounded chunks of events, however long one history is.
    later = np.searchsorted(owner, owner, side="right") - np.arange(len(owner)) - 1
    for events in blocks(later, PAIRS):
        left = np.repeat(np.arange(events.start, events.stop), later[events])
        right = np.arange(len(left)) + np.repeat(
            np.arange(events.start, events.stop) + 1 - np.cumsum(later[events]) + later[events], later[events]
        )
        at = find(items[left], items[right])
        known = np.flatnonzero(at >= 0)
        at, gaps = at[known], np.abs(seconds[right[known]] - seconds[left[known]])
        total += np.bincount(at, gaps, len(wanted))
        count += np.bincount(at, minlength=len(wanted))
    return (total / np.maximum(count, 1))[pair]


def _finder(wanted: np.ndarray, size: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Where among the sorted keys low * size + high the pairs of items stand, -1 where they do not."""
    if size * size <= DENSE:
        low, high = np.divmod(wanted, size)
        table = np.full((size, size), -1, dtype=np.int32)
        table[low, high] = table[high, low] = np.arange(len(wanted))
        flat = table.ravel()
        return lambda one, other: flat[one * size + other]

    def search(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        key = np.minimum(one, other) * size + np.maximum(one, other)
        at = np.searchsorted(wanted, key)
        return np.where(np.append(wanted, -1)[at] == key, at, -1)

    return search


def _best(row: np.ndarray, value: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the ``k`` highest values of each row (rows ascend), best first, and their ranks 0..k-1."""
    order = np.lexsort((-value, row))  # stable: equal values keep their order
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return order[rank < k], rank[rank < k]


def _gap_variance(group: np.ndarray, seconds: np.ndarray, size: int) -> np.ndarray:
    """(size,) variance of the differences between neighbours of one group; events are sorted by group."""
    inside = group[1:] == group[:-1]
    owner, gap = group[1:][inside], np.diff(seconds)[inside]
    count = np.maximum(np.bincount(owner, minlength=size), 1)
    mean = np.bincount(owner, gap, size) / count
    variance: np.ndarray = np.bincount(owner, (gap - mean[owner]) ** 2, size) / count
    return variance


def _seconds(times: np.ndarray | None) -> np.ndarray:
    if times is None:
        raise ValueError("these statistics need to know when events happened: name the time column of the data")
    return times / 1000.0
