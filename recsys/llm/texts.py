"""One text per item, from the columns of the item table.

The text of an item is ``title. Column: value. Column: value.``: the title, then the other columns in the order of the
table with a description last (a model that cuts long texts then cuts the description), empty ones left out. A value has
its white space collapsed, its HTML entities resolved and a JSON list written as ``a, b, c``, and is cut to
``max_chars``. Left out are columns that repeat the title and columns of ids: a digit in each value, no space, no value
twice.

Legend: U users, N items (rows 1..N).
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import string
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from recsys.data.split import Split, TrainingEvents
from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.statistics.cooccurrence import interactions, item_similarity, largest


def item_texts(
    split: Split,
    columns: Sequence[str] | None = None,
    template: str | None = None,
    bought_after: int = 0,
    max_chars: int = 500,
    stand_in: str | None = None,
) -> tuple[list[str], int]:
    """The text of every item row, N + 1 strings with "" for padding, and how many items have none of their own.

    Items without a text are also counted and named in a :class:`~recsys.errors.DataWarning`; their text is "" or
    ``stand_in``.

    Args:
        columns: which columns, and in which order; None takes all as described above.
        template: the form instead of the default one, with column names in braces, as in ``"{title} by {brand}"``.
        bought_after: append "Bought after: t1; t2; t3.", the titles of that many items that share most users with the
            item in training (of equals the lower row; held-out events are never read).
        max_chars: longest value, in characters.
        stand_in: the text of items that have none.

    Raises:
        DataError: there is no item table, no such column, or no item has a text.
    """
    table = split.item_text
    if not table:
        raise DataError(
            "these data have no item text: name an item table, Dataset.scan(..., items=path) or, with other column "
            "names, items=rs.read_items(path, ...), or pass texts={raw item id: text}"
        )
    if bought_after < 0 or max_chars < 1:
        raise ValueError(f"bought_after must be >= 0 and max_chars >= 1, found {bought_after} and {max_chars}")
    chosen = text_columns(table, columns, template)
    values = {name: [clean_value(str(value), max_chars) for value in table[name]] for name in chosen}
    rows = zip(*values.values(), strict=True)
    if template is None:
        texts = [_sentences(chosen, row) for row in rows]
    else:
        texts = [template.format_map(dict(zip(chosen, row, strict=True))) if any(row) else "" for row in rows]
    texts[0] = ""
    texts, missing = without_gaps(texts, split.items, "items", stand_in)
    if bought_after:
        titles = values["title" if "title" in values else chosen[0]]
        near = _shared_users(split.train, np.array([bool(title) for title in titles]), bought_after)
        texts = [_after(text, [titles[row] for row in line if row]) for text, line in zip(texts, near, strict=True)]
    return texts, missing


def text_columns(table: Mapping[str, Any], columns: Sequence[str] | None, template: str | None = None) -> list[str]:
    """The columns a text is made of, in their order.

    Raises:
        DataError: a column is asked for that the item table does not have.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns must be a list of names, found one name: pass [{columns!r}]")
    if template is not None:
        if columns is not None:
            raise ValueError("columns and template are two ways to say the same: pass one")
        try:
            fields = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"the template {template!r} cannot be read ({error}): write '{{{{' for a brace") from error
        if any(form and "{" in form for _, _, form, _ in fields):
            raise ValueError(f"the template {template!r} has braces within braces: only column names go into them")
        columns = [name for _, name, _, _ in fields if name is not None]
        if not columns:
            raise ValueError(f"the template {template!r} names no column: write one in braces, as in '{{title}}'")
    if columns is not None:
        for name in columns:
            if name not in table:
                raise DataError(f"the item table has no column {name!r}. It has: {', '.join(table)}")
        if not columns:
            raise ValueError("columns is empty: name one, or pass None for all")
        return list(dict.fromkeys(columns))
    title = list(table["title"]) if "title" in table else None
    rest = [name for name in table if name != "title" and list(table[name]) != title]
    rest = sorted((name for name in rest if not _are_ids(table[name])), key=lambda name: name == "description")
    return ["title", *rest] if title is not None else rest or list(table)


def given_texts(
    texts: Mapping[Any, str], vocabulary: Vocabulary, of: str, stand_in: str | None = None
) -> tuple[list[str], int]:
    """Texts by raw id as texts by row, and how many rows have none; ids that are not in the data are counted.

    Raises:
        DataError: no id is in the data, a text is not a string, or no text is left.
    """
    keys = list(texts)
    rows = vocabulary.rows(keys) if keys else np.zeros(0, np.int64)
    by_row = [""] * (vocabulary.first + len(vocabulary))
    for key, row in zip(keys, rows.tolist(), strict=True):
        if not isinstance(texts[key], str):
            raise DataError(f"the text of {key!r} must be a string, found {type(texts[key]).__name__}")
        if row >= 0:
            by_row[row] = texts[key].strip()
    if absent := [key for key, row in zip(keys, rows.tolist(), strict=True) if row < 0]:
        what = f"{len(absent):,} of {len(keys):,} texts are of {of} that are not in the data, such as {absent[:3]}"
        warnings.warn(f"{what}: left out", DataWarning, stacklevel=3)
    return without_gaps(by_row, vocabulary, of, stand_in)


