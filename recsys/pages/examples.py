"""What a model recommends to a few test users, by title, with its hits marked: three users with a hit, three without.

Which users is drawn by seed among those of the report, never by how nice their lists look. Lists are those that
``recommend`` gives from the whole catalogue, as in serving.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataWarning
from recsys.eval.list_only import Lister
from recsys.eval.report import Report
from recsys.pages.frame import Html, text
from recsys.randomness import numpy_generator

if TYPE_CHECKING:
    from recsys.data.split import HeldOut

EACH, LISTED, NEWEST, LETTERS = 3, 10, 6, 90  # users of each kind, items of a list and of a history, letters of a title


@dataclass(frozen=True)
class Example:
    """One user: the newest titles of the history, how long it is, the titles of the targets, and the list."""

    user: str
    history: tuple[str, ...]
    length: int
    targets: tuple[str, ...]
    listed: tuple[tuple[str, bool], ...]  # (title, whether it is a target)

    @property
    def hits(self) -> int:
        """How many targets are in the list."""
        return sum(hit for _, hit in self.listed)


def examples(model: Any, part: HeldOut, report: Report, seed: int = 0) -> tuple[Example, ...]:
    """Users of the report with what ``model`` recommends to them.

    Raises:
        TypeError, ValueError, DataError: the model does not recommend, or not for this part.
    """
    chosen = _chosen(report, len(part), seed)
    if not len(chosen):
        return ()
    k = min(LISTED, part.num_items)
    exclude = "none" if report.meta["exclude"] == "none" else "history"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the evaluation of all users has told of empty histories
        lists, _ = Lister(model, part).ask(chosen, k, exclude)
    return tuple(_example(part, int(at), rows[rows > 0]) for at, rows in zip(chosen, lists, strict=True))


def examples_section(shown: Sequence[Example]) -> Html:
    """The users side by side."""
    if not shown:
        return Html("")
    note = (
        f"Drawn by seed: up to {EACH} users with a target among their first {LISTED} items, and up to {EACH} without. "
        "What was held out is marked where the list has it."
    )
    return Html(f'<p class="muted">{text(note)}</p><div class="people">{"".join(map(_person, shown))}</div>')


def _person(one: Example) -> str:
    history = "".join(f"<li>{text(title, LETTERS)}</li>" for title in one.history)
    more = f"<li>... and {one.length - len(one.history):,} before</li>" if one.length > len(one.history) else ""
    listed = "".join(
        f'<li class="hit">{text(title, LETTERS)} <span>hit</span></li>' if hit else f"<li>{text(title, LETTERS)}</li>"
        for title, hit in one.listed
    )
    targets = "".join(f"<li>{text(title, LETTERS)}</li>" for title in one.targets)
    said = f"{one.hits} of {len(one.targets)} found" if one.hits else "no hit"
    return (
        f'<article class="person"><h3>User {text(one.user, 60)}: {said}</h3>'
        f"<small>history, newest first</small><ul>{history or '<li>empty</li>'}{more}</ul>"
        f"<small>held out</small><ul>{targets}</ul><small>recommended</small><ol>{listed}</ol></article>"
    )


def _chosen(report: Report, users: int, seed: int) -> np.ndarray:
    """Positions in the part."""
    positions = report.columns.get("position")
    metric = next(iter(report.primary()), None)
    if positions is None or metric is None or positions.max(initial=0) >= users:
        return np.zeros(0, np.int64)
    draw = numpy_generator(seed, "examples of a report")
    found = []
    for index in (np.flatnonzero(report.columns[metric] > 0), np.flatnonzero(report.columns[metric] <= 0)):
        found.append(np.sort(draw.choice(index, min(EACH, len(index)), replace=False)))
    return np.asarray(positions[np.concatenate(found).astype(np.int64)], np.int64)


def _example(part: HeldOut, at: int, rows: np.ndarray) -> Example:
    split = part.split
    assert split is not None
    index = np.array([at])
    history, targets = part.history(index)[1], part.targets(index)[1]
    called = _Titles(split.item_text or {}, split.items)
    wanted = set(targets.tolist())
    return Example(
        str(split.users.raw(part.users[index]).tolist()[0]),
        tuple(called(row) for row in history[::-1][:NEWEST].tolist()),
        len(history),
        tuple(called(row) for row in targets[:LISTED].tolist()),
        tuple((called(row), row in wanted) for row in rows.tolist()),
    )


class _Titles:
    """Item rows by title, or by raw id where there is none."""

    def __init__(self, table: Mapping[str, Any], items: Any) -> None:
        column = next(iter([name for name in table if "title" in name.lower()] or table), None)
        self.column, self.items = None if column is None else table[column], items

    def __call__(self, row: int) -> str:
        found = None if self.column is None else self.column[row]
        told = "" if found is None or found != found else str(found).strip()
        return told or str(self.items.raw(np.array([row])).tolist()[0])
