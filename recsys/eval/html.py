"""``report.html``: one plain page per run with tables and curves, readable from a file, without any script."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

from recsys.errors import printable
from recsys.eval.compare import Comparison
from recsys.eval.report import Report, number
from recsys.eval.storage import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 76rem; margin: 2rem auto;
       padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p, pre { max-width: 76rem; } pre { white-space: pre-wrap; background: #f5f6f8; padding: .7rem .9rem; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid #e3e6ea; white-space: nowrap; }
th { border-bottom: 2px solid #b9c0c9; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-weight: 600; }
svg text { font: 11px system-ui, sans-serif; fill: #5a6572; }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 360, 200, 56, 26, 10, 12
_BAR, _LABELS, _BARS, _VALUES = 20, 240, 360, 80  # height of a bar's line, widths of labels, bars and values
_LETTERS = 38  # of a label; the rest is in its tooltip
_CELL, _TEXT = 2_000, 100_000  # most characters of a table's cell, and of a text
_ROWS, _POINTS = 500, 1_000  # most rows of a table or bars of a chart, and points of a curve


def write_html(
    path: str | Path,
    title: str,
    report: Report | None = None,
    comparison: Comparison | None = None,
    curves: Sequence[Mapping[str, Any]] | None = None,
    audit: Mapping[str, Any] | str | None = None,
    extras: Mapping[str, Any] | None = None,
) -> None:
    """Write a self-contained page; all text is escaped, and what would make it huge is cut and counted.

    Args:
        report: shown with its protocol, a table of means and its segments.
        comparison: shown as two tables, all users and segments.
        curves: rows as logged in training ({"epoch": 3, "loss": 5.1, "ndcg@10": 0.08}): one chart per number, over
            "epoch", else "step", else the row number. Rows may leave numbers out.
        audit: findings about the split, as plain data or text.
        extras: further sections by heading: text, a mapping, a list of mappings (a table), {"bars": {label: number}}
            (a bar chart), or a list that mixes these.
    """
    sections = [f"<h1>{_text(title)}</h1>"]
    if report is not None:
        sections += _report(report)
    if comparison is not None:
        sections += _comparison(comparison)
    if curves:
        sections += ["<h2>Training</h2>", f'<div class="curves">{"".join(_charts(curves))}</div>']
    for heading, content in {**({"Audit of the split": audit} if audit else {}), **(extras or {})}.items():
        sections += [f"<h2>{_text(heading)}</h2>", _content(content)]
    body = "\n".join(sections)
    write_text(
        Path(path),
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
    )


def _report(report: Report) -> list[str]:
    heading, *rows = report.table()
    segments = report.segments()
    metrics = list(dict.fromkeys(row.metric for row in segments))
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in segments:
        text = f"{number(row.mean)} [{number(row.low)}, {number(row.high)}]"
        cells.setdefault((row.grouping, row.label, row.users), {})[row.metric] = text
    return [
        f"<p>{_text(report.header()).replace(chr(10), '<br>')}</p>",
        "<h2>Metrics</h2>",
        _table(heading, rows),
        "<p>Mean over users with its 95% bootstrap interval.</p>",
        "<h2>Segments</h2>",
        _table(
            ["segment", "", "users", *metrics],
            [[group, label, f"{users:,}", *values.values()] for (group, label, users), values in cells.items()],
        ),
    ]


def _comparison(comparison: Comparison) -> list[str]:
    first = _text(comparison.names[0])
    parts = [
        f"<h2>Compared with {first}</h2>",
        f"<p>Paired by user ({comparison.meta['users']:,} users); difference = other − {first}, with its 95% bootstrap "
        f"interval; p from a two-sided sign-flip test, also with Holm's correction. {_text(comparison.list_note)}</p>",
        _table(*_split(comparison.table())),
    ]
    if comparison.segments:
        parts += ["<h2>Compared within segments</h2>", _table(*_split(comparison.table(segments=True)))]
    return parts


def _charts(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    axis = next((name for name in ("epoch", "step") if any(name in row for row in rows)), None)
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
    for name in names:
        if name in ("epoch", "step"):
            continue
        points = [
            (float(row[axis]) if axis and _is_number(row.get(axis)) else float(at), float(row[name]))
            for at, row in enumerate(rows)
            if _is_number(row.get(name)) and (axis is None or _is_number(row.get(axis)))
        ]
        if points:
            yield _chart(name, axis or "row", points)


def _chart(name: str, axis: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as SVG, with four labelled levels."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = min(xs), max(xs)
    low, high = min(ys), max(ys)
    if high == low:
        low, high = low - max(abs(low), 1e-9) * 0.1, high + max(abs(high), 1e-9) * 0.1
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        along = (x - left) / (right - left) if right > left else 0.5
        return _LEFT + along * inner_w, _TOP + (high - y) / (high - low) * inner_h

    lines = []
    for level in range(4):
        value = low + (high - low) * level / 3
        _, y = at(left, value)
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#e3e6ea"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in _thinned(points)))
    lines.append(f'<polyline points="{path}" fill="none" stroke="#2f6db3" stroke-width="1.8"/>')
    if len(points) <= 60:
        dots = [at(*point) for point in points]
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="#2f6db3"/>' for x, y in dots]
    foot = _HEIGHT - 8
    lines.append(f'<text x="{_LEFT}" y="{foot}">{left:g}</text>')
    lines.append(f'<text x="{_LEFT + inner_w / 2:.0f}" y="{foot}" text-anchor="middle">{_text(axis)}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{foot}" text-anchor="end">{right:g}</text>')
    return (
        f'<figure><figcaption>{_text(name)}</figcaption><svg width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(name)} over {_text(axis)}">'
        f"{''.join(lines)}</svg></figure>"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Of very many points every n-th, and the last one."""
    step = -(-len(points) // _POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _bars(bars: Mapping[str, Any]) -> str:
    """Horizontal bars as SVG, one line per label, from a common zero; what is not a finite number has no bar."""
    if not bars:
        return "<p>Nothing to show.</p>"
    rest = _rest(len(bars))
    bars = dict(islice(bars.items(), _ROWS))
    numbers = {label: float(value) for label, value in bars.items() if _is_number(value)}
    low, high = min(0.0, *numbers.values(), 0.0), max(0.0, *numbers.values(), 0.0)
    largest = max(-low, high) or 1.0  # divided by first: differences of numbers near the largest float overflow
    span = (high / largest - low / largest) or 1.0
    zero = _LABELS - low / largest / span * _BARS
    lines = []
    for at, (label, value) in enumerate(bars.items()):
        foot, end = _BAR * at + 14, zero
        if label in numbers:
            length = numbers[label] / largest / span * _BARS
            end, left = max(zero, zero + length), min(zero, zero + length)
            lines.append(
                f'<rect x="{left:.1f}" y="{_BAR * at + 3}" width="{abs(length):.1f}" height="14" fill="#2f6db3"/>'
            )
        lines.append(f'<text x="{_LABELS - 8}" y="{foot}" text-anchor="end">{_label(str(label))}</text>')
        lines.append(f'<text x="{end + 6:.1f}" y="{foot}">{_text(_plain(value))}</text>')
    width, height = _LABELS + _BARS + _VALUES, _BAR * len(bars)
    return (
        f'<div class="wide"><svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="bar chart">{"".join(lines)}</svg></div>{rest}'
    )


def _label(label: str) -> str:
    if len(label) <= _LETTERS:
        return _text(label)
    return f"<title>{_text(label)}</title>{_text(label[: _LETTERS - 1])}…"


def _content(content: Any) -> str:
    """Text, a mapping, a list of mappings, bars or a list of such as HTML."""
    if _is_bars(content):
        return _bars(content["bars"])
    if isinstance(content, Mapping):
        return _table(["", ""], [[str(key), _plain(value)] for key, value in content.items()], text=True)
    if isinstance(content, Sequence) and not isinstance(content, str) and content:
        if any(_is_bars(part) or _is_table(part) for part in content):
            return "\n".join(map(_content, content))
        if _is_table(content):
            names = list(dict.fromkeys(name for row in content for name in row))
            rows = [[_plain(row.get(name, "")) for name in names] for row in content]
            return _table([str(name) for name in names], rows)
        shown = "".join(f"<li>{_text(_plain(line))}</li>" for line in content[:_ROWS])
        return f"<ul>{shown}</ul>{_rest(len(content))}"
    return f"<pre>{_text(content, _TEXT)}</pre>"


def _is_bars(content: Any) -> bool:
    return isinstance(content, Mapping) and set(content) == {"bars"} and isinstance(content["bars"], Mapping)


def _is_table(content: Any) -> bool:
    rows = content if isinstance(content, Sequence) else ()
    return bool(rows) and all(isinstance(row, Mapping) for row in rows)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(inner) for inner in value)
    return str(value)


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heading)
    shown = rows[:_ROWS]
    body = "".join("<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in shown)
    top = f"<thead><tr>{head}</tr></thead>\n" if any(heading) else ""
    return f'<div class="wide"><table>\n{top}<tbody>\n{body}</tbody>\n</table></div>{_rest(len(rows))}'


def _rest(count: int) -> str:
    """What is said about rows that a page of this size leaves out."""
    return f"<p>... and {count - _ROWS:,} more, which this page leaves out.</p>" if count > _ROWS else ""


def _split(rows: Sequence[Sequence[str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return rows[0], rows[1:]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def _text(value: object, limit: int = _CELL) -> str:
    """``value`` as HTML shows it: escaped, control characters visible instead of in force, no lone surrogates."""
    whole = str(value).encode("utf-8", "replace").decode()
    return html.escape(printable(whole, limit, lines=True), quote=True)
