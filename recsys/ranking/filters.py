"""What filters recommendations: seen items, allow and deny lists, as pairs of history and column.

One rule for models, bundles, indexes, files and evaluation.

Legend: B histories, N columns (items) of a chunk of scores.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Find = Callable[[list[Any]], np.ndarray]  # raw ids -> (n,) columns; -1: unknown, -2: known, but not to be shown
EXCLUDE = ("history", "none")


@dataclass(frozen=True)
class Pairs:
    """Columns per history: ``columns[i]`` belongs to history ``owners[i]``; sorted by owner."""

    owners: np.ndarray  # (n,) int64
    columns: np.ndarray  # (n,) int64

    def within(self, start: int, stop: int) -> Pairs:
        """Those of the histories ``start``..``stop``, counted from there."""
        first, last = np.searchsorted(self.owners, [start, stop])
        return Pairs(self.owners[first:last] - start, self.columns[first:last])

    def of(self, rows: np.ndarray, total: int) -> Pairs:
        """Those of the histories ``rows`` (ascending) of ``total``, counted among them."""
        position = np.full(total, -1, np.int64)
        position[rows] = np.arange(len(rows))
        kept = position[self.owners] >= 0
        return Pairs(position[self.owners[kept]], self.columns[kept])


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Limits(NamedTuple):
    """Item rows for all histories of a request, beside raw ids: a mask over a catalogue is made once, not looked up."""

    only: np.ndarray | None = None  # (n,) rows of which alone something may be shown; None: of all
    never: np.ndarray | None = None  # (n,) rows that are not shown


EVERYTHING = Limits()


@dataclass(frozen=True)
class Shown:
    """What may be shown to B histories. ``unknown`` holds, for "allow" and "deny", unknown ids and ids given."""

    denied: Pairs = NO_PAIRS  # per history
    denied_to_all: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    allowed: Pairs | None = None  # per history; None: no such lists
    unrestricted: np.ndarray | None = None  # (B,) bool: histories whose list in ``allowed`` is None
    allowed_to_all: np.ndarray | None = None
    unknown: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        find: Find,
        histories: Sequence[Sequence[Any]],
        exclude: str = "history",
        allow: Any = None,
        deny: Any = None,
        empty: bool = False,
    ) -> Shown:
        """What ``exclude``, ``allow`` and ``deny`` leave to the raw item ids of each history.

        Args:
            allow, deny: raw ids for all histories, or one list of them per history (None: no restriction).
            empty: whether ``allow=[]`` is taken for what it says.

        Raises:
            ValueError: nothing at all is allowed, or there is not one list per history.
            TypeError: something else than ids or lists of ids.
        """
        count, told = len(histories), dict[str, tuple[int, int]]()
        denied = _pairs(find, histories, None, told) if exclude == "history" else NO_PAIRS
        everyone, lists = all_or_each(deny, "deny", count)
        denied_to_all = np.zeros(0, np.int64) if everyone is None else _columns(find, everyone, "deny", told)
        if lists is not None:
            denied = _joined(denied, _pairs(find, lists, "deny", told))
        everyone, lists = all_or_each(allow, "allow", count)
        if everyone is not None and not everyone and count and not empty:
            raise ValueError("allow=[] allows nothing: leave it out, or name the ids that may be recommended")
        allowed_to_all = None if everyone is None else _columns(find, everyone, "allow", told)
        allowed = None if lists is None else _pairs(find, lists, "allow", told)
        free = None if lists is None else np.array([one is None for one in lists], bool)
        return cls(denied, denied_to_all, allowed, free, allowed_to_all, told)

    def limited(self, only: np.ndarray | None = None, never: np.ndarray | None = None) -> Shown:
        """The same where, of all columns, ``only`` some may be shown and ``never`` some others."""
        if only is not None:
            only = only if bool((only[1:] > only[:-1]).all()) else np.unique(only)
            only = only if self.allowed_to_all is None else np.intersect1d(only, self.allowed_to_all)
        denied = self.denied_to_all if never is None else np.union1d(self.denied_to_all, never)
        return replace(self, allowed_to_all=self.allowed_to_all if only is None else only, denied_to_all=denied)

    def part(self, start: int, stop: int) -> Shown:
        """What may be shown to the histories ``start``..``stop``."""
        return self._with(
            self.denied.within(start, stop),
            None if self.allowed is None else self.allowed.within(start, stop),
            slice(start, stop),
        )

    def rows(self, rows: np.ndarray, total: int) -> Shown:
        """What may be shown to the histories ``rows`` (ascending) of ``total``."""
        return self._with(
            self.denied.of(rows, total), None if self.allowed is None else self.allowed.of(rows, total), rows
        )

    def hide(self, scores: Tensor) -> None:
        """Set the scores (B, N) of what may not be shown to -infinity, in place."""
        device = scores.device
        if self.allowed_to_all is not None:
            hidden = torch.ones(scores.shape[1], dtype=torch.bool)
            hidden[torch.from_numpy(self.allowed_to_all)] = False
            scores[:, hidden.to(device)] = -torch.inf
        if self.allowed is not None and self.unrestricted is not None:
            at = _at(self.allowed, device)
            kept, listed = scores[at], torch.from_numpy(~self.unrestricted).to(device)
            scores[listed] = -torch.inf
            scores[at] = kept
        if len(self.denied_to_all):
            scores[:, torch.from_numpy(self.denied_to_all).to(device)] = -torch.inf
        if len(self.denied.owners):
            scores[_at(self.denied, device)] = -torch.inf

    def hidden(self, owners: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
        """Whether each pair of ``owners`` and ``columns`` (any shape; columns below ``width``) may not be shown."""
        found = np.isin(columns, self.denied_to_all)
        if len(self.denied.owners):
            found |= np.isin(owners * width + columns, self.denied.owners * width + self.denied.columns)
        if self.allowed_to_all is not None:
            found |= ~np.isin(columns, self.allowed_to_all)
        if self.allowed is not None and self.unrestricted is not None:
            inside = np.isin(owners * width + columns, self.allowed.owners * width + self.allowed.columns)
            found |= ~(inside | self.unrestricted[owners])
        return found

    @property
    def few(self) -> bool:
        """Whether there are lists of what is allowed."""
        return self.allowed is not None or self.allowed_to_all is not None

    def columns(self, width: int) -> np.ndarray:
        """All columns that may be shown to anybody, ascending, as far as lists of what is allowed tell."""
        if self.allowed_to_all is not None:
            return np.unique(self.allowed_to_all)
        if self.allowed is None or self.unrestricted is None or self.unrestricted.any():
            return np.arange(width)
        return np.unique(self.allowed.columns)

    def among(self, columns: np.ndarray) -> Shown:
        """The same where a chunk of scores has only ``columns`` (ascending)."""

        def within(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            at = np.minimum(np.searchsorted(columns, found), max(len(columns) - 1, 0))
            inside = columns[at] == found if len(columns) else np.zeros(len(found), bool)
            return at[inside], inside

        def pairs(found: Pairs) -> Pairs:
            at, inside = within(found.columns)
            return Pairs(found.owners[inside], at)

        return Shown(
            pairs(self.denied),
            within(self.denied_to_all)[0],
            None if self.allowed is None else pairs(self.allowed),
            self.unrestricted,
            None if self.allowed_to_all is None else within(self.allowed_to_all)[0],
        )

    def notes(self, where: str) -> list[str]:
        """Sentences on the ids of ``allow`` and ``deny`` that are unknown, ``where`` being what does not hold them."""
        words = {"allow": "allowed", "deny": "denied"}
        return [
            f"{unknown:,} of {given:,} {words[name]} items are not in the {where}"
            for name, (unknown, given) in self.unknown.items()
            if unknown
        ]

    def _with(self, denied: Pairs, allowed: Pairs | None, chosen: slice | np.ndarray) -> Shown:
        free = None if self.unrestricted is None else self.unrestricted[chosen]
        return Shown(denied, self.denied_to_all, allowed, free, self.allowed_to_all, self.unknown)


def checked_k(k: Any) -> int:
    """``k`` as an int.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below 1.
    """
    try:
        if isinstance(k, (bool, np.bool_)):
            raise TypeError
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"k must be a whole number, the length of the lists; found {k!r}") from None
    if k < 1:
        raise ValueError(f"k must be at least 1, found {k}")
    return int(k)


def all_or_each(given: Any, name: str, count: int) -> tuple[list[Any] | None, list[Any] | None]:
    """Ids for all, or a list (or None) per history or user; both None where nothing is given.

    Raises:
        ValueError: there are not ``count`` lists.
        TypeError: something else than ids or lists of ids.
    """
    if given is None:
        return None, None
    if isinstance(given, (str, bytes)):
        raise TypeError(f"{name} is a list of ids, and {given!r} is one id: pass [{given!r}]")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{name} is a list of raw ids, or one list per history; found {type(given).__name__}")
    values = list(given)
    nested = [_is_list(one) for one in values]
    if not any(nested):
        return values, None
    if not all(inner or one is None for inner, one in zip(nested, values, strict=True)):
        odd = next(one for inner, one in zip(nested, values, strict=True) if not inner and one is not None)
        raise TypeError(f"{name} must hold one list of ids per history, and mixes lists with ids such as {odd!r}")
    if len(values) != count:
        raise ValueError(f"{name} must hold one list per query, history or user: {count} expected, {len(values)} found")
    return None, [one if one is None or hasattr(one, "__len__") else list(one) for one in values]


def _is_list(one: Any) -> bool:
    return isinstance(one, Iterable) and not isinstance(one, (str, bytes, Mapping))


def _columns(find: Find, ids: list[Any], name: str, told: dict[str, tuple[int, int]]) -> np.ndarray:
    columns = find(ids) if ids else np.zeros(0, np.int64)
    told[name] = (int((columns == -1).sum()), len(columns))
    return np.unique(columns[columns >= 0])


def _pairs(find: Find, lists: Sequence[Any], name: str | None, told: dict[str, tuple[int, int]]) -> Pairs:
    owners = np.repeat(np.arange(len(lists)), [0 if one is None else len(one) for one in lists])
    ids = list(chain.from_iterable(one for one in lists if one is not None))
    columns = find(ids) if ids else np.zeros(0, np.int64)
    if name is not None:
        told[name] = (int((columns == -1).sum()), len(columns))
    return Pairs(owners[columns >= 0], columns[columns >= 0])


def _joined(one: Pairs, other: Pairs) -> Pairs:
    owners = np.concatenate([one.owners, other.owners])
    order = np.argsort(owners, kind="stable")
    return Pairs(owners[order], np.concatenate([one.columns, other.columns])[order])


def _at(pairs: Pairs, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pairs.owners).to(device), torch.from_numpy(pairs.columns).to(device)
