"""The page of ``recsys compare --html``: what differs between runs, by how much, for whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys.eval.compare import Comparison
from recsys.eval.report import Report
from recsys.eval.storage import write_text
from recsys.pages.charts import MISSING, Chart, Series, can_draw, figures
from recsys.pages.differences import extremes, folded, paired, renamed, signed, spread_of, tests, winners
from recsys.pages.frame import Html, Section, cards, document, text

LINES = 24  # most segments of a chart


def write_comparison(path: str | Path, reports: Sequence[Report], comparison: Comparison) -> None:
    """Write the page of a comparison as a file that stands alone.

    Args:
        reports: what was compared, in that order.
        comparison: what :func:`recsys.eval.compare.compare` found between them.
    """
    short = [Path(name).name for name in comparison.names]
    if len(set(short)) == len(short) and all(short):  # folders are told apart by their last part
        comparison = renamed(comparison, short)
    names, metric = comparison.names, comparison.overall[0].metric
    title = f"{' and '.join(names[1:])} against {names[0]}"
    first, *others = paired(reports, metric)
    charts = [spread_of(name, metric, other - first) for name, other in zip(names[1:], others, strict=True)]
    sections = [
        Section("Headline", _headline(comparison)),
        Section("Differences", Html(tests(comparison) + figures(_overall(comparison)))),
        Section("Segments", _segments(comparison, metric)),
        Section("Who wins for which users", winners(reports, names, metric)),
        Section("Differences of users", Html(figures(charts) + extremes(reports, names, metric))),
        Section("Protocol", Html("".join(f"<p>{text(line)}</p>" for line in _protocol(reports, comparison)))),
    ]
    lead = f"<p>{text(_said(comparison))}</p>"
    lead += "" if can_draw() else f'<p class="note">{text(MISSING)}</p>'
    write_text(Path(path), document(title, sections, lead))


def _headline(comparison: Comparison) -> Html:
    return cards(
        (
            f"{row.metric}, {row.other}",
            signed(row.difference),
            f"{signed(row.low)} to {signed(row.high)} in 95%; p {row.p_holm:.2g} (Holm)",
        )
        for row in comparison.overall
    )


def _overall(comparison: Comparison) -> list[Chart]:
    labels = [f"{row.metric}, {row.other}" for row in comparison.overall]
    rows = comparison.overall
    series = Series("", labels, *([getattr(row, key) for row in rows] for key in ("difference", "low", "high")))
    return [Chart("Differences", "intervals", (series,), x=f"other − {comparison.names[0]}", note="with 95% intervals")]


def _segments(comparison: Comparison, metric: str) -> Html:
    if not comparison.segments:
        return Html("")
    charts = []
    for other in comparison.names[1:]:
        rows = [row for row in comparison.segments if row.metric == metric and row.other == other][:LINES]
        labels = [f"{row.segment} ({row.users:,})" for row in rows]
        series = Series("", labels, *([getattr(row, key) for row in rows] for key in ("difference", "low", "high")))
        charts.append(
            Chart(f"{other}: {metric} by segment", "intervals", (series,), x=f"other − {comparison.names[0]}",
                  note="users in brackets")
        )  # fmt: skip
    return Html(figures(charts) + folded(comparison))


def _said(comparison: Comparison) -> str:
    meta = comparison.meta
    return (
        f"Paired by user: {meta['users']:,} users of the part {meta['part']}. A difference is other − "
        f"{comparison.names[0]}, with its 95% bootstrap interval; p from a two-sided sign-flip test, corrected by Holm "
        f"over {len(comparison.overall)} tests on all users and {len(comparison.segments)} on segments. "
        f"{comparison.list_note}"
    )


def _protocol(reports: Sequence[Report], comparison: Comparison) -> list[str]:
    return [
        f"{name}: {line}"
        for name, one in zip(comparison.names, reports, strict=True)
        for line in one.header().splitlines()
    ]