def texts_by_row(
    split: Split,
    of: str,
    texts: Mapping[Any, str] | None,
    columns: Sequence[str] | None,
    template: str | None,
    bought_after: int,
    stand_in: str | None,
) -> tuple[list[str], int, dict[str, Any]]:
    """The texts of ``of``, "items" or "users", by row; how many rows have none; and how they were made, as JSON."""
    if texts is not None:
        if not isinstance(texts, Mapping):
            raise TypeError(
                "texts must be a mapping from raw id to text, such as dict(zip(profiles.ids, profiles.texts)); found "
                f"{type(texts).__name__}"
            )
        if columns is not None or template is not None or bought_after:
            raise ValueError("texts= are taken as they are: columns, template and bought_after make item texts")
        by_row, missing = given_texts(texts, split.items if of == "items" else split.users, of, stand_in)
        return by_row, missing, {"stand_in": stand_in}
    if of == "users":
        raise ValueError("users have no text of their own: pass texts={raw user id: text}, such as profiles")
    by_row, missing = item_texts(split, columns, template, bought_after, stand_in=stand_in)
    chosen = text_columns(split.item_text or {}, columns, template)
    made = {"columns": chosen, "template": template, "bought_after": bought_after}
    return by_row, missing, {**made, "stand_in": stand_in}


def text_hash(ids: np.ndarray, texts: Sequence[str]) -> str:
    """One SHA-256 over raw ids and their texts, in order."""
    digest = hashlib.sha256()
    for key, text in zip(ids.tolist(), texts, strict=True):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(f"{key!r} {len(encoded)} ".encode("utf-8", "surrogatepass") + encoded)
    return digest.hexdigest()


def without_gaps(texts: list[str], vocabulary: Vocabulary, of: str, stand_in: str | None) -> tuple[list[str], int]:
    """``texts`` by row with ``stand_in`` where there is none, and how many there are; a warning names some."""
    first = vocabulary.first
    gaps = [row for row in range(first, len(texts)) if not texts[row]]
    if len(gaps) == len(texts) - first:
        raise DataError(f"none of the {len(gaps):,} {of} has a text: is it the right table, and are columns= filled?")
    if gaps:
        named = vocabulary.raw(np.array(gaps[:3])).tolist()
        then = f"{stand_in!r} stands in" if stand_in else "they stay without one (embed(stand_in=...) gives them one)"
        warnings.warn(
            f"{len(gaps):,} of {len(vocabulary):,} {of} have no text, such as {named}: {then}",
            DataWarning,
            stacklevel=3,
        )
    for row in gaps:
        texts[row] = stand_in or ""
    return texts, len(gaps)


def _sentences(columns: Sequence[str], values: Sequence[str]) -> str:
    parts = []
    for name, value in zip(columns, values, strict=True):
        if value:
            label = "" if name == "title" else name.replace("_", " ").capitalize() + ": "
            parts.append(_ended(label + value))
    return " ".join(parts)


def _after(text: str, titles: Sequence[str]) -> str:
    return _ended(f"{_ended(text)} Bought after: {'; '.join(titles)}") if text and titles else text


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def clean_value(value: str, max_chars: int) -> str:
    """A value as it stands in a text: a JSON list joined, entities resolved, white space collapsed, cut."""
    if value.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):  # brackets that are no list
            value = ", ".join(dict.fromkeys(_flat(json.loads(value))))
    return " ".join(html.unescape(value).split())[:max_chars].rstrip()


def _flat(value: Any) -> list[str]:
    if isinstance(value, list):
        return [text for inner in value for text in _flat(inner)]
    return [] if value is None else [str(value)]


def _are_ids(column: Any) -> bool:
    values = [value for value in column if value]
    different = len(set(values)) == len(values) > 1
    return different and all(not any(map(str.isspace, value)) and any(map(str.isdigit, value)) for value in values)


def _shared_users(training: TrainingEvents, titled: np.ndarray, count: int) -> np.ndarray:
    """(N+1, count) item rows: the ``titled`` (N+1,) items that share most training users with each item, else 0."""
    matrix = interactions(training)
    near = np.zeros((training.num_items + 1, count), np.int64)
    weighted = matrix @ sparse.diags(titled[1:].astype(np.float32))
    for item, other, users in item_similarity(matrix, weighted, cosine=False, title="items that share users"):
        some = users > 0
        item, other, users = item[some], other[some], users[some]
        chosen, rank = largest(item, users, count)
        near[item[chosen], rank] = other[chosen]
    return near
