"""``Report``: one row per user, and everything that follows from it (means, intervals, segments, files).

The protocol travels with every number: what was held out, what was excluded, how many users, candidates and ties.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.eval.aggregates import Aggregate
from recsys.eval.segments import Grouping, groupings
from recsys.eval.significance import bootstrap_interval
from recsys.eval.storage import read_table, write_table, write_text
from recsys.storage.reading import reading

VERSION = 2  # of 1, targets that repeat the history were ranked under exclude="history"
EXCLUDE = {  # what may be taken out of the candidates, and what the report calls it
    "history": "history excluded",
    "none": "history not excluded",
    "history-except-targets": "history excluded except for targets that repeat it",
}
TASK = ("part", "protocol", "data_hash", "exclude", "num_items")  # what two reports must have in common
IDS = ("catalogue", "user_ids", "ranked")  # and this, where both say it: hashes of raw ids and of candidates
_SAME = ("model", *TASK, *IDS, "users_total", "metrics", "sample", "list_only", "trained_on")


_COLUMNS = ("user", "history_length", "target_popularity")  # what the parts of a report are made from
_FACTS = ("model", *TASK, "fingerprint", "repeated_targets", "metrics")  # what comparisons read
_KINDS = ("repeated", "unreachable", "cold", "tied")


@dataclass(frozen=True)
class SegmentMean:
    """The mean of one metric over the users of one segment, with its 95% bootstrap interval."""

    grouping: str
    label: str
    users: int
    metric: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """What :func:`recsys.eval.evaluate.evaluate` found. ``columns`` has one entry per user; all else is derived.

    Columns: ``position`` in the part, ``user`` row (and ``user_id`` where known), ``history_length``, ``num_targets``,
    ``candidates``, ``target_popularity`` (mean training count of the targets), how many targets are cold, repeat the
    history, are unreachable (no list can show them) or were tied, and a column per metric, such as ``ndcg@10``. Of a
    part with a split ``transition``, the place in :data:`recsys.statistics.transitions.LABELS`. Of a model that only
    gives lists also ``list_length`` and ``unlisted_targets``.
    """

    meta: dict[str, Any]
    columns: dict[str, np.ndarray]
    aggregates: dict[str, float]
    exposure: dict[int, np.ndarray] = field(default_factory=dict, repr=False)  # k -> (N,) how often each item is shown
    rules: tuple[tuple[str, Aggregate, int], ...] = field(default=(), repr=False)
    seed: int = 0

    @classmethod
    def make(
        cls,
        meta: dict[str, Any],
        columns: dict[str, np.ndarray],
        exposure: dict[int, np.ndarray],
        rules: tuple[tuple[str, Aggregate, int], ...],
    ) -> Report:
        """A report with its counts and aggregates filled in."""
        kinds = (*_KINDS, "unlisted") if meta.get("list_only") else _KINDS
        counts = {f"{kind}_targets": int(columns[f"{kind}_targets"].sum()) for kind in kinds}
        candidates = columns["candidates"]
        lengths = columns.get("list_length", candidates)
        longest = max((int(name.partition("@")[2] or 0) for name in meta["metrics"]), default=0)
        derived = {
            "version": VERSION,
            "users": len(candidates),
            "targets": int(columns["num_targets"].sum()),
            **counts,
            "mean_candidates": float(candidates.mean()) if len(candidates) else 0.0,
            "short_lists": int((lengths < longest).sum()),
        }
        aggregates = {name: float(rule(exposure[k], k)) for name, rule, k in rules}
        plain = json.loads(json.dumps({**meta, **derived}))  # as it will be after saving and loading
        return cls(plain, columns, aggregates, exposure, rules)

    @property
    def name(self) -> str:
        """What the model is called."""
        return str(self.meta["model"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The per-user metric columns."""
        return tuple(self.meta["metrics"])

    @property
    def users(self) -> int:
        """How many users were evaluated."""
        return len(self.columns["user"])

    @property
    def list_only(self) -> int | None:
        """K, where the model gave lists of K items and no scores: what lies deeper is unknown. Else None."""
        found: int | None = self.meta.get("list_only")
        return found

    def per_user(self, metric: str) -> np.ndarray:
        """(n,) the metric of each user, in the order of the part."""
        self._require(metric)
        return self.columns[metric]

    def mean(self, metric: str) -> float:
        """The mean over users, or the value of an aggregate such as ``coverage@10``."""
        if metric in self.aggregates:
            return self.aggregates[metric]
        return float(self.per_user(metric).mean()) if self.users else float("nan")

    def interval(self, metric: str, level: float = 0.95) -> tuple[float, float]:
        """The percentile bootstrap interval of the mean, users drawn with replacement."""
        if level == 0.95 and metric in self._intervals:
            return self._intervals[metric]
        low, high = bootstrap_interval(self.per_user(metric)[:, None], level, self.seed)[0]
        return float(low), float(high)

    def means(self) -> dict[str, float]:
        """Every metric and aggregate by name."""
        return {name: self.mean(name) for name in self.metrics} | self.aggregates

    def segments(self, metrics: Sequence[str] | None = None) -> list[SegmentMean]:
        """Means within each segment of users: history length, target popularity, cohort, transition, a caller's own."""
        names = self.primary() if metrics is None else tuple(metrics)
        for name in names:
            self._require(name)
        found = []
        for grouping in self.groupings():
            for label, index in grouping.members():
                values = np.stack([self.columns[name][index] for name in names], axis=1)
                bounds = bootstrap_interval(values, seed=self.seed, stream=f"{grouping.name}={label}")
                for name, mean, (low, high) in zip(names, values.mean(axis=0), bounds, strict=True):
                    found.append(
                        SegmentMean(grouping.name, label, len(index), name, float(mean), float(low), float(high))
                    )
        return found

    def groupings(self) -> list[Grouping]:
        """The divisions of the users into segments."""
        low, high = self.meta["popularity_thresholds"]
        return groupings(self.columns, (low, high))

    def primary(self, of: Iterable[str] = ("ndcg", "recall", "mrr")) -> tuple[str, ...]:
        """The columns to look at first: at 10 if that was computed, else at the longest list."""
        cuts = [int(name.partition("@")[2]) for name in self.metrics if "@" in name]
        best = 10 if 10 in cuts else max(cuts, default=0)
        return tuple(f"{name}@{best}" for name in of if f"{name}@{best}" in self.metrics) or self.metrics[:1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the facts, the means with intervals, the aggregates and the segments."""
        return {
            "meta": self.meta,
            "metrics": {
                name: {"mean": self.mean(name), "low": self.interval(name)[0], "high": self.interval(name)[1]}
                for name in self.metrics
            },
            "aggregates": self.aggregates,
            "segments": [vars(row) for row in self.segments()],
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``per_user.parquet`` (complete: :meth:`load` needs no other file) and ``report.json`` (to read)."""
        folder = Path(folder)
        path = write_table(folder, self.columns, {"meta": self.meta, "aggregates": self.aggregates, "seed": self.seed})
        write_text(folder / "report.json", json.dumps(_finite(self.to_dict()), indent=1, ensure_ascii=False))
        return path

    @classmethod
    def load(cls, path: str | Path, only: Sequence[str] | None = None) -> Report:
        """The report in a run folder, or in a ``per_user.parquet`` file.

        Args:
            only: the metrics to read; of a table that was cut down to these and the users nothing else is expected.

        A report of version 1 in which targets repeat an excluded history says ``exclude="history-except-targets"``
        from now on, for that is the rule by which they were ranked.

        Raises:
            FileNotFoundError, DataError: no such file; damaged, or of another version.
        """
        columns, facts = read_table(Path(path))
        with reading(path, "evaluate again"):
            found = facts["meta"]["version"]
            if found not in (1, VERSION):
                raise DataError(f"{path} is a report of version {found}, this library reads {VERSION}: evaluate again")
            meta = _current(facts["meta"]) | ({} if only is None else {"metrics": list(only)})
            report = cls(meta, columns, dict(facts["aggregates"]), seed=int(facts["seed"]))
            report._check((*_COLUMNS, *report.metrics) if only is None else ("user", *only))
            if only is None:
                report.header(), report.groupings(), report.primary()
            return report

    @classmethod
    def merge(cls, reports: Sequence[Report]) -> Report:
        """One report from the shares of several processes, the same as from one process.

        Raises:
            DataError: shares of different evaluations, a share twice or missing.
        """
        first = reports[0]
        for other in reports[1:]:
            differing = [key for key in _SAME if other.meta.get(key) != first.meta.get(key)]
            if differing or set(other.columns) != set(first.columns):
                raise DataError(f"not shares of one evaluation: these reports differ in {differing or 'columns'}")
        _require_whole([share for report in reports for share in report.meta["shares"]])
        if any(set(report.exposure) != {k for _, _, k in first.rules} for report in reports):
            raise DataError("a loaded report cannot be merged: merge the shares before they are saved")
        joined = {name: np.concatenate([report.columns[name] for report in reports]) for name in first.columns}
        order = np.argsort(joined["position"], kind="stable")
        meta = {
            **first.meta,
            "shares": [[0, 1]],
            "fingerprint": sum(report.meta["fingerprint"] for report in reports) % 2**64,
            "users_without_targets": sum(report.meta["users_without_targets"] for report in reports),
        }
        exposure = {k: np.sum([report.exposure[k] for report in reports], axis=0) for k in first.exposure}
        return cls.make(meta, {name: values[order] for name, values in joined.items()}, exposure, first.rules)

    def header(self) -> str:
        """The protocol in two lines: what every number of the report depends on."""
        meta, listed = self.meta, self.list_only
        ranking = "ranked among the candidates only" if "candidates" in meta["protocol"] else "full ranking"
        if listed:
            ranking = f"list only, to {listed}" + (", of the candidates" if "candidates" in meta["protocol"] else "")
        shares = "" if meta["shares"] == [[0, 1]] else f" (shares {meta['shares']} of the users)"
        drawn = meta.get("sample")
        drawn = f" (drawn: {drawn['users']:,} of {meta['users_total']:,}, seed {drawn['seed']})" if drawn else ""
        missed = ", counted as misses" if meta["exclude"] == "history" and meta["repeated_targets"] else ""
        others = meta.get("unreachable_targets", 0) - (meta["repeated_targets"] if missed else 0)
        notes = [
            f"{meta['tied_targets']:,} targets tied with other items ("
            + ("in the order of the list)" if listed else "expected value)"),
            f"{meta['repeated_targets']:,} targets repeat the history{missed}",
            f"{meta['cold_targets']:,} targets are cold (not in training)",
            _note(others, "further targets can never be shown, counted as misses" if missed else
                  "targets can never be shown, counted as misses"),
            _note(meta.get("unlisted_targets", 0), f"targets are not in the lists of {listed}: ranks unknown"),
            _note(meta.get("targets_added", 0), "targets added to the candidates of their users"),
            _note(meta.get("unknown_candidates", 0), "listed candidates not in the catalogue"),
            _note(meta["short_lists"], "users have a shorter list" if listed else "users have fewer candidates than k"),
            _note(meta["users_without_targets"], "users without target left out"),
        ]  # fmt: skip
        return (
            f"{self.name} on {meta['part']}{shares}: {_protocol(meta['protocol'])}, {ranking}, "
            f"{EXCLUDE[meta['exclude']]}; {meta['users']:,} users{drawn}, {meta['targets']:,} targets, "
            f"{meta['num_items']:,} items ({meta['mean_candidates']:,.1f} candidates per user)\n"
            f"{'; '.join(filter(None, notes))}"
        )

    def table(self) -> list[list[str]]:
        """Rows of text: a metric per row, a cut-off per column, the mean with its interval."""
        names = [*self.metrics, *self.aggregates]
        cuts = sorted({int(name.partition("@")[2]) for name in names if "@" in name})
        rows: dict[str, list[str]] = {}
        for name in names:
            base, _, cut = name.partition("@")
            cells = rows.setdefault(base, [""] * max(len(cuts), 1))
            cells[cuts.index(int(cut)) if cut else 0] = self._cell(name)
        return [["", *(f"@{cut}" for cut in cuts)], *([base, *cells] for base, cells in rows.items())]

    def transitions(self) -> list[list[str]]:
        """Rows of text: how many users have a memorised target, a composed one or neither, and their means."""
        names = self.primary()
        rows = [["transition", "users", "share", *names]]
        for grouping in self.groupings():
            for label, index in grouping.members() if grouping.name == "transition" else ():
                means = [number(float(self.columns[name][index].mean())) for name in names]
                rows.append([label, f"{len(index):,}", number(len(index) / self.users), *means])
        return rows

    def __str__(self) -> str:
        parts = self.transitions()
        shown = f"\n{align(parts)}" if len(parts) > 1 else ""
        return f"{self.header()}\n{align(self.table())}\nmean over users [95% bootstrap interval]{shown}"

    @cached_property
    def _intervals(self) -> dict[str, tuple[float, float]]:
        if not self.metrics:
            return {}
        bounds = bootstrap_interval(np.stack([self.columns[name] for name in self.metrics], axis=1), seed=self.seed)
        return {name: (float(low), float(high)) for name, (low, high) in zip(self.metrics, bounds, strict=True)}

    def _cell(self, name: str) -> str:
        if name in self.aggregates:
            return number(self.mean(name))
        low, high = self.interval(name)
        return f"{number(self.mean(name))} [{number(low)}, {number(high)}]"

    def _check(self, needed: Sequence[str]) -> None:
        """Raise unless a file held a whole report: every fact that is printed or compared, and a number per user."""
        if lacking := [*(name for name in needed if name not in self.columns), *(set(_FACTS) - set(self.meta))]:
            raise ValueError(f"it lacks {', '.join(sorted(map(str, lacking)))}")
        if odd := [name for name in needed if self.columns[name].dtype.kind not in "biuf"]:
            raise ValueError(f"its columns {', '.join(odd)} do not hold numbers")
        if self.users != self.meta["users"]:
            raise ValueError(f"it has {self.users:,} rows for {self.meta['users']:,} users")
        for value in self.aggregates.values():
            number(value)

    def _require(self, metric: str) -> None:
        if metric not in self.meta["metrics"]:
            raise ValueError(f"the report has no per-user metric {metric!r}; it has {', '.join(self.metrics)}")


def number(value: float) -> str:
    """Four digits behind the point, without a leading zero for shares: .0912."""
    text = f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def align(rows: Sequence[Sequence[str]]) -> str:
    """Text columns of equal width, the first one to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _protocol(protocol: dict[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in protocol.items() if key != "name")
    return f"{protocol.get('name', 'split')} ({rest})" if rest else str(protocol.get("name", "split"))


def _note(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""


def _current(meta: dict[str, Any]) -> dict[str, Any]:
    """The facts of a report of version 1 in the words of this one."""
    former = meta["version"] == 1 and meta["exclude"] == "history" and meta["repeated_targets"] > 0
    return {**meta, "version": VERSION, **({"exclude": "history-except-targets"} if former else {})}


def _require_whole(shares: Sequence[Sequence[int]]) -> None:
    worlds = {world for _, world in shares}
    if len(worlds) != 1 or sorted(rank for rank, _ in shares) != list(range(next(iter(worlds)))):
        raise DataError(f"the shares of all processes are needed, each once; found (rank, world_size) {list(shares)}")


def _finite(value: Any) -> Any:
    """JSON knows no NaN: None instead."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
