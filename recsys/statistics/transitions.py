"""How a held-out item follows from training: known as a transition, composed of known ones, or neither.

The segments of "How Well Does Generative Recommendation Generalize?" (arXiv 2603.19809), after the definitions of its
code. F_h(a) are the items that followed item a within h places in somebody's training events, R_h(a) those it followed,
u_1, u_2 ... a history from its newest item back, v the target:

- memorised: v is in F_1(u_1), that is the pair occurs in training;
- else composed, by one or more of these kinds, at h of 1 to 4 and u any of u_1 .. u_h:
  substitutable, v in F_h(u), h >= 2; symmetric, u in F_h(v); transitive, F_h(u) and R_h(v) share an item;
  second order, F_h(v) and R_h(u), or F_h(v) and F_h(u), or R_h(v) and R_h(u) share one;
- else neither.

What we do differently: a target without any training event ("cold") and a history without any event are told apart
from the rest of "neither". Whether a case is composed at all is found without its kinds: with G = F_4 and R_4 together
it is composed where v is in G(u), or G(u) and G(v) share an item. ``tests/statistics/test_transitions.py`` holds both
forms to plain sets. Shares of memorised, composed and neither (cold ones included) among the test targets of
leave-last: amazon-beauty .0861 .8125 .1014, amazon-sports .0513 .8474 .1013, the published ones.

Legend: n cases (a history and a target), A newest items of a history, N items (rows 1..N), U users, M codes of an item.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from recsys.data.split import HeldOut, TrainingEvents
from recsys.errors import DataWarning
from recsys.statistics.neighbours import Neighbours, meet, pairs

PLACES = 4  # how far apart two items of a history may be, and how many of the newest items are looked at
KINDS = ("substitutable", "symmetric", "transitive", "second order")
LABELS = (
    "memorised",
    "composed",
    *(f"composed, {kind}" for kind in KINDS),
    "neither",
    "undecided",
    "cold target",
    "no history",
    "mixed",
)
MEMORISED, COMPOSED, NEITHER, UNDECIDED, COLD, NO_HISTORY, MIXED = 0, 1, 6, 7, 8, 9, 10  # places in LABELS
FIRST, GROWTH = 2**17, 8  # training events that are tried first, and how many times as many after that
SIEVE = 16  # bytes per pair that is looked for
ANSWERS = 8  # kept for each training set, a byte per user
Test = Callable[[np.ndarray, np.ndarray], np.ndarray]
_KNOWN: WeakKeyDictionary[TrainingEvents, dict[bytes, np.ndarray]] = WeakKeyDictionary()


def by_user(
    part: HeldOut, index: np.ndarray, owner: np.ndarray, target: np.ndarray, kinds: bool = False
) -> np.ndarray | None:
    """(n,) int8, the place in ``LABELS`` of what the targets of each user are; None where a part knows no training.

    A user of several targets that are not all the same is "mixed". Training is that of the part's split, validation
    events are no part of it. Answers are kept for the next model.

    Args:
        part: whose users and training events these are.
        index: (n,) positions of users in the part.
        owner: (P,) the position in ``index`` that each target belongs to; every user has one or more.
        target: (P,) item rows.
        kinds: tell the kinds of composed cases apart, which takes several times as long.
    """
    if part.split is None or part.split.num_items != part.num_items:
        return None
    training, recent = part.split.train, newest(part, index)
    known = _KNOWN.setdefault(training, {})
    key = hashlib.blake2b(b"".join(one.tobytes() for one in (recent, owner, target)) + bytes([kinds])).digest()
    if key not in known:
        found = label(training, recent[owner], target, kinds)
        lowest, highest = np.full(len(index), len(LABELS), np.int8), np.full(len(index), -1, np.int8)
        np.minimum.at(lowest, owner, found)
        np.maximum.at(highest, owner, found)
        while len(known) >= ANSWERS:
            del known[next(iter(known))]
        known[key] = np.where(lowest == highest, lowest, MIXED).astype(np.int8)
    return known[key].copy()


def newest(part: HeldOut, index: np.ndarray, places: int = PLACES) -> np.ndarray:
    """(n, A) int64: the last item rows of the histories of users ``index``, newest first, 0 where there is none."""
    at = part.target_start[index][:, None] - np.arange(1, places + 1)
    known = at >= part.history_start[index][:, None]
    return np.where(known, part.prepared.items[np.maximum(at, 0)], 0).astype(np.int64)


def label(training: TrainingEvents, recent: np.ndarray, target: np.ndarray, kinds: bool = False) -> np.ndarray:
    """(n,) int8, the place in ``LABELS`` of each case.

    In much data more pairs of neighbours can matter than :data:`recsys.statistics.neighbours.PAIRS`: cases that few
    training users do not prove composed are then left "undecided" between composed and neither; a warning counts them.

    Args:
        recent: (n, A) item rows, the newest first and 0 where the history ends.
        target: (n,) item rows.
        kinds: also which kind of composition it is, the first of ``KINDS`` that holds.
    """
    codes = np.full(len(target), NEITHER, np.int8)
    cold, alone = training.item_counts()[target] == 0, recent[:, 0] == 0
    codes[cold], codes[alone] = COLD, NO_HISTORY
    case = np.flatnonzero(~cold & ~alone)
    known = memorised(training, recent[case, 0], target[case])
    codes[case[known]] = MEMORISED
    case = case[~known]
    try:
        for users in (None,) if kinds else _growing(training):
            rest = case[codes[case] == NEITHER]
            if kinds:
                hops = relations(training, recent[rest], target[rest], (recent.shape[1],))
                codes[rest] = np.where(hops.any(1), COMPOSED + 1 + (hops > 0).argmax(1), NEITHER)
            else:
                codes[rest[composed(training, recent[rest], target[rest], users)]] = COMPOSED
    except MemoryError as error:
        rest = case[codes[case] == NEITHER]
        codes[rest] = UNDECIDED
        note = f"{len(rest):,} of {len(codes):,} targets are not memorised and left undecided: {error}"
        warnings.warn(note, DataWarning, stacklevel=5)
    return codes


def memorised(
    training: TrainingEvents, last: np.ndarray, target: np.ndarray, names: np.ndarray | None = None
) -> np.ndarray:
    """(n,) bool: whether ``target`` comes right behind ``last`` in somebody's training events; item rows (n,) each.

    Training is read in blocks, so that nothing larger than the cases is held. ``names`` (N+1,) makes items with one
    name the same item.
    """
    name = np.arange(training.num_items + 1) if names is None else np.unique(names, return_inverse=True)[1]
    width = int(name.max(initial=0)) + 1
    first, second = name[last], name[target]
    sought, case = np.unique(first * width + second, return_inverse=True)
    begins, ends, found = np.zeros(width, bool), np.zeros(width, bool), np.zeros(len(sought), bool)
    begins[first], ends[second] = True, True
    maybe = np.zeros(SIEVE * len(sought) + 1, bool)  # by remainder: what it lets through is looked up
    maybe[sought % len(maybe)] = True
    for a, b in pairs(training, 1, begins[name], ends[name]):
        keys = name[a] * width + name[b]
        keys = keys[maybe[keys % len(maybe)]]
        at = np.minimum(np.searchsorted(sought, keys), len(sought) - 1)
        found[at[sought[at] == keys]] = True
    return found[case]


def memorised_codes(
    training: TrainingEvents, codes: np.ndarray, last: np.ndarray, target: np.ndarray, ordered: bool = True
) -> np.ndarray:
    """(n, M) bool: the cases that are memorised once items are known by some of their codes only.

    Column m of ordered codes: by the first m + 1 codes, so that fewer are memorised from left to right. Of unordered
    ones: by code m alone; a row's sum says how many pairs of codes have been seen.

    Args:
        codes: (N+1, M) integers by item row.
        last: (n,) item rows, the newest of each history.
        target: (n,) item rows.

    Raises:
        ValueError: ``codes`` is not such a table.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or len(codes) != training.num_items + 1 or codes.dtype.kind not in "iu":
        raise ValueError(
            f"codes of {training.num_items:,} items are integers of shape ({training.num_items + 1}, M), row 0 for "
            f"padding; found {codes.dtype} {codes.shape}: align the table with the items of the split"
        )
    found = np.zeros((len(target), codes.shape[1]), bool)
    name = np.zeros(len(codes), np.int64)
    for level, column in enumerate(codes.T):
        own = np.unique(column, return_inverse=True)[1]
        name = np.unique(name * len(codes) + own, return_inverse=True)[1] if ordered else own
        found[:, level] = memorised(training, last, target, name)
    return found


