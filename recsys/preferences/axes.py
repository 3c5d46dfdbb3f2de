"""The five questions of Mender's benchmark: does a recommender do what it is told in words?

1. recommendation: history and matched preference; the target is what came next.
2. sentiment: a negative preference and the same turned round, no history; the item is to be hit under the positive one
   and missed under the negative one.
3. fine steering: for each target a of the part, b the most similar other target; with a preference that is near a and
   the history of somebody who went on with b, the target is a, and the other way round.
4. coarse steering: the same with b the least similar one.
5. consolidation: history and all preferences of its last event, unmatched; never trained on.

Arrangement of arXiv 2412.08604 and its released code (mender.md, section 5): the preference near a is the second
closest of all that anybody has, the one near b the third closest (in training the closest); the other user is drawn
with seed 101; each target is asked for once per part. **Where reviews are missing, axis 2 is another one than theirs**:
without events that are known to be disliked, the items of a negative preference are those whose titles are nearest to
its positive form, and the notes of the samples say so.

Legend: n samples, m distinct targets, P texts, N items (rows 1..N), E events, H width of vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recsys.data.split import Split
from recsys.errors import DataError
from recsys.preferences.matching import Matching
from recsys.preferences.samples import Samples
from recsys.randomness import numpy_generator

AXES = ("recommendation", "sentiment", "fine", "coarse", "consolidation")
PARTS = ("train", "valid", "test")
SEED = 101  # of the released code
NEAREST = 5  # items of a negative preference, where no event is known to be disliked
SHARES = (0.5, 0.1, 0.4)  # of the pairs of axis 2: training, validation, test
_CHUNK = 1 << 10  # rows of a table of nearness at a time


class Asked(NamedTuple):
    """The targets of a part, in the order of their users: history [start, stop), and what came next."""

    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray


def recommendation(matching: Matching, part: str = "test") -> Samples:
    """Axis 1: the matched preference with each history of the part that has one, in training with every prefix."""
    asked = _asked(matching.split, part)
    said, counts = matching.match(asked.stop - 1, asked.target)
    return _samples(matching, "recommendation", asked, said[:, None], matched=counts).take(np.flatnonzero(said >= 0))


def consolidation(matching: Matching, part: str = "test") -> Samples:
    """Axis 5: all preferences of the last event of each history."""
    asked = _asked(matching.split, part)
    said = matching.preferences.codes[asked.stop - 1]
    return _samples(matching, "consolidation", asked, said).take(np.flatnonzero((said >= 0).any(1)))


def steering(matching: Matching, part: str = "test", coarse: bool = False, seed: int = SEED) -> Samples:
    """Axes 3 and 4: two samples for each distinct target of the part.

    Raises:
        DataError: the part has fewer than two distinct targets with a title, or there are fewer than three texts.
    """
    asked, titles = _asked(matching.split, part), matching.titles
    distinct, first = np.unique(asked.target, return_index=True)
    kept = titles[distinct].any(1)
    distinct, first = distinct[kept], first[kept]
    own = np.flatnonzero(matching.preferences.given)
    if len(distinct) < 2 or len(own) < 3:
        raise DataError(
            f"steering needs two targets with a title and three preferences, found {len(distinct)} and {len(own)}"
        )
    order = np.argsort(first)
    distinct, first = distinct[order], first[order]
    other, nearness = _partners(titles[distinct], coarse)
    ranks = (0, 0) if part == "train" else (1, 2)
    near = own[_nearest(titles[distinct], matching.texts[own], 3)]  # (m, 3)
    random = numpy_generator(seed, "steering", part, "coarse" if coarse else "fine")
    by_target = np.argsort(asked.target, kind="stable")
    begin = np.searchsorted(asked.target[by_target], distinct[other])
    count = np.searchsorted(asked.target[by_target], distinct[other], side="right") - begin
    drawn = by_target[begin + random.integers(0, count)]
    source = np.concatenate([drawn, first])
    target = np.concatenate([distinct, distinct[other]])
    said = np.concatenate([near[:, ranks[0]], near[other, ranks[1]]])
    histories = Asked(asked.start[source], asked.stop[source], target)
    seen = np.isin(said, near[:, 0])
    notes = {
        "nearness of a and b": float(nearness.mean()),
        "preferences that are the closest of a target too": float(seen.mean()),
        "negative preferences": float(matching.preferences.negative[said].mean()),
    }
    return _samples(matching, "coarse" if coarse else "fine", histories, said[:, None].astype(np.int32), **notes)


def sentiment(
    matching: Matching, part: str = "test", disliked: np.ndarray | None = None, nearest: int = NEAREST, seed: int = SEED
) -> tuple[Samples, Samples]:
    """Axis 2: positive and negative preferences, row for row of the same item; distinct in their positive text and
    item, and dealt out to training, validation and test by ``seed``.

    Args:
        disliked: (E,) bool, the events whose review (or rating) says that the item was disliked; None: no event is
            known to be.

    Raises:
        DataError: no preference is negative, or ``disliked`` has no such event.
    """
    own = matching.preferences
    usable = own.given & own.negative & (own.inverse >= 0)
    pairs = _nearest_pairs(matching, usable, nearest) if disliked is None else _disliked(matching, usable, disliked)
    if not len(pairs):
        raise DataError(
            f"{int(usable.sum()):,} of {len(own):,} preferences are negative and can be turned round, and none of them "
            "goes with an item: axis 2 cannot be asked of these preferences"
        )
    positive = own.inverse[pairs[:, 0]]
    _, kept = np.unique(np.stack([positive, pairs[:, 1]]), axis=1, return_index=True)
    pairs = pairs[np.sort(kept)]
    texts, group = np.unique(own.inverse[pairs[:, 0]], return_inverse=True)
    dealt = numpy_generator(seed, "sentiment").permutation(len(texts))[group] / len(texts)
    at = PARTS.index(_known(part))
    low = sum(SHARES[:at])
    pairs = pairs[(dealt >= low - 1e-9) & (dealt < low + SHARES[at] - 1e-9)]
    zero = np.zeros(len(pairs), np.int64)
    notes = {
        "items": "the nearest to the positive form (no event is known to be disliked)" if disliked is None
        else "disliked by the user who has the preference",
    }  # fmt: skip
    asked = Asked(zero, zero, pairs[:, 1].astype(np.int64))
    liked = _samples(matching, "sentiment", asked, own.inverse[pairs[:, :1]], **notes)
    return liked, liked.saying(pairs[:, :1].astype(np.int32))


def _known(part: str) -> str:
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, found {part!r}")
    return part


def _asked(split: Split, part: str) -> Asked:
    """Histories that are not empty and what came next, of all prefixes in training."""
    items = split.prepared.items
    if _known(part) == "train":
        train = split.train
        first, stop = np.repeat(train.start, train.lengths), np.repeat(train.stop, train.lengths)
        event = np.arange(len(first)) - np.repeat(np.cumsum(train.lengths) - train.lengths, train.lengths) + first
        later = (event > first) & (event < stop)
        return Asked(first[later], event[later], items[event[later]].astype(np.int64))
    held = getattr(split, part)
    some = held.history_lengths > 0
    stop = held.target_start[some]
    return Asked(held.history_start[some], stop, items[stop].astype(np.int64))


def _samples(matching: Matching, axis: str, asked: Asked, said: np.ndarray, **notes: object) -> Samples:
    texts = matching.preferences.texts
    return Samples(axis, matching.split, texts, asked.start, asked.stop, asked.target, said, notes=dict(notes))


def _partners(vectors: np.ndarray, coarse: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each of m vectors the number of the nearest other one (or of the farthest), and how near it is."""
    other, nearness = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(vectors)))
        found = vectors[rows] @ vectors.T
        found[np.arange(len(rows)), rows] = np.inf if coarse else -np.inf
        other[rows] = found.argmin(1) if coarse else found.argmax(1)
        nearness[rows] = found[np.arange(len(rows)), other[rows]]
    return other, nearness


