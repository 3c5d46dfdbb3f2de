"""What all pages share: one self-contained document, its style, tables, and text that is shown and never obeyed.

A page has no assets from elsewhere, and says so to the browser: its content security policy forbids every request, and
every script but the page's own, by hash. It is light or dark as the reader's system is, and prints in black on white.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recsys.errors import printable
from recsys.pages.style import STYLE

CELL, TEXT = 2_000, 100_000  # most characters of a table's cell, and of a text
ROWS = 500  # most rows of a table


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A part of a page with its heading; one without a body is left out."""

    heading: str
    body: str


def document(title: str, sections: Sequence[Section], lead: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: plain text, escaped here.
        lead: HTML below the title.
        script: JavaScript, the only one that the page's policy lets run.
    """
    shown = [section for section in sections if section.body]
    slugs = _slugs(section.heading for section in shown)
    links = "".join(
        f'<a href="#{slug}">{text(section.heading, 60)}</a>' for slug, section in zip(slugs, shown, strict=True)
    )
    nav = f'<nav aria-label="Sections">{links}</nav>' if len(shown) > 1 else ""
    body = "\n".join(
        f'<section id="{slug}">\n<h2>{text(section.heading)}</h2>\n{section.body}\n</section>'
        for slug, section in zip(slugs, shown, strict=True)
    )
    tag = f"<script>{script}</script>\n" if script else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{text(title)}</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<header>\n<h1>{text(title)}</h1>\n{lead}\n</header>\n{nav}\n<main>\n{body}\n</main>\n{tag}"
        "</body>\n</html>\n"
    )


def table(heading: Sequence[object], rows: Sequence[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls sideways where it is wider than the page; of very many rows the first ones, counted.

    Args:
        heading: cells of the first line; none of them with text means no heading.
        kind: class of the table, such as "text" for cells that wrap.
    """
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in heading)
    top = f"<thead><tr>{head}</tr></thead>\n" if any(heading) else ""
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>\n" for row in rows[:ROWS])
    named = f' class="{kind}"' if kind else ""
    return Html(
        f'<div class="wide" tabindex="0"><table{named}>\n{top}<tbody>\n{body}</tbody>\n</table></div>{rest(len(rows))}'
    )


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and what they are, as a list of definitions; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "")]
    inner = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in shown)
    return Html(f'<dl class="facts">{inner}</dl>') if shown else Html("")


def cards(entries: Iterable[tuple[object, object, object]]) -> Html:
    """Large numbers side by side: what it is, the number, a line below it."""
    inner = "".join(
        f'<div class="card"><span>{text(name)}</span><strong>{text(value)}</strong><small>{text(note)}</small></div>'
        for name, value, note in entries
    )
    return Html(f'<div class="cards">{inner}</div>') if inner else Html("")


def rest(count: int, most: int = ROWS) -> str:
    """What is said about rows that a page of this size leaves out."""
    return f"<p>... and {count - most:,} more, which this page leaves out.</p>" if count > most else ""


def text(value: object, limit: int = CELL) -> str:
    """``value`` as HTML shows it: escaped, control characters visible instead of in force, no lone surrogates."""
    if isinstance(value, Html):
        return value
    whole = str(value).encode("utf-8", "replace").decode()
    return html.escape(printable(whole, limit, lines=True), quote=True)


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}; base-uri 'none'"


def _slugs(headings: Iterable[str]) -> list[str]:
    """An anchor for each heading, every one another."""
    found: list[str] = []
    for at, heading in enumerate(headings):
        slug = re.sub(r"[^a-z0-9]+", "-", heading.lower())[:40].strip("-") or "section"
        found.append(slug if slug not in found else f"{slug}-{at}")
    return found
