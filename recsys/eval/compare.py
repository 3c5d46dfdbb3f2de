"""``compare``: is the difference between models more than luck? Paired by user, corrected for many tests.

Every difference is *other - first*: the first report is the reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys.errors import DataError, DataWarning
from recsys.eval.report import IDS, TASK, Report, align, number
from recsys.eval.significance import bootstrap_interval, holm, sign_flip_test

ALL = "all users"


@dataclass(frozen=True)
class Difference:
    """One question: does ``other`` differ from ``first`` in ``metric`` over the users of ``segment``?

    ``low`` and ``high`` are the 95% bootstrap interval of the mean paired difference, ``p`` the two-sided randomisation
    test, ``p_holm`` the same corrected for the family; ``test`` says how p was computed (exact, sampled, normal).
    """

    segment: str
    metric: str
    first: str
    other: str
    users: int
    first_mean: float
    other_mean: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    test: str


@dataclass(frozen=True)
class Comparison:
    """Differences over all users and per segment. Each of the two is a family of its own for Holm's correction."""

    overall: tuple[Difference, ...]
    segments: tuple[Difference, ...]
    names: tuple[str, ...]
    meta: dict[str, Any]

    def find(self, metric: str, other: str | None = None, segment: str = ALL) -> Difference:
        """The difference in one metric; ``other`` may be left out with two reports.

        Raises:
            KeyError: no or more than one such difference.
        """
        rows = [row for row in (*self.overall, *self.segments) if (row.metric, row.segment) == (metric, segment)]
        rows = [row for row in rows if other is None or row.other == other]
        if len(rows) != 1:
            raise KeyError(f"{len(rows)} differences fit metric={metric!r}, other={other!r}, segment={segment!r}")
        return rows[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "names": list(self.names),
            "meta": self.meta,
            "overall": [vars(row) for row in self.overall],
            "segments": [vars(row) for row in self.segments],
        }

    @property
    def list_note(self) -> str:
        """A line on the models that only gave lists; empty if all were ranked exactly."""
        lists = ", ".join(f"{name} to {depth}" for name, depth in self.meta.get("list_only", {}).items())
        return f"list only: {lists}; there, equal scores count in the order of the list\n" if lists else ""

    def table(self, segments: bool = False, metric: str | None = None) -> list[list[str]]:
        """Rows of text with a heading, one per difference (in ``metric``, if given)."""
        heading = ["segment", "users"] if segments else []
        heading += ["metric", "model", "value", f"reference ({self.names[0]})"]
        rows = [[*heading, "difference", "95% interval", "p", "p (Holm)"]]
        for row in self.segments if segments else self.overall:
            if metric not in (None, row.metric):
                continue
            where = [row.segment, f"{row.users:,}"] if segments else []
            interval = f"[{_signed(row.low)}, {_signed(row.high)}]"
            means = [number(row.other_mean), number(row.first_mean), _signed(row.difference)]
            rows.append([*where, row.metric, row.other, *means, interval, _chance(row.p), _chance(row.p_holm)])
        return rows

    def __str__(self) -> str:
        meta = self.meta
        parts = f"\n\n{align(self.table(True, self.segments[0].metric))}" if self.segments else ""
        return (
            f"{' / '.join(self.names[1:])} minus {self.names[0]} on {meta['part']}: {meta['users']:,} users paired, "
            f"exclude={meta['exclude']}, protocol {meta['protocol'].get('name', meta['protocol'])}\n"
            f"{align(self.table())}{parts}\n{self.list_note}"
            f"paired bootstrap intervals; two-sided sign-flip tests; Holm over {len(self.overall)} tests on all users "
            f"and {len(self.segments)} on segments"
        )


def compare(
    *reports: Report,
    names: Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    segments: bool = True,
    seed: int = 0,
) -> Comparison:
    """Paired differences of every further report against the first, with intervals and corrected p-values.

    Args:
        reports: two or more reports on the same users, part and protocol.
        names: what to call the models; by default what the reports say, made unique.
        metrics: columns such as "ndcg@10"; by default NDCG, recall and MRR at 10 (or at the longest list). Each one
            makes the correction stricter.
        segments: also compare within each segment.

    Raises:
        TypeError: something that is not a report, such as a model.
        ValueError: fewer than two reports, a metric that is not in all of them.
        DataError: reports that do not measure the same thing; the message says what differs.
    """
    for one in reports:
        if not isinstance(one, Report):
            raise TypeError(
                f"compare takes reports, found {type(one).__name__}: give what "
                "recsys.evaluate(model, split.test) returns"
            )
    if len(reports) < 2:
        raise ValueError(f"compare needs two reports or more, found {len(reports)}")
    called = _names(reports, names)
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics or _shared(reports))
    for report, name in zip(reports, called, strict=True):
        for metric in wanted:
            _require_known(report, name, metric)
    tables = _paired(reports, called, wanted)
    everyone = np.arange(reports[0].users)
    overall = _family([(ALL, everyone)], tables, wanted, called, seed)
    parts = []
    if segments:
        order = np.argsort(reports[0].columns["user"], kind="stable")
        for grouping in reports[0].groupings():
            members = replace(grouping, codes=grouping.codes[order]).members()
            if len(members) > 1:  # a division that puts all users together asks nothing new
                parts += [(f"{grouping.name}: {label}", index) for label, index in members]
    meta = {key: reports[0].meta[key] for key in TASK} | {"users": reports[0].users, "seed": seed}
    if lists := {name: report.list_only for report, name in zip(reports, called, strict=True) if report.list_only}:
        meta["list_only"] = lists
    return Comparison(overall, _family(parts, tables, wanted, called, seed), called, meta)


