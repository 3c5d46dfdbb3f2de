"""What parts have to show (``extras`` of a page): text, mappings, tables, bars, or a list that mixes them, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from recsys.pages.charts import is_number
from recsys.pages.frame import ROWS, TEXT, Html, rest, table, text


def content(shown: Any) -> Html:
    """Text, a mapping, a list of mappings (a table), ``{"bars": {label: number}}`` or a list of such as HTML."""
    if _is_bars(shown):
        return bars(shown["bars"])
    if isinstance(shown, Mapping):
        return table(["", ""], [[str(key), plain(value)] for key, value in shown.items()], "text")
    if isinstance(shown, Sequence) and not isinstance(shown, str) and shown:
        if any(_is_bars(part) or _is_table(part) for part in shown):
            return Html("\n".join(map(content, shown)))
        if _is_table(shown):
            names = list(dict.fromkeys(name for row in shown for name in row))
            return table(names, [[plain(row.get(name, "")) for name in names] for row in shown])
        lines = "".join(f"<li>{text(plain(line))}</li>" for line in shown[:ROWS])
        return Html(f"<ul>{lines}</ul>{rest(len(shown))}")
    return Html(f"<pre>{text(shown, TEXT)}</pre>")


def bars(numbers: Mapping[Any, Any]) -> Html:
    """Horizontal bars, one line per label, from a common zero; what is not a finite number has no bar."""
    if not numbers:
        return Html("<p>Nothing to show.</p>")
    shown = dict(islice(numbers.items(), ROWS))
    lengths = {label: float(value) for label, value in shown.items() if is_number(value)}
    low, high = min(0.0, *lengths.values(), 0.0), max(0.0, *lengths.values(), 0.0)
    largest = max(-low, high) or 1.0  # divided by first: differences of numbers near the largest float overflow
    span = (high / largest - low / largest) or 1.0
    zero = -low / largest / span
    lines = []
    for label, value in shown.items():
        length = lengths.get(label, 0.0) / largest / span
        left, width = 100 * min(zero, zero + length), 100 * abs(length)
        style = f"margin-left:{left:.2f}%;width:{width:.2f}%"
        lines.append(
            f'<tr><td>{text(label)}</td><td><span class="bar" style="{style}"></span></td>'
            f"<td>{text(plain(value))}</td></tr>"
        )
    return Html(
        f'<div class="wide"><table class="bars"><tbody>{"".join(lines)}</tbody></table></div>{rest(len(numbers))}'
    )


def plain(value: Any) -> str:
    """A value as the text of a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value)
    return str(value)


def _is_bars(shown: Any) -> bool:
    return isinstance(shown, Mapping) and set(shown) == {"bars"} and isinstance(shown["bars"], Mapping)


def _is_table(shown: Any) -> bool:
    rows = shown if isinstance(shown, Sequence) else ()
    return bool(rows) and all(isinstance(row, Mapping) for row in rows)
