"""``evaluate``: rank the whole catalogue for every held-out user and report one number per user and metric.

Legend: n users of the part, b users of a batch, N items, C candidates (all N, or those asked for), K longest list.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from recsys.errors import DataError, DataWarning
from recsys.eval.aggregates import Aggregate
from recsys.eval.candidates import Pool, choose_pool
from recsys.eval.choice import Choice, choose
from recsys.eval.metrics import Catalogue, Metric, Ranked
from recsys.eval.ranking import Landed, Plan, rank_targets
from recsys.eval.report import Report
from recsys.eval.segments import popularity_thresholds
from recsys.progress import Progress

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.data.vocabulary import Vocabulary
    from recsys.ranker import Ranker

CUTS = (1, 5, 10, 20)


def evaluate(
    model: Ranker,
    part: HeldOut,
    k: int | Sequence[int] | None = None,
    metrics: Iterable[str | Metric | Aggregate] | None = None,
    exclude: Literal["history", "none"] = "history",
    memory: str | int = "512MB",
    progress: bool = True,
    segments: Mapping[str, Sequence[Any]] | None = None,
    name: str | None = None,
    users: Vocabulary | None = None,
    rank: int = 0,
    world_size: int = 1,
    candidates: str | Sequence[Any] | np.ndarray = "all",
) -> Report:
    """A :class:`Report` of how ``model`` ranks the targets of ``part`` among all items.

    Ranks are exact: no candidate is sampled, and equally scored items count with the expected value over all their
    orders, so a constant scorer gets what guessing gives.

    Args:
        model: anything with ``score_safely(batch) -> (b, N)``, column j for item row j + 1.
        part: ``split.valid`` or ``split.test``.
        k: cut-offs, none above the number of items (default: 1, 5, 10 and 20, as far as the catalogue goes). A user
            with fewer candidates than k has a shorter list, which precision still divides by k; the report counts
            these users.
        metrics: names ("ndcg", or "ndcg@10" with its own cut-off), or objects of your own; None for all.
        exclude: "history" takes what the user had out of the candidates, "none" leaves everything in. A target that
            repeats an item of the history stays a candidate either way, and is counted.
        memory: what scoring and ranking may hold at a time, besides the model; it decides the users per batch.
        segments: further segments: name -> one label per user of the part.
        name: what the report calls the model; by default its class.
        users: the vocabulary of users, to keep their raw ids in the report.
        rank, world_size: evaluate ``users[rank::world_size]``; put the shares together with :meth:`Report.merge`,
            which gives what one process gives, as far as the scores of a user do not depend on the rest of a batch.
        candidates: what is ranked: "all" items, the "cold" ones that training never saw, raw item ids (of the model's
            vocabulary), or a mask (N+1,) bool by item row. ``exclude`` applies to what is left. Targets that are no
            candidates are left out, and so are users without any other; a warning counts both. Coverage and Gini
            then are over the candidates, and the protocol of the report names them and what guessing gives.

    Raises:
        ValueError: a bad argument, a score that is NaN or infinite, scores of the wrong shape.
        DataError: the part has no users or another number of items than the model; no candidate, an unknown one, or
            no target among them.
    """
    if exclude not in ("history", "none"):
        raise ValueError(f"exclude is 'history' or 'none'; found {exclude!r}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1; found rank={rank} with world_size={world_size}")
    num_items = shared_num_items(model, part)
    pool = choose_pool(candidates, model, part)
    size = num_items if pool is None else len(pool)
    choice = choose(metrics, [cut for cut in CUTS if cut <= size] if k is None else k, size)
    own = {title: _labels(title, labels, len(part)) for title, labels in (segments or {}).items()}
    share = np.arange(rank, len(part), world_size)
    lengths = history_lengths(model, part, share)
    plan = Plan.fit(memory, num_items, int(lengths.max(initial=0)), device_of(model))
    run = _Run(model, part, choice, exclude == "history", plan, num_items, pool)
    bar = Progress(len(share), f"evaluate {part.name}", "users", enabled=progress and rank == 0)
    with evaluating(model), torch.inference_mode(), bar:
        for alike in (lengths > 0, lengths == 0):  # apart, for a mixed batch would hold its scores twice
            index = share[alike]
            for chosen in plan.batches(lengths[alike]):
                run.add(index[chosen])
                bar.advance(chosen.stop - chosen.start)
    columns = run.columns()
    if users is not None:
        columns["user_id"] = np.asarray(users.raw(columns["user"]))
    columns |= {f"segment:{title}": labels[columns["position"]] for title, labels in own.items()}
    meta = {
        "model": name or type(model).__name__,
        "part": part.name,
        "protocol": part.protocol if pool is None else part.protocol | pool.protocol(),
        "data_hash": getattr(part, "data_hash", ""),
        "exclude": exclude,
        "num_items": num_items,
        "users_total": len(part),
        "users_without_targets": run.without_targets,
        "shares": [[rank, world_size]],
        "fingerprint": run.fingerprint,
        "metrics": [column for column, _, _ in choice.metrics],
        "popularity_thresholds": list(popularity_thresholds(part.item_counts)),
    }
    if pool is not None:
        meta |= {"num_candidates": len(pool), "targets_outside": pool.outside}
    if run.without_targets:
        where = f" among the candidates ({pool.outside:,} targets are none)" if pool is not None else ""
        warnings.warn(
            f"{run.without_targets:,} of {len(part):,} users have no target{where} and are left out",
            DataWarning,
            stacklevel=2,
        )
    return Report.make(meta, columns, run.exposure, choice.aggregates)


@dataclass
class _Run:
    """Collects what each batch of users adds."""

    model: Any
    part: Any
    choice: Choice
    hide_history: bool
    plan: Plan
    num_items: int
    pool: Pool | None

    def __post_init__(self) -> None:
        self.device = device_of(self.model)
        self.catalogue = Catalogue(np.asarray(self.part.item_counts))
        self.needs = frozenset(getattr(self.model, "needs", ()))
        self.without_targets = self.fingerprint = 0
        self.places = np.arange(self.num_items + 1) if self.pool is None else self.pool.places
        self.size = self.num_items if self.pool is None else len(self.pool)
        self.exposure = {k: np.zeros(self.size, dtype=np.int64) for k in self.choice.exposure_cuts}
        self._parts: list[dict[str, np.ndarray]] = []

    def add(self, index: np.ndarray) -> None:
        """Rank the users at ``index`` of the part."""
        owner, target = self.part.targets(index)
        if self.pool is not None:
            inside = self.places[target] > 0
            owner, target = owner[inside], target[inside]
        count = np.bincount(owner, minlength=len(index))
        order = np.argsort(-count, kind="stable")[: int(np.count_nonzero(count))]  # more targets first, none left out
        self.without_targets += len(index) - len(order)
        if not len(order):
            return
        index = index[order]
        place = np.full(len(count), -1)
        place[order] = np.arange(len(order))
        owner = place[owner]
        pairs = np.lexsort((target, owner))
        owner, target = owner[pairs], target[pairs]
        known, length = self._history(index)
        repeated = _contains(known, owner * (self.num_items + 1) + target)
        scores = self._scores(index)
        hidden = self._hidden(known) if self.hide_history else None
        landed = rank_targets(
            scores,
            (owner, self.places[target]),
            hidden,
            self.plan.chunk,
            self.choice.list_length,
            self.part.users[index],
        )
        users = len(index)
        candidates = np.full(users, self.size)
        if hidden is not None:
            candidates += np.bincount(owner[repeated], minlength=users) - np.bincount(hidden[0], minlength=users)
        self._parts.append(
            self._measure(landed, owner, candidates)
            | self._describe(index, owner, target, landed, repeated)
            | {"history_length": length, "candidates": candidates}
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Everything collected, users in the order of the part."""
        if not self._parts:
            empty: dict[str, np.ndarray] = {column: np.zeros(0, dtype=kind) for column, kind in _COLUMNS.items()}
            return empty | {column: np.zeros(0) for column, _, _ in self.choice.metrics}
        joined = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        order = np.argsort(joined["position"], kind="stable")
        return {name: values[order] for name, values in joined.items()}

    def _history(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct (user, item) of the histories as sorted keys user * (N + 1) + item, and their lengths in events."""
        owner, item = self.part.history(index)
        keys = np.sort(np.asarray(owner, dtype=np.int64) * (self.num_items + 1) + item)
        distinct = np.ones(len(keys), dtype=bool)  # np.unique, but by sorting: several times faster here
        distinct[1:] = keys[1:] != keys[:-1]
        return keys[distinct], np.bincount(owner, minlength=len(index))

    def _hidden(self, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(user position, column from 1) of the history items that are candidates, from their sorted keys."""
        user, item = np.divmod(known, self.num_items + 1)
        if self.pool is None:
            return user, item
        place = self.places[item]
        return user[place > 0], place[place > 0]

    def _scores(self, index: np.ndarray) -> torch.Tensor:
        """(b, C) scores of the candidates."""
        batch = self.part.batch(index, self.model.max_length, self.needs).to(self.device)
        scores = self.model.score_safely(batch)
        if tuple(scores.shape) != (len(index), self.num_items):
            raise ValueError(
                f"{type(self.model).__name__}.score must give one row per user and one column per item, "
                f"({len(index)}, {self.num_items}); found {tuple(scores.shape)}"
            )
        return scores if self.pool is None else scores[:, self.pool.columns(scores.device)]

    def _measure(self, landed: Landed, owner: np.ndarray, candidates: np.ndarray) -> dict[str, np.ndarray]:
        lists = landed.lists
        if lists is not None and self.pool is not None:
            lists = self.pool.items(lists)
        ranked = Ranked.from_pairs(owner, landed.above, landed.size, candidates, lists=lists, catalogue=self.catalogue)
        for k, exposure in self.exposure.items():
            assert landed.lists is not None
            shown = landed.lists[:, :k]
            np.add.at(exposure, shown[shown > 0] - 1, 1)
        tied = ranked.sum(np.where(ranked.size > ranked.hits, ranked.hits, 0)).astype(np.int32)
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
        return {
            "position": index,
            "user": rows,
            "num_targets": count.astype(np.int32),
            "target_popularity": np.bincount(owner, weights=seen, minlength=users) / count,
            "cold_targets": np.bincount(owner[seen == 0], minlength=users).astype(np.int32),
            "repeated_targets": np.bincount(owner[repeated], minlength=users).astype(np.int32),
        }


_COLUMNS: dict[str, type] = {
    "position": np.int64, "user": np.int64, "history_length": np.int64, "num_targets": np.int32,
    "candidates": np.int64, "target_popularity": np.float64, "cold_targets": np.int32,
    "repeated_targets": np.int32, "tied_targets": np.int32,
}  # fmt: skip


def shared_num_items(model: Any, part: Any) -> int:
    """The number of items, if ``model`` has learned the catalogue that ``part`` is over; else an error."""
    if not hasattr(part, "item_counts"):
        raise TypeError(f"evaluate ranks one part, split.valid or split.test; found {type(part).__name__}")
    expected = len(part.item_counts) - 1
    found = getattr(model, "num_items", None)
    if not found:
        raise ValueError(f"{type(model).__name__} has not learnt anything yet: call fit(model, split) before evaluate")
    if found != expected:
        raise DataError(
            f"the model knows {found:,} items, the held-out part {expected:,}: evaluate on the split it was trained on"
        )
    if not len(part):
        raise DataError(f"the part {part.name!r} has no users: split the data so that some events are held out")
    return expected


def history_lengths(model: Any, part: Any, index: np.ndarray) -> np.ndarray:
    """(n,) how many items of their histories ``model`` reads of the users at ``index`` (n,)."""
    lengths: np.ndarray = (part.target_start - part.history_start)[index]
    return lengths if model.max_length is None else np.minimum(lengths, model.max_length)


def device_of(model: Any) -> torch.device:
    """Where the tensors of ``model`` are; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode, and every module back in its own mode afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


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


def _labels(title: str, labels: Sequence[Any], users: int) -> np.ndarray:
    found = np.asarray(labels).astype(str)
    if found.shape != (users,):
        raise ValueError(f"segment {title!r} needs one label per user of the part, ({users},); found {found.shape}")
    return found


def _fingerprint(users: np.ndarray, targets: np.ndarray) -> int:
    """A sum of hashes of (user row, target row): equal for equal targets whatever the order or the sharing out."""
    x = users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + targets.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # mixing as in splitmix64
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return int((x ^ (x >> np.uint64(31))).sum(dtype=np.uint64))
