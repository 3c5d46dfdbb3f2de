"""Charts of a page: what is drawn is plain data, drawn as SVG by matplotlib, or shown as a table where it is missing.

Why matplotlib: its SVG is static (no script, so it prints and obeys a strict policy), byte for byte the same each time,
6 to 20 kB a chart, with logarithmic and time axes and intervals, by the library that the field keeps best. A page with
Vega-Lite carries 0.8 MB of script that builds code at run time, which such a policy refuses, one with Plotly 4 MB;
pygal installs in 2 MB, and puts a script, a random name and the date into each chart. matplotlib takes 100 MB with
what it needs, so it is the extra ``report``: without it a page has the numbers of each chart, and says how to get the
charts.
"""

from __future__ import annotations

import datetime
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from typing import Any, Literal

from recsys.errors import printable
from recsys.pages.frame import Html, table, text

MISSING = (
    "Charts are shown as tables, for matplotlib is not installed: pip install 'recsys[report]', and recsys report RUN "
    "writes the page anew."
)
POINTS, NUMBERS = 400, 60  # most points of a line, and most rows of the numbers below a chart
_SERIES = 8  # colours; see the style sheet
_LETTERS = 30  # of a label
_COLOURS = {0x10: "--muted", 0x11: "--line", 0x12: "--ink"} | {0x20 + at: f"--s{at}" for at in range(_SERIES)}
_MUTED, _LINE = "#000010", "#000011"
_RULES: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "recsys", "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 8.5, "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED, "text.color": _MUTED, "xtick.color": _MUTED, "ytick.color": _MUTED,
    "grid.color": _LINE, "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "legend.frameon": False, "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """Points of one thing. A histogram has one x more than y: the edges of its bars. x may be labels."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """What a chart shows. Sizes are bounded by whoever makes it: bins are counted, not drawn from events.

    ``kind``: "lines"; "histogram" between edges; "bars", one per label; "intervals", labels down the side with a point
    and its interval; "points", each with its label.
    """

    title: str
    kind: Literal["lines", "histogram", "bars", "intervals", "points"]
    series: tuple[Series, ...]
    x: str = ""  # what the axes are called
    y: str = ""
    log: bool = False  # both axes
    dates: bool = False  # x is in milliseconds since 1970
    note: str = ""


def can_draw() -> bool:
    """Whether charts are drawn; else they are tables."""
    try:
        return find_spec("matplotlib") is not None
    except ValueError:  # somebody put nothing in its place
        return False


def figures(charts: Sequence[Chart]) -> Html:
    """Charts side by side, as many as the screen is wide for."""
    inner = "".join(map(figure, charts))
    return Html(f'<div class="figures">{inner}</div>') if inner else Html("")


def figure(chart: Chart) -> Html:
    """One chart with its title; the numbers behind it, where they are few, open below it."""
    note = f"<small>{text(chart.note)}</small>" if chart.note else ""
    head = f"<figcaption>{text(chart.title, 120)}{note}</figcaption>"
    heading, rows = _numbers(chart)
    shown, said = table(heading, thinned(rows, NUMBERS)), ""
    if can_draw():
        try:
            below = f"<details><summary>numbers</summary>{shown}</details>" if len(rows) <= NUMBERS else ""
            return Html(f"<figure>{head}{svg(chart)}{below}</figure>")
        except Exception as error:  # of a library that is broken here: the page comes after hours of training
            said = f'<p class="note">{text(f"not drawn: {type(error).__name__}: {error}")}</p>'
    return Html(f"<figure>{head}{said}{shown}</figure>")


def svg(chart: Chart) -> str:
    """The chart as SVG for a page, in the colours of its style sheet.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    with warnings.catch_warnings():
        # Of letters that its own font lacks, which the browser has, and of few dates.
        warnings.simplefilter("ignore")
        defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
        with matplotlib.rc_context({**defaults, **_RULES}):  # whatever the user's own file says
            written = _drawn(chart)
    return _for_page(written, f"{chart.title}: {chart.y} by {chart.x}" if chart.x else chart.title)


