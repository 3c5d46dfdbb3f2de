"""What each batch of users adds to an evaluation: where their targets landed, their metrics, and what lists show.

Legend: n users of the part, b users of a batch, N items, C candidates, P (user, target) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.eval.choice import Choice
from recsys.eval.exact import ExactRanking
from recsys.eval.list_only import ListRanking
from recsys.eval.listed import Listed
from recsys.eval.metrics.ranked import Catalogue, Ranked
from recsys.eval.ranks import Asked, Landed


@dataclass
class Collector:
    """Ranks users batch by batch. All item rows are those of the part, unless said otherwise."""

    ranking: ExactRanking | ListRanking
    part: Any
    choice: Choice
    exclude: str
    denied: Listed | None = None

    def __post_init__(self) -> None:
        self.candidates, self.num_items = self.ranking.candidates, self.ranking.scorer.num_items
        self.catalogue = Catalogue(np.asarray(self.part.item_counts))
        self.without_targets = self.fingerprint = 0
        self._shown = {k: np.zeros(self.num_items + 1, dtype=np.int64) for k in self.choice.exposure_cuts}
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, index: np.ndarray) -> None:
        """Rank the users at ``index`` of the part."""
        owner, target = self.targets(index)
        count = np.bincount(owner, minlength=len(index))
        order = np.argsort(-count, kind="stable")[: int(np.count_nonzero(count))]  # more targets first, none left out
        self.without_targets += len(index) - len(order)
        if not len(order):
            return
        index = index[order]
        position = np.full(len(count), -1)
        position[order] = np.arange(len(order))
        owner = position[owner]
        pairs = np.lexsort((target, owner))
        owner, target = owner[pairs], target[pairs]
        known, length = self._history(index)
        wanted = owner * (self.num_items + 1) + target
        repeated = _contains(known, wanted)
        keys = self._hidden(known, wanted, index)
        hidden = None if keys is None else np.divmod(keys, self.num_items + 1)
        landed = self.ranking.rank(Asked(index, owner, target, hidden))
        self._parts.append(
            self._measure(landed, owner)
            | self._describe(index, owner, target, landed, repeated)
            | {"history_length": length, "candidates": landed.candidates}
        )

    def targets(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The targets of users ``index`` that are ranked: (position within ``index``, item row), (pairs,) each."""
        owner, target = self.part.targets(index)
        kept = self.candidates.keeps(index, owner, target)
        return owner[kept], target[kept]

    def columns(self) -> dict[str, np.ndarray]:
        """Everything collected, users in the order of the part."""
        if not self._parts:
            empty: dict[str, np.ndarray] = {column: np.zeros(0, dtype=kind) for column, kind in _COLUMNS.items()}
            return empty | {column: np.zeros(0) for column, _, _ in self.choice.metrics}
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        order = np.argsort(joined["position"], kind="stable")
        return {name: values[order] for name, values in joined.items()}

    def exposure(self) -> dict[int, np.ndarray]:
        """List length -> how often each item that can stand in a list was shown, by ascending row."""
        return {k: shown[self.candidates.universe] for k, shown in self._shown.items()}

    def _history(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct (user, item) of the histories as sorted keys user * (N + 1) + item, and their lengths in events."""
        owner, item = self.part.history(index)
        keys = np.sort(np.asarray(owner, dtype=np.int64) * (self.num_items + 1) + item)
        distinct = np.ones(len(keys), dtype=bool)  # np.unique, but by sorting: several times faster here
        distinct[1:] = keys[1:] != keys[:-1]
        return keys[distinct], np.bincount(owner, minlength=len(index))

    def _hidden(self, known: np.ndarray, wanted: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        """The keys of what is not recommended: by the rule for the history, and what is denied to a user."""
        hidden = None
        if self.exclude == "history":
            hidden = known
        elif self.exclude == "history-except-targets":
            hidden = known[~_contains(wanted, known)]
        if self.denied is not None:
            owner, item = self.denied.pairs(index)
            denied = owner * (self.num_items + 1) + item
            hidden = denied if hidden is None else np.union1d(hidden, denied)
        return hidden

    def _measure(self, landed: Landed, owner: np.ndarray) -> dict[str, np.ndarray]:
        lists = landed.lists
        ranked = Ranked.from_pairs(
            owner, landed.above, landed.size, landed.candidates, landed.reached, lists=lists, catalogue=self.catalogue
        )
        for k, shown in self._shown.items():
            assert lists is not None
            first = lists[:, :k]
            np.add.at(shown, first[first > 0], 1)
        if landed.tied is None:
            tied = ranked.sum(np.where(ranked.size > ranked.hits, ranked.hits, 0)).astype(np.int32)
        else:
            tied = np.bincount(owner[landed.tied], minlength=len(ranked)).astype(np.int32)
        return {"tied_targets": tied} | {
            column: _one_per_user(column, metric(ranked, k), len(ranked)) for column, metric, k in self.choice.metrics
        }

    def _describe(
        self, index: np.ndarray, owner: np.ndarray, target: np.ndarray, landed: Landed, repeated: np.ndarray
    ) -> dict[str, np.ndarray]:
        users, rows = len(index), np.asarray(self.part.users)[index]
        count = np.bincount(owner, minlength=users)
        seen = self.part.item_counts[target]
        self.fingerprint = (self.fingerprint + _fingerprint(rows[owner], target)) % 2**64
        never, more = ~landed.reached, {}
        if landed.unlisted is not None and landed.lists is not None:
            never &= ~landed.unlisted
            more["unlisted_targets"] = np.bincount(owner[landed.unlisted], minlength=users).astype(np.int32)
            more["list_length"] = (landed.lists > 0).sum(1).astype(np.int32)
        return more | {
            "position": index,
            "user": rows,
            "num_targets": count.astype(np.int32),
            "target_popularity": np.bincount(owner, weights=seen, minlength=users) / count,
            "cold_targets": np.bincount(owner[seen == 0], minlength=users).astype(np.int32),
            "repeated_targets": np.bincount(owner[repeated], minlength=users).astype(np.int32),
            "unreachable_targets": np.bincount(owner[never], minlength=users).astype(np.int32),
        }


_COLUMNS: dict[str, type] = {
    "position": np.int64, "user": np.int64, "history_length": np.int64, "num_targets": np.int32,
    "candidates": np.int64, "target_popularity": np.float64, "cold_targets": np.int32,
    "repeated_targets": np.int32, "unreachable_targets": np.int32, "tied_targets": np.int32,
}  # fmt: skip


def _contains(known: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which ``keys`` are among the sorted ``known`` ones."""
    if not len(known):
        return np.zeros(len(keys), dtype=bool)
    found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[found] == keys


def _one_per_user(column: str, values: Any, users: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (users,) or not np.isfinite(values).all():
        shape = values.shape if values.shape != (users,) else "numbers that are not finite"
        raise ValueError(f"the metric {column} must give one finite number per user, shape ({users},); found {shape}")
    return values


def _fingerprint(users: np.ndarray, targets: np.ndarray) -> int:
    """A sum of hashes of (user row, target row): equal for equal targets whatever the order or the sharing out."""
    x = users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + targets.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # mixing as in splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return int((x ^ (x >> np.uint64(31))).sum(dtype=np.uint64))
