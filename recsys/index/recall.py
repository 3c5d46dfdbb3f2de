"""What a graph finds of the true neighbours, by depth, with and without what a request leaves out.

A query that is in the index finds itself and its copies at once, and a mean over the best ten says nothing of what lies
behind them. So the queries are user vectors, or mixtures of item vectors; ranks are looked at ten by ten; and what is
denied is denied here too.

Legend: B queries, D width, N items.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from recsys.errors import DataWarning
from recsys.progress import Progress
from recsys.randomness import numpy_generator
from recsys.ranking.filters import Pairs, Shown

Index = Any  # recsys.index.search.Index, which asks for its recall here
QUERIES = 1000
DEPTHS = (10, 100)
WINDOW = 10  # ranks looked at together
GOOD = 0.95  # share of a window that a graph must find to be asked that deep
LOW = 0.9  # below this it is said
DENIED = 50  # best neighbours denied where no histories are given
LARGE = 20_000  # items from which it takes so long that it is said how far it is
LONGEST = 2048  # items that a graph is asked for at most
_CHUNK = 128  # queries at a time


def measure(index: Index, queries: np.ndarray | None, denied: Pairs | None, k: int) -> dict[str, Any]:
    """Shares found by the graph alone, as :attr:`recsys.index.search.Index.recall` keeps them; 1 for an exact index."""
    living = np.flatnonzero(index.items.alive)
    count, made = len(living), queries is None
    if queries is None:
        rng = numpy_generator(index._settings["seed"], "recall")
        wanted = QUERIES if index.kind == "hnsw" and count else 0
        queries = mixtures(index.vectors, living, wanted, rng)
    depths = sorted({min(depth, count) for depth in (k, *DEPTHS)})
    known = {"k": min(k, count), "queries": "made" if made else "given", "num_queries": len(queries), "count": count}
    if index.kind == "exact" or not len(queries) or not count:
        return {**known, "value": 1.0, "at": {str(depth): 1.0 for depth in depths}}
    given, least = denied is not None, min(DENIED, count // 4)
    sums: dict[str, np.ndarray] = {}
    with Progress(len(queries), "measuring the recall of the graph", "queries", enabled=count >= LARGE) as shown:
        for first in range(0, len(queries), _CHUNK):
            part = queries[first : first + _CHUNK]
            truth = index._scan(part, min(max(depths[-1], least, _effort(index)), count), Shown())
            pairs = Pairs(np.repeat(np.arange(len(part)), least), truth[0][:, :least].ravel())
            if denied is not None:
                pairs = denied.within(first, first + len(part))
            for name, found in _chunk(index, part, truth[1], pairs, depths).items():
                sums[name] = sums.get(name, 0) + found
            shown.advance(len(part))
    shares = {name: found / len(queries) for name, found in sums.items()}
    at, without = ({str(d): float(v) for d, v in zip(depths, shares[name])} for name in ("at", "denied"))
    bad = np.flatnonzero(shares["windows"] < GOOD)
    trusted = WINDOW * (int(bad[0]) if len(bad) else len(shares["windows"]))
    if count <= _effort(index):  # it finds all there is
        trusted = count
    return {
        **known,
        "value": at[str(known["k"])],
        "at": at,
        "denied": without,
        "denial": "histories" if given else f"the {least} best",
        "depth": trusted // 2 if made and len(bad) else trusted,  # those who really ask may lie otherwise
    }


def mixtures(vectors: np.ndarray, living: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, D) queries that no item equals: sums of few or many item vectors, with random weights.

    They spread as the items do, and none lies nearer to an item than users do.
    """
    size = 64
    if not count:
        return np.zeros((0, vectors.shape[1]), np.float32)
    chosen = living[rng.integers(0, len(living), (count, size))]
    weights = rng.standard_normal((count, size)).astype(np.float32)
    weights[np.arange(size) >= rng.integers(2, size + 1, (count, 1))] = 0
    return np.einsum("bsd,bs->bd", vectors[chosen], weights).astype(np.float32)


