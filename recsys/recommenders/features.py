"""Features of raw histories as the codes and numbers that a model reads; what is unknown or missing is counted.

Legend: n items of a history, K longest list of all histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataError, printable
from recsys.features.column import Column
from recsys.hooks import having
from recsys.recommenders.history import History

if TYPE_CHECKING:
    from recsys.data.split import Split


class Coded(dict[str, np.ndarray]):
    """Features as codes and numbers: of events (n,) or (n, K), of the user () or (K,)."""


def coded(
    histories: Sequence[History], events: Mapping[str, Column], users: Mapping[str, Column]
) -> tuple[list[History], list[str]]:
    """The histories with their features as codes and numbers, by columns that know the categories; and what to tell:
    how many histories lack a feature, and how many values the model does not know, all of which count as missing.

    Raises:
        DataError: a column of events has not one value per item, or a value is not of the column's kind.
    """
    if all(isinstance(one.features, Coded) for one in histories):
        return list(histories), []
    made = [Coded() for _ in histories]
    notes = _unread(histories, {*events, *users})
    for name, column in events.items():
        given = [_values(one, name) for one in histories]
        lengths = [len(one.items) for one in histories]
        notes += _absent(given, lengths, name)
        rows = [[None] * n if values is None else values for values, n in zip(given, lengths, strict=True)]
        read, told = _read(column, list(chain.from_iterable(rows)), name)
        notes += told
        for one, part in zip(made, np.split(read, np.cumsum(lengths)[:-1]) if lengths else [], strict=True):
            one[name] = part
    for name, column in users.items():
        single = [(one.features or {}).get(name) for one in histories]
        notes += _absent(single, [1] * len(single), name)
        read, told = _read(column, single, name)
        notes += told
        for one, value in zip(made, read, strict=True):
            one[name] = value
    return [replace(one, features=features) for one, features in zip(histories, made, strict=True)], notes


def request_columns(model: Any) -> tuple[dict[str, Column], dict[str, Column]]:
    """The columns of events and of users by which the parts of ``model`` read the features of a request."""
    events: dict[str, Column] = {}
    users: dict[str, Column] = {}
    for _, part in having(model, "request_columns"):
        of_events, of_users = part.request_columns()
        events.update(of_events)
        users.update(of_users)
    return events, users


def code_maps(model: Any, split: Split | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of columns of events and of users: the code that ``model`` knows of each code of ``split`` (0: not known), where
    the two are not the same.

    Raises:
        DataError: a column of the split is of another kind.
    """
    maps: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    if split is None:
        return maps
    for _, part in having(model, "request_columns"):
        for found, known, own in zip(
            maps, part.request_columns(), (split.prepared.features, split.user_features), strict=True
        ):
            for name, column in known.items():
                given = None if own is None else own.get(name)
                if given is not None and given.kind != column.kind:
                    raise DataError(
                        f"the model reads the column {name!r} as a {column.kind}, and in the split it is a "
                        f"{given.kind}: scan the data with the kind of the training"
                    )
                if given is None or column.categories is None or given.categories.digest == column.categories.digest:
                    continue
                codes = np.maximum(column.categories.rows(given.categories.ids), 0)
                found[name] = np.concatenate([np.zeros(1, np.int64), codes])
    return maps


def _values(history: History, name: str) -> list[Any] | None:
    values = (history.features or {}).get(name)
    if values is None:
        return None
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__") or len(values) != len(history.items):
        found = f"{len(values)} of them" if hasattr(values, "__len__") and not isinstance(values, str) else repr(values)
        raise DataError(
            f"the feature {name!r} has one value per item of a history: {len(history.items)} are expected, found "
            f"{printable(found)}; None stands for a missing one"
        )
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _read(column: Column, values: list[Any], name: str) -> tuple[np.ndarray, list[str]]:
    """Codes (int64) or numbers of raw values, and a line on those that are not known."""
    try:
        found, unknown = column.encode(values)
    except DataError as error:
        raise DataError(f"the feature {name!r} of a history: {error}") from error
    read = found.dense(np.arange(len(found)))
    read = read if column.kind == "number" else read.astype(np.int64)
    if not unknown:
        return read, []
    given = int((read > 0).sum()) + len(unknown)
    return read, [
        f"{len(unknown):,} of {given:,} values of {name!r} are categories that training did not have, such as "
        f"{printable(repr(unknown[0]), 60)}: they count as missing"
    ]


def _absent(given: Sequence[Any], lengths: Sequence[int], name: str) -> list[str]:
    count = sum(values is None and n > 0 for values, n in zip(given, lengths, strict=True))
    if not count:
        return []
    return [
        f"{count:,} of {len(given):,} histories have no feature {name!r}, which the model reads: it counts as missing"
    ]


def _unread(histories: Sequence[History], known: set[str]) -> list[str]:
    given = [set(one.features) for one in histories if one.features]
    others = sorted({name for names in given if not names & known for name in names})
    names = ", ".join(printable(name, 40) for name in others[:5])
    return [f"the features {names} are not read by any part of this model: it reads {', '.join(sorted(known))}"] * bool(
        others
    )
