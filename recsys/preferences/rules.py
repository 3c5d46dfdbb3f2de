"""Preferences without a language model: put together by rule from the words of the items in the history.

For each event, of the last ``RECENT`` items up to it, newest first: "Find <words of the item>", distinct ones; and one
"Avoid <category>", the most popular category beside that of the newest item that none of these items has. The words of
an item are the last entry of each of its columns (of a path of categories the most special one), without the title.

Nothing in such data says what a user dislikes, so the negative ones are made up; the manifest says that all of it is by
rule. It is for tests, for trying things out without a model, and a floor that a real writer must beat.

Legend: E events, N items (rows 1..N), C preferences of an event, R recent items, G categories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from recsys.data.split import Split
from recsys.errors import DataError
from recsys.llm.answers import clean
from recsys.llm.texts import clean_value, text_columns

RECENT = 5
WORDS = 12  # of a preference, behind "Find"
SIBLINGS = RECENT + 1  # popular categories beside one's own: one of them is none of the last five
_CHUNK = 1 << 18  # events worked on at a time


def by_rule(split: Split, columns: Sequence[str] | None = None, count: int = 5) -> tuple[list[str], np.ndarray]:
    """Distinct texts, and which of them (E, C) int32 each event of the split has, -1 behind the end.

    Each user's newest event has none, as it is nobody's history.

    Args:
        columns: of the item table; None takes those that :func:`recsys.llm.texts.text_columns` does, without the
            title if there are others.

    Raises:
        DataError: the items have no text.
    """
    if not split.item_text:
        raise DataError(
            "preferences are made of the texts of items, and these data have none: name an item table, "
            "Dataset.scan(..., items=path)"
        )
    chosen = rule_columns(split.item_text, columns)
    wanted, category, parent, names = _items(split.item_text, chosen)
    texts = [*dict.fromkeys(text for text in wanted if text), *(f"Avoid {name}" for name in names)]
    number = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    find = np.array([number.get(text, -1) for text in wanted], np.int32)
    avoid = np.array([number[f"Avoid {name}"] for name in names], np.int32)
    beside = _popular(split, category, parent, len(names))
    codes = np.full((split.prepared.num_events, count), -1, np.int32)
    last = np.zeros(len(codes), bool)
    last[split.prepared.offsets[1:][np.diff(split.prepared.offsets) > 0] - 1] = True
    for start in range(0, len(codes), _CHUNK):
        events = np.arange(start, min(start + _CHUNK, len(codes)))
        events = events[~last[events]]
        codes[events] = _of_events(split, events, find, avoid, category, parent, beside, count)
    used, codes_of = np.unique(codes, return_inverse=True)
    kept = used[used >= 0]
    shift = np.concatenate([np.full(len(used) - len(kept), -1, np.int32), np.arange(len(kept), dtype=np.int32)])
    listed = list(number)
    return [listed[at] for at in kept.tolist()], shift[codes_of].reshape(codes.shape)


def rule_columns(table: Mapping[str, Any], columns: Sequence[str] | None) -> list[str]:
    """The columns that the words of an item come from; the first is its category, so that numbers stand last."""
    found = text_columns(table, columns)
    if columns is not None:
        return found
    rest = [name for name in found if name != "title"] or found
    return sorted(rest, key=lambda name: _are_numbers(table[name]))


def _items(table: Mapping[str, Any], columns: list[str]) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """By item row: "Find ..." or ""; the number of its category and of what stands above that, -1 for none; and the
    names of the categories.

    A category of the same name elsewhere in the tree is another one, but is called alike.
    """
    paths = [_path(str(value)) for value in table[columns[0]]]
    numbers: dict[tuple[str, ...], int] = {}
    above: dict[tuple[str, ...], int] = {}
    category, parent = np.full(len(paths), -1, np.int64), np.full(len(paths), -1, np.int64)
    for row, path in enumerate(paths):
        if row and path:
            category[row] = numbers.setdefault(path, len(numbers))
            parent[row] = above.setdefault(path[:-1], len(above))
    rows = zip(*(table[name] for name in columns), strict=True)
    words = [", ".join(filter(None, ((_path(str(one)) or ("",))[-1] for one in row))) for row in rows]
    short = [" ".join(text.split()[:WORDS]).rstrip(" ,") for text in words]
    return ["", *(f"Find {text}" if text else "" for text in short[1:])], category, parent, [p[-1] for p in numbers]


def _are_numbers(column: Any) -> bool:
    values = [str(value).strip() for value in column if value]
    return bool(values) and all(value.replace(".", "", 1).isdigit() for value in values)


def _path(value: str) -> tuple[str, ...]:
    """The first list in a value, or the value alone, in small letters."""
    found: Any = value
    with suppress(ValueError, RecursionError):
        found = json.loads(value) if value.startswith("[") else value
    while isinstance(found, list) and found and isinstance(found[0], list):
        found = found[0]
    parts = found if isinstance(found, list) else [value]
    cleaned = (clean(clean_value(str(part), 80)).lower() for part in parts)
    return tuple(part for part in cleaned if part and part != "none" and part != "nan")


def _popular(split: Split, category: np.ndarray, parent: np.ndarray, size: int) -> np.ndarray:
    """(above, SIBLINGS) the categories with most training events below each of what stands above, -1 behind the end."""
    counts = np.zeros(size, np.int64)
    known = category >= 0
    np.add.at(counts, category[known], split.train.item_counts()[known])
    of = np.full(size, -1, np.int64)
    of[category[known]] = parent[known]
    beside = np.full((int(parent.max(initial=-1)) + 1, SIBLINGS), -1, np.int64)
    order = np.lexsort((np.arange(size), -counts, of))
    rank = np.arange(size) - np.searchsorted(of[order], of[order])
    some = (rank < SIBLINGS) & (of[order] >= 0)
    beside[of[order][some], rank[some]] = order[some]
    return beside


def _of_events(
    split: Split,
    events: np.ndarray,
    find: np.ndarray,
    avoid: np.ndarray,
    category: np.ndarray,
    parent: np.ndarray,
    beside: np.ndarray,
    count: int,
) -> np.ndarray:
    """(n, C) int32 numbers of the preferences of events (n,)."""
    prepared = split.prepared
    first = prepared.offsets[np.searchsorted(prepared.offsets, events, side="right") - 1]
    at = events[:, None] - np.arange(RECENT)  # (n, R), newest first
    inside = at >= first[:, None]
    items = np.where(inside, prepared.items[np.maximum(at, 0)], 0)  # row 0 has neither words nor a category
    positive = find[items]
    for column in range(1, RECENT):
        repeated = (positive[:, :column] == positive[:, column : column + 1]).any(1)
        positive[repeated, column] = -1
    above = parent[items[:, 0]]
    offered = np.where(above[:, None] >= 0, beside[np.maximum(above, 0)], -1) if len(beside) else np.full((1, 1), -1)
    taken = (offered[:, :, None] == category[items][:, None, :]).any(2) | (offered < 0)
    free = ~taken.all(1)
    negative = np.where(free, avoid[offered[np.arange(len(offered)), taken.argmin(1)]] if len(avoid) else -1, -1)
    found = np.concatenate([_leftmost(positive)[:, : count - 1], np.full((len(events), 1), -1, np.int32)], 1)
    end = (found >= 0).sum(1)
    found[np.arange(len(found)), end] = np.broadcast_to(negative, len(found))
    return found.astype(np.int32)


def _leftmost(values: np.ndarray) -> np.ndarray:
    """The rows with what is not negative first, in its order."""
    return np.take_along_axis(values, np.argsort(values < 0, axis=1, kind="stable"), 1)