def composed(training: TrainingEvents, recent: np.ndarray, target: np.ndarray, users: int | None = None) -> np.ndarray:
    """(n,) bool: which cases, memorised ones put aside, are composed of any kind; arguments as of :func:`label`.

    ``users``: of what that many first training users did, which is never more than what all did.

    Raises:
        MemoryError: more pairs of neighbours than ``PAIRS`` matter.
    """
    found, rest = np.zeros(len(target), bool), np.arange(len(target))
    near = Neighbours.of(training, recent.shape[1], _mask(training, recent, target), users=users)
    for reached in (near.has, near.meets):
        for anchor in recent.T:
            rest = rest[~found[rest]]
            found[rest] = reached(anchor[rest], target[rest])
    return found


def _growing(training: TrainingEvents) -> list[int | None]:
    """How many first users to look at, one after the other; None for all.

    In much data a part proves nearly all cases, so that all of it is read for the neighbours of a few items only.
    """
    sizes, ends = [], np.cumsum(training.lengths)
    events = FIRST
    while 4 * events < training.num_events:
        sizes.append(max(int(np.searchsorted(ends, events, side="right")), 1))
        events *= GROWTH
    return [*sizes, None]


def relations(
    training: TrainingEvents, recent: np.ndarray, target: np.ndarray, hops: Sequence[int] = range(1, PLACES + 1)
) -> np.ndarray:
    """(n, 4) int8: the first of ``hops`` at which each of ``KINDS`` holds, 0 for none; kinds overlap.

    Of cases that are not memorised; arguments as of :func:`label`.

    Raises:
        MemoryError: more pairs of neighbours than ``PAIRS`` matter.
    """
    found = np.zeros((len(target), len(KINDS)), np.int8)
    matter = _mask(training, recent, target)
    for hop in hops:
        after = Neighbours.of(training, hop, matter, before=False)
        before = Neighbours.of(training, hop, matter, after=False)
        for kind, holds in enumerate(_tests(after, before, hop)):
            for anchor in recent[:, :hop].T:
                rest = np.flatnonzero((found[:, kind] == 0) & (anchor > 0))
                found[rest, kind] = hop * holds(anchor[rest], target[rest])
    return found


def _tests(after: Neighbours, before: Neighbours, hop: int) -> tuple[Test, ...]:
    """One for each of ``KINDS``: item rows u (n,) and v (n,) to bool (n,)."""
    return (
        lambda u, v: after.has(u, v) if hop > 1 else np.zeros(len(u), bool),
        lambda u, v: after.has(v, u),
        lambda u, v: meet(after, u, before, v),
        lambda u, v: meet(after, v, before, u) | meet(after, v, after, u) | meet(before, v, before, u),
    )


def _mask(training: TrainingEvents, recent: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N+1,) bool: the items of some cases, whose neighbours matter."""
    mask = np.zeros(training.num_items + 1, bool)
    mask[recent], mask[target] = True, True
    return mask
