"""Recorded tables in Markdown as HTML: headings, tables, fenced text, paragraphs, bold and code, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from recsys.pages.frame import Html, table, text


def as_html(markdown: str) -> Html:
    """Markdown as the benchmarks write it; everything in it is escaped."""
    return Html("\n".join(_blocks(markdown.replace("\r\n", "\n").split("\n"))))


def _blocks(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            stop = next((end for end in range(at + 1, len(lines)) if lines[end].startswith("```")), len(lines))
            yield f"<pre>{text(chr(10).join(lines[at + 1 : stop]), 100_000)}</pre>"
            at = stop + 1
        elif line.startswith("|"):
            stop = next((end for end in range(at, len(lines)) if not lines[end].startswith("|")), len(lines))
            yield _table([_cells(one) for one in lines[at:stop]])
            at = stop
        elif line.startswith("#"):
            yield f"<h3>{_inline(line.lstrip('# '))}</h3>"
            at += 1
        else:
            stop = next((end for end in range(at, len(lines)) if _ends(lines[end])), len(lines))
            if stop > at:
                yield f"<p>{_inline(' '.join(lines[at:stop]))}</p>"
            at = max(stop, at + 1)


def _ends(line: str) -> bool:
    return not line.strip() or line.startswith(("|", "#", "```"))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _table(rows: list[list[str]]) -> str:
    ruled = len(rows) > 1 and all(re.fullmatch(r":?-+:?", cell) for cell in rows[1])
    heading, body = (rows[0], rows[2:]) if ruled else ([], rows)
    return table([_inline(cell) for cell in heading], [[_inline(cell) for cell in row] for row in body])


def _inline(line: str) -> Html:
    shown = text(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line), 10_000)
    shown = re.sub(r"`([^`]*)`", r"<code>\1</code>", shown)
    return Html(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", shown))
