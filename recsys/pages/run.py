"""``report.html``: one page per run, readable from a file, without any script.

It holds what is known: headline, protocol, audit, data, learning curves, metrics, segments, users, accuracy against
coverage and popularity, examples, sections of the run's parts, and how to repeat it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.eval.compare import Comparison
from recsys.eval.report import EXCLUDE, Report, number
from recsys.eval.storage import write_text
from recsys.pages.charts import MISSING, Chart, Series, can_draw, figures, is_number, thinned
from recsys.pages.contents import content
from recsys.pages.differences import folded, signed, tests
from recsys.pages.frame import Html, Section, cards, document, facts, rest, table, text

BARS = 20  # bins of the users' metric
CHARTS = 60  # most learning curves


def write_html(
    path: str | Path,
    title: str,
    report: Report | None = None,
    comparison: Comparison | None = None,
    curves: Sequence[Mapping[str, Any]] | None = None,
    audit: Mapping[str, Any] | str | None = None,
    extras: Mapping[str, Any] | None = None,
    *,
    baselines: Sequence[Report] = (),
    data: Html | None = None,
    examples: Html | None = None,
    repeat: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write a self-contained page; all text is escaped, and what would make it huge is cut and counted.

    Args:
        report: shown with its protocol, its means, segments and users.
        comparison: shown as two tables, all users and segments.
        curves: rows as logged in training ({"epoch": 3, "loss": 5.1, "ndcg@10": 0.08}): one chart per number, over
            "epoch", else "step", else the row number. Rows may leave numbers out.
        audit: findings about the split, as plain data or text.
        extras: further sections by heading: text, a mapping, a list of mappings (a table), {"bars": {label: number}}
            (a bar chart), or a list that mixes these.
        baselines: reports that stand beside this one.
        data: what :func:`recsys.pages.data.data_section` made.
        examples: what :func:`recsys.pages.examples.examples_section` made.
        repeat: how to run it again: "command", "seed", "versions" ... as ``manifest.json`` of a run has them.
        notes: what the page lacks, and why.
    """
    drawn = bool(report or comparison or curves or data)
    said = [*notes, *([MISSING] if drawn and not can_draw() else [])]
    lead = "" if report is None else f"<p>{text(report.header().splitlines()[0])}</p>"
    lead += "".join(f'<p class="note">{text(note)}</p>' for note in said)
    sections = [
        *(_headed(report, comparison) if report is not None else []),
        Section("Audit of the split", content(audit) if audit else ""),
        Section("Data", data or ""),
        Section("Training", _training(list(_curves(curves or ())))),
        *(_measured(report, baselines) if report is not None else []),
        *(_compared(comparison) if comparison is not None else []),
        Section("Examples", examples or ""),
        *(Section(str(heading), content(one)) for heading, one in (extras or {}).items()),
        Section("How to repeat it", _repeated(repeat or {})),
    ]
    write_text(Path(path), document(title, sections, lead))


def interval(report: Report, metric: str) -> str:
    """A mean with its interval, as text."""
    low, high = report.interval(metric)
    return f"{number(report.mean(metric))} [{number(low)}, {number(high)}]"


def _headed(report: Report, comparison: Comparison | None) -> list[Section]:
    return [Section("Headline", _headline(report, comparison)), Section("Protocol", _protocol(report))]


def _headline(report: Report, comparison: Comparison | None) -> Html:
    shown = [(name.upper(), number(report.mean(name)), _between(report, name)) for name in report.primary()]
    first = report.primary()[0] if report.primary() else ""
    cut = first.partition("@")[2]
    shown += [
        (name.capitalize(), number(report.aggregates[name]), "of the catalogue is shown to somebody")
        for name in (f"coverage@{cut}",)
        if name in report.aggregates
    ]
    rows = [row for row in comparison.overall if row.metric == comparison.overall[0].metric] if comparison else []
    if rows and comparison is not None:
        best = max(rows, key=lambda row: row.other_mean)
        won = best.difference < 0
        where = "above" if won else "below"
        said = f"{best.metric}, {where} {best.other}, the best of the others; p {number(best.p_holm)}"
        shown.append(("Against the baselines", signed(-best.difference), said))
    return cards(shown)


