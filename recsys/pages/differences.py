"""The tables of a comparison: differences with intervals and p, and who wins for which users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recsys.eval.compare import ALL, Comparison
from recsys.eval.report import Report, number
from recsys.pages.charts import Chart, Series
from recsys.pages.frame import Html, table, text

BARS, EXTREME = 41, 8  # bins of differences, and users at either end
FOLDED = 24  # differences that are folded away if there are more


def tests(comparison: Comparison, segments: bool = False) -> Html:
    """A row per difference, those that Holm's correction leaves significant in colour."""
    heading, *rows = comparison.table(segments=segments)
    found = comparison.segments if segments else comparison.overall
    at = heading.index("difference")
    shown = [[*row[:at], _coloured(row[at], one.difference, one.p_holm), *row[at + 1 :]] for row, one in zip(
        rows, found, strict=True)]  # fmt: skip
    return table(heading, shown)


def renamed(comparison: Comparison, names: Sequence[str]) -> Comparison:
    """The same comparison with other names of its models, in their order."""
    called = dict(zip(comparison.names, names, strict=True))
    rows = ([replace(row, first=called[row.first], other=called[row.other]) for row in part]
            for part in (comparison.overall, comparison.segments))  # fmt: skip
    overall, segments = map(tuple, rows)
    meta = dict(comparison.meta)
    if "list_only" in meta:
        meta["list_only"] = {called.get(name, name): depth for name, depth in meta["list_only"].items()}
    return replace(comparison, overall=overall, segments=segments, names=tuple(names), meta=meta)


def folded(comparison: Comparison) -> Html:
    """The differences within segments, open where they are few."""
    inner, count = tests(comparison, segments=True), len(comparison.segments)
    if count <= FOLDED:
        return inner
    return Html(f'<details class="more"><summary>{count:,} differences</summary>{inner}</details>')


def signed(value: float) -> str:
    """A number with its sign."""
    shown = number(value)
    return shown if shown.startswith("-") else f"+{shown}"


def paired(reports: Sequence[Report], metric: str) -> list[np.ndarray]:
    """(n,) of each report, the metric of the users in the order of their rows: those of one place are one user's."""
    return [one.per_user(metric)[np.argsort(one.columns["user"], kind="stable")] for one in reports]


def spread_of(name: str, metric: str, difference: np.ndarray) -> Chart:
    """How the differences (n,) of users are distributed; users without any are counted, not drawn."""
    moved = difference[difference != 0]
    reach = float(np.abs(moved).max(initial=0.0)) or 1.0
    bins, edges = np.histogram(moved, np.linspace(-reach, reach, BARS + 1))
    note = f"{(difference == 0).mean():.1%} of the users have no difference and are left out"
    series = Series("", edges.tolist(), bins.tolist())
    return Chart(
        f"{name}: differences of users", "histogram", (series,), x=f"difference in {metric}", y="users", note=note
    )


def winners(reports: Sequence[Report], names: Sequence[str], metric: str) -> Html:
    """For whom each further model does better, the same or worse than the first: all users, then by segment."""
    first, *values = paired(reports, metric)
    order = np.argsort(reports[0].columns["user"], kind="stable")
    groups = [(ALL, np.arange(len(first)))]
    for grouping in reports[0].groupings():
        members = replace(grouping, codes=grouping.codes[order]).members()
        if len(members) > 1:
            groups += [(f"{grouping.name}: {label}", index) for label, index in members]
    rows = []
    for name, other in zip(names[1:], values, strict=True):
        for label, index in groups:
            change = np.sign(other[index] - first[index])
            shares = [float((change == sign).mean()) for sign in (1, 0, -1)]
            rows.append([label, name, f"{len(index):,}", _split(shares), *(f"{share:.1%}" for share in shares)])
    key = "".join(
        f'<span class="key {kind}"></span>{text(said)}'
        for kind, said in (("win", "better"), ("tie", "the same"), ("loss", f"worse than {names[0]}"))
    )
    heading = ["users who", "model", "users", "", "better", "the same", "worse"]
    return Html(f"<p>{key}</p>{table(heading, rows)}")


def extremes(reports: Sequence[Report], names: Sequence[str], metric: str) -> Html:
    """The users whom the last model helps most and least, against the first."""
    first, other = reports[0], reports[-1]
    before, after = paired([first, other], metric)
    order = np.argsort(first.columns["user"], kind="stable")
    gain = after - before
    best = np.argsort(-gain, kind="stable")
    chosen = [at for at in (*best[:EXTREME], *best[::-1][:EXTREME][::-1]) if gain[at]]
    ids = first.columns.get("user_id", first.columns["user"])[order]
    lengths, popular = first.columns["history_length"][order], first.columns["target_popularity"][order]
    rows = [
        [str(ids[at]), _coloured(signed(gain[at]), gain[at], 0.0), number(before[at]), number(after[at]),
         f"{lengths[at]:,}", f"{popular[at]:,.0f}"]
        for at in dict.fromkeys(chosen)
    ]  # fmt: skip
    heading = ["user", "difference", names[0], names[-1], "history", "training events of the targets"]
    return table(heading, rows) if rows else Html("<p>No user differs.</p>")


def _coloured(shown: str, difference: float, p: float) -> Html:
    kind = "" if p >= 0.05 or difference == 0 else ' class="good"' if difference > 0 else ' class="bad"'
    return Html(f"<span{kind}>{text(shown)}</span>")


def _split(shares: Sequence[float]) -> Html:
    parts = "".join(
        f'<i class="{kind}" style="width:{share:.2%}"></i>'
        for kind, share in zip(("win", "tie", "loss"), shares, strict=True)
    )
    return Html(f'<span class="split">{parts}</span>')
