"""The data of a split for its page: sizes, lengths of histories, popularity of items, events over time.

Everything is counted into at most some dozens of bins, a few million events at a time: a page on 50 million events of a
million items is as small as one on a hundred thousand.

Legend: E events, U users, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recsys.pages.charts import Chart, Series, figures
from recsys.pages.frame import Html, facts

if TYPE_CHECKING:
    from recsys.data.split import Split

BLOCK = 1 << 22  # events counted at a time
_RANKS, _TIMES, _FINE = 59, 40, 4096  # points of the popularity curve, bins of time, bins to find their range by
_TAIL = 0.005  # share of events on either side that is left out where it is far away
_TIMED = ("time", "day")  # orders that rest on times


def data_section(split: Split) -> Html:
    """Numbers and charts of a split."""
    counts = split.train.item_counts()[1:]
    lengths = np.diff(split.prepared.offsets)
    charts = [*_lengths(lengths), *_popularity(counts), *_times(split)]
    return Html(facts(_sizes(split, counts, lengths)) + figures(charts))


def _sizes(split: Split, counts: np.ndarray, lengths: np.ndarray) -> list[tuple[str, str]]:
    prepared, train = split.prepared, int(counts.sum())
    cells = prepared.num_users * prepared.num_items
    found = [
        ("users", f"{prepared.num_users:,}"),
        ("items", f"{prepared.num_items:,}"),
        ("events", f"{prepared.num_events:,}"),
        ("training events", f"{train:,}"),
        ("density", f"{prepared.num_events / cells:.3%}" if cells else ""),
        ("items never seen in training", f"{int((counts == 0).sum()):,}"),
    ]
    if len(lengths):
        low, middle, high = np.quantile(lengths, (0.05, 0.5, 0.95))
        found.append(("events of a user, median [5%, 95%]", f"{middle:,.0f} [{low:,.0f}, {high:,.0f}]"))
        found.append(("events of a user, mean and most", f"{lengths.mean():,.1f}, {lengths.max():,}"))
    if train:
        held = np.cumsum(np.sort(counts)[::-1])
        for share in (0.01, 0.1):
            first = max(round(share * len(counts)), 1)
            found.append(
                (f"training events of the most popular {share:.0%} of items", f"{held[first - 1] / train:.1%}")
            )
        found.append(("Gini coefficient of item popularity", f"{_gini(counts):.3f}"))
    return found


def _lengths(lengths: np.ndarray) -> list[Chart]:
    """How many users have how many events, in bins that double."""
    if not len(lengths) or not lengths.max():
        return []
    starts = [0, *(2**power for power in range(int(lengths.max()).bit_length()))]
    bins = np.bincount(np.searchsorted(starts, lengths, side="right") - 1, minlength=len(starts))
    ends = [start - 1 for start in starts[1:]] + [2 * starts[-1] - 1]
    labels = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in zip(starts, ends, strict=True)]
    first = int(np.flatnonzero(bins)[0])
    series = Series("", labels[first:], bins[first:].tolist())
    return [Chart("Length of histories", "bars", (series,), x="events of a user", y="users")]


def _popularity(counts: np.ndarray) -> list[Chart]:
    """Training events of items by their rank, and the share that the most popular items hold."""
    ordered = np.sort(counts[counts > 0])[::-1]
    if not len(ordered):
        return []
    ranks = np.unique(np.geomspace(1, len(ordered), _RANKS).round().astype(np.int64))
    curve = Series("", ranks.tolist(), ordered[ranks - 1].tolist())
    held = np.cumsum(ordered) / ordered.sum()
    places = np.unique(np.linspace(1, len(ordered), _RANKS).round().astype(np.int64))
    items = [0.0, *(places / len(counts)).tolist()]
    lorenz = Series("", items, [0.0, *held[places - 1].tolist()])
    return [
        Chart("Popularity of items", "lines", (curve,), x="rank of the item", y="training events", log=True,
              note="both axes logarithmic"),
        Chart("Concentration", "lines", (lorenz,), x="share of items, most popular first", y="share of events"),
    ]  # fmt: skip


def _times(split: Split) -> list[Chart]:
    """Events over time; times far from nearly all others, such as placeholders, are left out and counted."""
    times = split.prepared.times
    if times is None or split.prepared.order not in _TIMED or not len(times):
        return []
    low, high = min(int(one.min()) for one in _blocks(times)), max(int(one.max()) for one in _blocks(times))
    if low == high:
        return []
    fine, edges = _counted(times, low, high, _FINE)
    share = np.cumsum(fine) / len(times)
    first, last = np.searchsorted(share, (_TAIL, 1 - _TAIL))
    note = ""
    if last - first < _FINE // 5:
        low, high = int(edges[first]), int(edges[min(last + 1, _FINE)])
        left = len(times) - int(_counted(times, low, high, 1)[0].sum())
        note = f"{left:,} events far outside are not shown" if left else ""
    bins, edges = _counted(times, low, high, _TIMES)
    series = Series("", edges.tolist(), bins.tolist())
    return [Chart("Events over time", "histogram", (series,), x="time", y="events", dates=True, note=note)]


def _counted(times: np.ndarray, low: int, high: int, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Events in equal bins between two times, and the edges (bins+1,) of these."""
    edges = np.linspace(low, high, bins + 1)
    return sum(np.histogram(one, edges)[0] for one in _blocks(times)), edges  # type: ignore[return-value]


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK]


def _gini(counts: np.ndarray) -> float:
    """0 where all items are as popular, towards 1 where one has everything."""
    ordered = np.sort(counts).astype(np.float64)
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