def _between(report: Report, metric: str) -> str:
    low, high = report.interval(metric)
    return f"{number(low)} to {number(high)} in 95%"


def _protocol(report: Report) -> Html:
    meta = report.meta
    split = [(f"split: {key}", value) for key, value in meta["protocol"].items()]
    shown = facts([
        ("part", meta["part"]), *split, ("candidates", EXCLUDE[meta["exclude"]]), ("users", f"{meta['users']:,}"),
        ("targets", f"{meta['targets']:,}"), ("items", f"{meta['num_items']:,}"),
        ("candidates of a user, mean", f"{meta['mean_candidates']:,.1f}"), ("data", str(meta["data_hash"])[:16]),
    ])  # fmt: skip
    lines = "".join(f"<p>{text(line)}</p>" for line in report.header().splitlines())
    return Html(lines + shown)


def _measured(report: Report, baselines: Sequence[Report]) -> list[Section]:
    heading, *rows = report.table()
    note = "<p class='muted'>Mean over users with its 95% bootstrap interval.</p>"
    beside = _beside([report, *baselines])
    return [
        Section("Metrics", Html(table(heading, rows) + note + beside)),
        Section("Accuracy, coverage and popularity", figures(_trade_offs([report, *baselines]))),
        Section("Segments", _segments(report)),
        Section("Users", figures(_users([report, *baselines]))),
    ]


def _beside(reports: Sequence[Report]) -> str:
    """The model and its baselines, where there are any."""
    if len(reports) < 2:
        return ""
    charts, names = [], [name for name in reports[0].primary() if all(name in one.metrics for one in reports)]
    for name in names:
        bounds = [one.interval(name) for one in reports]
        series = Series(
            "", [one.name for one in reports], [one.mean(name) for one in reports],
            [low for low, _ in bounds], [high for _, high in bounds],
        )  # fmt: skip
        charts.append(Chart(name, "intervals", (series,), x=name, note="mean and 95% interval over users"))
    rows = [[one.name, *(interval(one, name) for name in names)] for one in reports]
    return f"<h3>Beside the baselines</h3>{table(['', *names], rows)}{figures(charts)}"


def _trade_offs(reports: Sequence[Report]) -> list[Chart]:
    """The first metric against coverage, and against how popular the recommended items are."""
    names = reports[0].primary()
    if not names:
        return []
    cut = names[0].partition("@")[2]
    found = []
    for other, called in (
        (f"coverage@{cut}", "share of items shown"),
        (f"popularity@{cut}", "popularity of items shown"),
    ):
        points = tuple(
            Series(one.name, [one.mean(other)], [one.mean(names[0])])
            for one in reports
            if {other, names[0]} <= {*one.metrics, *one.aggregates}
        )
        if points:
            title = f"{names[0]} against {other}"
            found.append(Chart(title, "points", points, x=f"{other}, {called}", y=names[0]))
    return found


def _segments(report: Report) -> Html:
    rows = report.segments()
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells: dict[tuple[str, str, int], list[str]] = {}
    for row in rows:
        shown = f"{number(row.mean)} [{number(row.low)}, {number(row.high)}]"
        cells.setdefault((row.grouping, row.label, row.users), []).append(shown)
    charts = []
    for grouping in dict.fromkeys(row.grouping for row in rows):
        own = [row for row in rows if row.grouping == grouping and row.metric == metrics[0]]
        if 1 < len(own) <= BARS:
            labels = [f"{row.label} ({row.users:,})" for row in own]
            values = [[getattr(row, name) for row in own] for name in ("mean", "low", "high")]
            series = Series("", labels, *values)
            charts.append(Chart(grouping, "intervals", (series,), x=metrics[0], note="users in brackets"))
    lines = [[group, label, f"{users:,}", *own] for (group, label, users), own in cells.items()]
    return Html(figures(charts) + table(["segment", "", "users", *metrics], lines))