def checked(told: Any) -> dict[str, Any]:
    """What a file says was measured; ValueError (or what Python makes of it) if that is not a recall."""
    found = dict(told)
    if found:
        shares = [*found.get("at", {}).values(), *found.get("denied", {}).values()]
        numbers = [found["k"], found["value"], found["num_queries"], found.get("depth", 0), *shares]
        if not all(type(one) in (int, float) and np.isfinite(one) for one in numbers):
            raise ValueError("its recall holds a value that is not a number")
        if not isinstance(found["queries"], str) or ("denied" in found and not isinstance(found["denial"], str)):
            raise ValueError("its recall does not say on what it was measured")
    return found


def warn_if_low(index: Index, stacklevel: int) -> None:
    """A warning for the caller ``stacklevel`` frames up, if the graph of ``index`` misses much."""
    note = low(index.recall)
    if note:
        settings = index._settings
        advice = f"raise ef_search (now {settings['ef_search']}) or m (now {settings['m']}), or use the exact index"
        warnings.warn(f"{note}: {advice}", DataWarning, stacklevel=stacklevel)


def low(recall: dict[str, Any]) -> str:
    """A sentence on what the graph misses, empty if it misses little."""
    shares = [(f"the true top {depth}", share) for depth, share in recall.get("at", {}).items()]
    if recall.get("denial") == "histories":
        shares += [(f"the true top {depth} without histories", share) for depth, share in recall["denied"].items()]
    worst = min(shares, key=lambda one: one[1], default=None)
    if worst is None or worst[1] >= LOW:
        return ""
    depth = recall.get("depth", 0)
    how = f"requests beyond rank {depth} are" if depth else "all requests are"
    return f"the graph finds {worst[1]:.1%} of {worst[0]}; {how} compared with all items instead, which takes longer"


def _effort(index: Index) -> int:
    return int(index._settings["ef_search"])


def _chunk(
    index: Index, queries: np.ndarray, truth: np.ndarray, denied: Pairs, depths: list[int]
) -> dict[str, np.ndarray]:
    """Sums over queries: found of each depth, of each with ``denied``, and of each window of ranks."""
    effort, rows, total = _effort(index), len(queries), len(index.items)
    shown = Shown(denied=denied)
    without = index._scan(queries, depths[-1], shown)[1]
    found: dict[str, np.ndarray] = {"at": np.zeros(len(depths)), "denied": np.zeros(len(depths))}
    owners, most = np.arange(rows)[:, None], int(np.bincount(denied.owners, minlength=1).max())
    for column, depth in enumerate(depths):
        for name, may, best, beam in (("at", Shown(), truth, depth), ("denied", shown, without, depth + most)):
            positions, scores = index._ask(queries, max(effort, min(beam, LONGEST)))
            hidden = may.hidden(np.broadcast_to(owners, positions.shape), positions, total) | (positions < 0)
            found[name][column] = _share(np.where(hidden, -np.inf, scores), best, depth).sum()
    positions, scores = index._ask(queries, effort)
    ends = np.arange(WINDOW, min(effort, truth.shape[1]) + 1, WINDOW)
    upto = np.stack([np.zeros(rows), *(_share(scores, truth, end) * end for end in ends)])
    found["windows"] = np.diff(upto, axis=0).sum(1) / WINDOW if len(ends) else np.zeros(0)
    return found


def _share(scores: np.ndarray, truth: np.ndarray, depth: int) -> np.ndarray:
    """(B,) share of the best ``depth`` in ``truth`` (as far as there are so many) that is as good in ``scores``."""
    there = np.maximum((~np.isneginf(truth[:, :depth])).sum(1), 1)
    worst = truth[np.arange(len(truth)), there - 1][:, None]
    enough = scores >= worst - 1e-5 * np.maximum(np.abs(worst), 1e-3)
    return np.minimum((enough & ~np.isneginf(scores)).sum(1), there) / there
