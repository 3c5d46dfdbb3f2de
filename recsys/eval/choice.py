"""From what a caller asks for ("ndcg", "ndcg@10", an object of the caller's) to the columns to compute."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recsys.eval.aggregates import Aggregate, Coverage, Gini
from recsys.eval.metrics.hit_rate import HitRate
from recsys.eval.metrics.map import MAP
from recsys.eval.metrics.mrr import MRR
from recsys.eval.metrics.ndcg import NDCG
from recsys.eval.metrics.novelty import Novelty
from recsys.eval.metrics.popularity_bias import PopularityBias
from recsys.eval.metrics.precision import Precision
from recsys.eval.metrics.ranked import Metric
from recsys.eval.metrics.recall import Recall

METRICS: tuple[Metric, ...] = (
    HitRate(), Recall(), NDCG(), MRR(), MAP(), Precision(), Novelty(), PopularityBias(),
)  # fmt: skip
AGGREGATES: tuple[Aggregate, ...] = (Coverage(), Gini())
ELSEWHERE = {
    "hit": "hr", "hits": "hr", "hitrate": "hr", "hitratio": "hr", "prec": "precision", "recip": "mrr",
    "meanreciprocalrank": "mrr", "meanaverageprecision": "map", "averagepopularity": "popularity",
    "itemcoverage": "coverage", "catalogcoverage": "coverage", "catalogcov": "coverage", "giniindex": "gini",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What one evaluation computes: per-user metrics and aggregates, each with its cut-off."""

    metrics: tuple[tuple[str, Metric, int], ...]  # (column, metric, k)
    aggregates: tuple[tuple[str, Aggregate, int], ...]

    @property
    def list_length(self) -> int:
        """Longest list that any of them reads; 0 if ranks are enough."""
        reading = [k for _, metric, k in self.metrics if getattr(metric, "lists", False)]
        return max([*reading, *(k for _, _, k in self.aggregates)], default=0)

    @property
    def depth(self) -> int:
        """How deep the metrics look: the largest cut-off."""
        return max([0, *(k for _, _, k in (*self.metrics, *self.aggregates))])

    def require_cuts(self, model: str) -> None:
        """Raise ValueError where a metric has no cut-off, which lists of a model cannot answer."""
        whole = [column for column, metric, _ in self.metrics if not getattr(metric, "at_k", True)]
        if whole:
            raise ValueError(
                f"{', '.join(whole)} needs the ranks of all items, and {model} only gives lists: ask for metrics with "
                "a cut-off, such as 'mrr@10', or evaluate a model that scores all items"
            )

    @property
    def exposure_cuts(self) -> tuple[int, ...]:
        """The list lengths at which items are counted."""
        return tuple(sorted({k for _, _, k in self.aggregates}))


def choose(metrics: Iterable[str | Metric | Aggregate] | None, k: int | Sequence[int], num_items: int) -> Choice:
    """The columns for ``metrics`` (all of the library's if None) at the cut-offs ``k``.

    A name may carry its own cut-off ("ndcg@10"), which is then the only one for it.

    Raises:
        ValueError: an unknown name, the same column twice, a cut-off below 1 or above the number of items.
    """
    chosen: dict[str, tuple[str, Any, int]] = {}
    wanted: Any
    for wanted in (*METRICS, *AGGREGATES) if metrics is None else metrics:
        part, own = _find(wanted, num_items) if isinstance(wanted, str) else (wanted, None)
        _check(part)
        at_k = getattr(part, "at_k", True)
        for cut in (own,) if own else _cuts(k, num_items) if at_k else (num_items,):
            column = f"{part.name}@{cut}" if at_k else part.name
            if column in chosen:
                raise ValueError(f"{column} is named twice: name each metric once, or give yours another name")
            chosen[column] = (column, part, cut)
    if not chosen:
        raise ValueError("metrics is empty: pass names such as 'ndcg@10', or None for all of them")
    return Choice(
        tuple(entry for entry in chosen.values() if not _is_aggregate(entry[1])),
        tuple(entry for entry in chosen.values() if _is_aggregate(entry[1])),
    )


def _cuts(k: int | Sequence[int], num_items: int) -> tuple[int, ...]:
    cuts = tuple(k) if isinstance(k, Iterable) else (k,)
    for cut in cuts:
        if isinstance(cut, bool) or int(cut) != cut or cut < 1:
            raise ValueError(f"k holds list lengths, whole numbers from 1 up; found {cut!r}")
        if cut > num_items:
            raise ValueError(f"k={cut} is larger than the catalogue of {num_items:,} items: choose k <= {num_items}")
    return tuple(sorted({int(cut) for cut in cuts}))


def _find(name: str, num_items: int) -> tuple[Metric | Aggregate, int | None]:
    base, at, cut = name.partition("@")
    known: dict[str, Metric | Aggregate] = {metric.name: metric for metric in METRICS}
    known |= {aggregate.name: aggregate for aggregate in AGGREGATES}
    if base not in known:
        meant = _meant(name, known)
        hint = f"did you mean {meant!r}? " if meant else ""
        raise ValueError(f"no metric is called {base!r}; {hint}known: {', '.join(known)}")
    if not at:
        return known[base], None
    if not cut.isdecimal():
        raise ValueError(f"{name!r} should look like '{base}@10': a whole number behind the @")
    if int(cut) > num_items:
        raise ValueError(f"{name!r} looks beyond the catalogue of {num_items:,} items: ask for '{base}@{num_items}'")
    return known[base], _cuts(int(cut), num_items)[0]


def _meant(name: str, known: Iterable[str]) -> str:
    """The metric that ``name`` may stand for, as it is written here, with its cut-off; "" if none is near."""
    found = re.fullmatch(r"(.*?)(?:(?:_?at_?|@|_)?k?=?(\d+))?", name.lower().strip())
    base, cut = (found[1], found[2]) if found else (name, None)
    base = re.sub(r"[^a-z]", "", base)
    close = difflib.get_close_matches(base, known, n=1)
    near = ELSEWHERE.get(base) or (close[0] if close else "")
    return f"{near}@{cut}" if near and cut else near


def _check(part: Any) -> None:
    if isinstance(part, type) or not callable(part) or not isinstance(getattr(part, "name", None), str):
        raise TypeError(f"a metric is an object with a `name` and __call__(ranked, k); found {part!r}")
    if not part.name or "@" in part.name:
        raise ValueError(f"a metric needs a name without '@' (the cut-off follows it); found {part.name!r}")


def _is_aggregate(part: Any) -> bool:
    return bool(getattr(part, "exposure", False))