def _names(reports: Sequence[Report], names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None:
        if len(names) != len(reports) or len(set(names)) != len(names):
            raise ValueError(f"names must be {len(reports)} different names, found {list(names)}")
        return tuple(names)
    called: list[str] = []
    for report in reports:
        count = sum(other.name == report.name for other in reports[: len(called)])
        called.append(f"{report.name} #{count + 1}" if count else report.name)
    return tuple(called)


def _require_known(report: Report, name: str, metric: str) -> None:
    """Raise ValueError unless the report has the metric, saying why one of lists cannot."""
    cut = metric.partition("@")[2]
    if report.list_only and metric not in report.metrics and not (cut.isdecimal() and int(cut) <= report.list_only):
        raise ValueError(
            f"{name} is list only, to {report.list_only}, so its {metric} is unknown: compare at k <= "
            f"{report.list_only}, or evaluate it again with a larger k"
        )
    report.per_user(metric)


def _shared(reports: Sequence[Report]) -> tuple[str, ...]:
    shared = tuple(name for name in reports[0].primary() if all(name in other.metrics for other in reports))
    if not shared:
        short = min((one.list_only for one in reports if one.list_only), default=None)
        hint = f" (one is list only, to {short})" if short else ""
        raise ValueError(f"the reports share none of {list(reports[0].primary())}{hint}: name the metrics to compare")
    return shared


def _paired(reports: Sequence[Report], names: Sequence[str], metrics: Sequence[str]) -> list[np.ndarray]:
    """(n, M) per report, rows in the order of user rows."""
    first, tables = reports[0], []
    for report, name in zip(reports, names, strict=True):
        _require_same_task(report, first, (name, names[0]))
        order = np.argsort(report.columns["user"], kind="stable")
        users, expected = report.columns["user"][order], np.sort(first.columns["user"])
        if not np.array_equal(users, expected):
            raise DataError(
                f"{name} has {len(users):,} users and {names[0]} {len(expected):,}, of which "
                f"{len(np.intersect1d(users, expected)):,} are the same: a paired comparison needs the same users"
            )
        if report.meta["fingerprint"] != first.meta["fingerprint"]:
            raise DataError(f"{name} and {names[0]} have the same users but other targets: were the data split anew?")
        tables.append(np.stack([report.columns[metric][order] for metric in metrics], axis=1))
    return tables


def _require_same_task(report: Report, first: Report, names: tuple[str, str]) -> None:
    both = [(key, report.meta.get(key), first.meta.get(key)) for key in (*TASK, *IDS)]
    for key, one, other in both:
        if key in IDS and None in (one, other):
            continue  # a report of before says nothing about it
        if key == "exclude" and _no_repeats(report) and _no_repeats(first) and "none" not in (one, other):
            continue  # the two rules for the history differ in targets that repeat it, and there are none
        if one != other:
            raise DataError(
                f"{names[0]} and {names[1]} do not measure the same thing: {key} is {one!r} and {other!r}; evaluate "
                "both on the same part with the same arguments"
            )
    trained = [one.meta.get("trained_on") for one in (report, first)]
    if None not in trained and trained[0] != trained[1]:
        warnings.warn(
            f"{names[0]} and {names[1]} were trained on other events: their difference is one of models and data",
            DataWarning,
            stacklevel=4,
        )


def _no_repeats(report: Report) -> bool:
    return bool(report.meta["repeated_targets"] == 0)


def _family(
    parts: Sequence[tuple[str, np.ndarray]],
    tables: Sequence[np.ndarray],
    metrics: Sequence[str],
    names: Sequence[str],
    seed: int,
) -> tuple[Difference, ...]:
    rows = []
    for segment, index in parts:
        for name, table in zip(names[1:], tables[1:], strict=True):
            first, other = tables[0][index], table[index]
            bounds = bootstrap_interval(other - first, seed=seed, stream=segment)
            tests = sign_flip_test(other - first, seed=seed, stream=segment)
            for column, metric in enumerate(metrics):
                before, after = float(first[:, column].mean()), float(other[:, column].mean())
                low, high = (float(bound) for bound in bounds[column])
                p, how = tests[column]
                shift = float((other - first)[:, column].mean())
                rows.append(
                    Difference(segment, metric, names[0], name, len(index), before, after, shift, low, high, p, p, how)
                )
    corrected = holm(np.array([row.p for row in rows]))
    return tuple(replace(row, p_holm=float(p)) for row, p in zip(rows, corrected, strict=True))


def _signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def _chance(p: float) -> str:
    return "<.0001" if p < 0.0001 else number(p)