def _nearest(vectors: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """(m, count) numbers of the nearest of ``among`` (p, H) to each of ``vectors`` (m, H), equal ones in order."""
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(vectors)))
        table = vectors[part] @ among.T
        best = np.sort(np.argpartition(-table, min(count, table.shape[1]) - 1, axis=1)[:, :count], axis=1)
        values = np.take_along_axis(table, best, 1)
        found[part] = np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), 1)
    return found


def _nearest_pairs(matching: Matching, usable: np.ndarray, nearest: int) -> np.ndarray:
    """(n, 2) negative text and item: the items whose titles are nearest to the positive form of the text."""
    own = np.flatnonzero(usable)
    rows = np.flatnonzero(matching.titles.any(1) & (matching.split.train.item_counts() > 0))
    if not len(own) or not len(rows):
        return np.zeros((0, 2), np.int64)
    count = min(nearest, len(rows))
    found = rows[_nearest(matching.texts[matching.preferences.inverse[own]], matching.titles[rows], count)]
    return np.stack([np.repeat(own, count), found.ravel()], 1)


def _disliked(matching: Matching, usable: np.ndarray, disliked: np.ndarray) -> np.ndarray:
    """(n, 2) negative text and item: of each disliked event, of the negative texts that its user has from there on,
    the one nearest to the item's title."""
    prepared, own = matching.split.prepared, matching.preferences
    if disliked.shape != (prepared.num_events,):
        raise DataError(
            f"disliked says of each of {prepared.num_events:,} events whether it is, found {disliked.shape}"
        )
    events = np.flatnonzero(disliked)
    ends = prepared.offsets[np.searchsorted(prepared.offsets, events, side="right")]
    have = np.where((own.codes >= 0) & usable[np.maximum(own.codes, 0)], own.codes, -1) if len(own) else own.codes
    found = []
    for event, end in zip(events.tolist(), ends.tolist(), strict=True):  # few: what is disliked
        texts = np.unique(have[event:end][have[event:end] >= 0])
        if len(texts):
            item = int(prepared.items[event])
            found.append((int(texts[(matching.texts[texts] @ matching.titles[item]).argmax()]), item))
    return np.array(found, np.int64).reshape(-1, 2)