def _users(reports: Sequence[Report]) -> list[Chart]:
    """How the first metric is distributed over users, of the model and of the baseline that does best."""
    name = next(iter(reports[0].primary()), None)
    if name is None or not reports[0].users:
        return []
    others = [one for one in reports[1:] if name in one.metrics and one.users]
    shown = [reports[0], *sorted(others, key=lambda one: -one.mean(name))[:1]]
    values = np.concatenate([one.per_user(name) for one in shown])
    values = values[np.isfinite(values)]
    edges = np.linspace(values.min(initial=0.0), values.max(initial=1.0), BARS + 1)
    series = tuple(
        Series(one.name, edges.tolist(), (np.histogram(one.per_user(name), edges)[0] / one.users).tolist())
        for one in shown
    )
    zero = float((reports[0].per_user(name) == 0).mean())
    cut = name.partition("@")[2]
    found = [Chart(f"{name} of each user", "histogram", series, x=name, y="share of users",
                   note=f"{zero:.1%} of the users have 0")]  # fmt: skip
    hits = [f"hr@{k}" for k in (1, 5, 10, 20) if f"hr@{k}" in reports[0].metrics]
    if len(hits) > 1 and cut:
        lines = tuple(
            Series(one.name, [int(hit[3:]) for hit in hits], [one.mean(hit) for hit in hits])
            for one in shown
            if set(hits) <= set(one.metrics)
        )
        found.append(Chart("Users with a hit in their first k items", "lines", lines, x="k", y="share of users"))
    return found


def _compared(comparison: Comparison) -> list[Section]:
    first = comparison.names[0]
    note = (
        f"Paired by user ({comparison.meta['users']:,} users); difference = other − {first}, with its 95% bootstrap "
        f"interval; p from a two-sided sign-flip test, also with Holm's correction. {comparison.list_note}"
    )
    found = [Section(f"Compared with {first}", Html(f'<p class="muted">{text(note)}</p>{tests(comparison)}'))]
    if comparison.segments:
        found.append(Section("Compared within segments", folded(comparison)))
    return found


def _training(charts: Sequence[Chart]) -> Html:
    return Html(figures(charts[:CHARTS]) + rest(len(charts), CHARTS))


def _curves(rows: Sequence[Mapping[str, Any]]) -> Iterable[Chart]:
    axis = next((name for name in ("epoch", "step") if any(name in row for row in rows)), None)
    names = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    for name in names:
        if name in ("epoch", "step"):
            continue
        points = thinned([
            (float(row[axis]) if axis and is_number(row.get(axis)) else float(at), float(row[name]))
            for at, row in enumerate(rows)
            if is_number(row.get(name)) and (axis is None or is_number(row.get(axis)))
        ])  # fmt: skip
        if points:
            series = Series("", [x for x, _ in points], [y for _, y in points])
            yield Chart(str(name), "lines", (series,), x=axis or "row", y=str(name))


def _repeated(known: Mapping[str, Any]) -> Html:
    """The command, and what it ran on."""
    if not known:
        return Html("")
    command = known.get("command")
    if isinstance(command, list) and command:
        words = ["recsys" if str(command[0]).endswith("__main__.py") else Path(str(command[0])).name, *command[1:]]
        command = shlex.join(map(str, words))
    shown = f"<pre>{text(command)}</pre>" if command else ""
    nested = {key: value for key, value in known.items() if key != "command"}
    pairs = [
        (f"{key}: {name}" if name else key, inner)
        for key, value in nested.items()
        for name, inner in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]
    return Html(shown + facts(pairs))