def thinned(points: Sequence[Any], most: int = POINTS) -> Sequence[Any]:
    """Of very many points every n-th, and the last one."""
    step = -(-len(points) // most)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def short(value: float) -> str:
    """A number for an axis: 1.5k, 20M, 0.04.

    >>> [short(value) for value in (0, 1500, 2e7, 0.04, 1e-7)]
    ['0', '1.5k', '20M', '0.04', '1e-07']
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{sign}"
    return f"{value:.4g}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def _drawn(chart: Chart) -> str:
    """What matplotlib writes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.6, _height(chart)), layout="constrained", facecolor="none")
    axes = drawn.subplots()
    axes.set_facecolor("none")
    _DRAWERS[chart.kind](axes, chart)
    _label(axes, chart)
    if len(chart.series) > 1:
        drawn.legend(fontsize=8, loc="outside lower center", ncols=2, handlelength=1.2)
    written = io.StringIO()
    drawn.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def _height(chart: Chart) -> float:
    labels = len(chart.series[0].x) if chart.series else 0
    below = 0.17 * -(-len(chart.series) // 2) if len(chart.series) > 1 else 0  # for the legend
    return below + (0.7 + 0.24 * labels if chart.kind == "intervals" else 2.6)


def _colour(at: int) -> str:
    return f"#0000{0x20 + at % _SERIES:02x}"


def _lines(axes: Any, chart: Chart) -> None:
    for at, series in enumerate(chart.series):
        points = thinned(list(zip(series.x, series.y, strict=True)))
        mark = "o" if len(points) <= 40 and not chart.log else ""
        xs = [_moment(x) for x, _ in points] if chart.dates else [x for x, _ in points]
        axes.plot(xs, [y for _, y in points], color=_colour(at), linewidth=1.6, marker=mark, markersize=3,
                  label=_cut(series.name))  # fmt: skip
    axes.grid(True)


def _histogram(axes: Any, chart: Chart) -> None:
    for at, series in enumerate(chart.series):
        edges = [_moment(x) for x in series.x] if chart.dates else list(series.x)
        if len(chart.series) == 1:
            axes.stairs(series.y, edges, fill=True, color=_colour(at), label=_cut(series.name))
        else:
            axes.stairs(series.y, edges, color=_colour(at), linewidth=1.6, label=_cut(series.name))
    _zero(axes, [] if chart.dates else [x for one in chart.series for x in one.x])
    axes.grid(True, axis="y")


def _bars(axes: Any, chart: Chart) -> None:
    width = 0.8 / max(len(chart.series), 1)
    for at, series in enumerate(chart.series):
        places = [place + (at - (len(chart.series) - 1) / 2) * width for place in range(len(series.x))]
        axes.bar(places, series.y, width, color=_colour(at), label=_cut(series.name))
    labels = [_cut(label) for label in chart.series[0].x]
    turned = sum(map(len, labels)) > 45
    axes.set_xticks(range(len(labels)), labels, rotation=40 if turned else 0, ha="right" if turned else "center")
    axes.grid(True, axis="y")


def _intervals(axes: Any, chart: Chart) -> None:
    count = len(chart.series)
    for at, series in enumerate(chart.series):
        places = [place + (at - (count - 1) / 2) * 0.6 / count for place in range(len(series.x))]
        for place, low, high in zip(places, series.low, series.high, strict=True):
            axes.plot([low, high], [place, place], color=_colour(at), linewidth=2.2, alpha=0.55, solid_capstyle="round")
        axes.plot(series.y, places, "o", color=_colour(at), markersize=4.5, label=_cut(series.name))
    _zero(axes, [low for one in chart.series for low in one.low])
    axes.set_yticks(range(len(chart.series[0].x)), [_cut(label) for label in chart.series[0].x])
    axes.invert_yaxis()
    axes.margins(y=0.08)
    axes.grid(True, axis="x")


def _points(axes: Any, chart: Chart) -> None:
    for at, series in enumerate(chart.series):
        axes.plot(series.x, series.y, "o", color=_colour(at), markersize=6, label=_cut(series.name))
    axes.grid(True)
    axes.margins(x=0.12, y=0.15)


def _zero(axes: Any, places: Sequence[float]) -> None:
    """A line at zero, where there is something on its left."""
    if min(places, default=0.0) < 0:
        axes.axvline(0, color=_MUTED, linewidth=0.9, linestyle=(0, (3, 2)))


_DRAWERS = {"lines": _lines, "histogram": _histogram, "bars": _bars, "intervals": _intervals, "points": _points}


def _label(axes: Any, chart: Chart) -> None:
    """Names, scales and ticks of the axes."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.set_xlabel(_cut(chart.x, 2 * _LETTERS))
    axes.set_ylabel(_cut(chart.y, 2 * _LETTERS))
    plain = FuncFormatter(lambda value, _place: short(value))
    if chart.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    if chart.dates:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        places = AutoDateLocator(maxticks=5)
        axes.xaxis.set_major_locator(places)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(places))
    elif chart.kind != "bars":
        if not chart.log:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=_whole(chart)))
        axes.xaxis.set_major_formatter(plain)
    if chart.kind != "intervals":
        if not chart.log:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(plain)


def _whole(chart: Chart) -> bool:
    return chart.kind == "lines" and all(float(x).is_integer() for series in chart.series for x in series.x)


def _numbers(chart: Chart) -> tuple[list[str], list[list[str]]]:
    """The chart as a table: a row per point, a column per series; or a row per point of each series."""
    first = chart.x or ("" if chart.kind != "points" else "x")
    if chart.kind == "points":
        heading = ["", first, chart.y]
        return heading, [
            [s.name, _shown(x, False), _shown(y, False)] for s in chart.series for x, y in zip(s.x, s.y, strict=True)
        ]
    if chart.kind == "intervals":
        heading = ["", *(name for s in chart.series for name in (s.name or chart.x, "95% interval"))]
        rows = [[str(label)] for label in chart.series[0].x]
        for series in chart.series:
            for row, y, low, high in zip(rows, series.y, series.low, series.high, strict=True):
                row += [_shown(y, False), f"[{_shown(low, False)}, {_shown(high, False)}]"]
        return heading, rows
    places = list(dict.fromkeys(x for s in chart.series for x in list(s.x)[: len(s.y)]))
    values = [dict(zip(list(s.x)[: len(s.y)], s.y, strict=True)) for s in chart.series]
    label = f"{first} from" if chart.kind == "histogram" else first
    rows = [[_shown(x, chart.dates), *(_shown(v[x], False) if x in v else "" for v in values)] for x in places]
    return [label, *(s.name or chart.y for s in chart.series)], rows


def _shown(value: Any, dates: bool) -> str:
    if dates:
        return _moment(value).date().isoformat()
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if is_number(value) else str(value)


def _moment(milliseconds: float) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=float(milliseconds))


def _cut(label: Any, most: int = _LETTERS) -> str:
    shown = printable(label, None).encode("utf-8", "replace").decode()
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _for_page(written: str, label: str) -> str:
    """Matplotlib's file as a part of a page: no header, names or sizes of its own, colours of the style sheet."""
    inner = written[written.index("<svg") :]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", inner, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', inner)
    head = f'<svg {box.group() if box else ""} role="img" aria-label="{text(label, 200)}">'
    inner = re.sub(r"<svg[^>]*>", lambda _: head, inner, count=1)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner).replace("xlink:href", "href")
    inner = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda found: _rounded(found.group()), inner)
    inner = re.sub(r'style="[^"]*"', lambda found: _themed(found.group()), inner)
    return re.sub(r"<!--.*?-->|\n\s*", " ", inner, flags=re.DOTALL).strip()


def _themed(style: str) -> str:
    named = re.sub(r"#0000([12][0-9a-f])", lambda found: f"var({_COLOURS[int(found.group(1), 16)]})", style)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", named)


def _rounded(numbers: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", numbers)
