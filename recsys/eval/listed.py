"""Raw ids that a caller gives for each user (impressions, published negatives, what must not be shown), as rows.

Legend: n users of the part, N items (rows 1..N), E listed (user, item) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import DataError
from recsys.ids.ranges import spread

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.ids.vocabulary import Vocabulary

COLUMNS = ("user", "item")
_SHOWN = 3


@dataclass(frozen=True)
class Listed:
    """Distinct item rows of each user of a part: user at position i has ``rows[offsets[i]:offsets[i + 1]]``."""

    offsets: np.ndarray  # (n+1,) int64
    rows: np.ndarray  # (E,) int32, ascending within a user
    unknown: int  # listed ids that are not in the catalogue

    @classmethod
    def read(cls, given: Any, part: HeldOut, items: Vocabulary, what: str) -> Listed:
        """From one list of raw ids per user of the part, from {raw user id: raw ids}, or from a table with the columns
        ``user`` and ``item``. Users that a mapping or table leaves out have an empty list.

        Raises:
            TypeError: it is none of these. ValueError: not one list per user.
            DataError: no user is known, or ids are ints where strings are expected, or the other way round.
        """
        if hasattr(given, "columns"):
            owner, raw = _of_table(given, part, what)
        elif isinstance(given, Mapping):
            position = _positions(list(given), part, what)
            lists = [_as_list(one, what) for one in given.values()]
            owner, raw = np.repeat(position, [len(one) for one in lists]), list(chain.from_iterable(lists))
        else:
            lists = [_as_list(one, what) for one in given]
            if len(lists) != len(part):
                raise ValueError(
                    f"{what} holds {len(lists):,} lists, and {part.name!r} has {len(part):,} users: give one list of "
                    "raw ids per user in the order of the part, or a mapping from raw user ids"
                )
            owner, raw = np.repeat(np.arange(len(part)), [len(one) for one in lists]), list(chain.from_iterable(lists))
        raw, owner = _of_the_part(raw, owner)
        found = items.rows(raw) if len(raw) else np.zeros(0, np.int64)
        known = found > 0
        keys = np.unique(owner[known] * (len(items) + 1) + found[known])
        counts = np.bincount(keys // (len(items) + 1), minlength=len(part))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(offsets, (keys % (len(items) + 1)).astype(np.int32), int(np.count_nonzero(~known)))

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64: how many items each user has."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """A hash of who has what."""
        found = hashlib.blake2b(np.ascontiguousarray(self.offsets).data, digest_size=8)
        found.update(np.ascontiguousarray(self.rows).data)
        return found.hexdigest()

    def pairs(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items of the users at ``index``, flat: (position within ``index``, item row), int64 each."""
        owner, at = spread(self.offsets[index], self.offsets[index + 1])
        return owner, self.rows[at].astype(np.int64)


def is_per_user(given: Any) -> bool:
    """Whether ``given`` is lists per user rather than raw ids for all.

    Raises:
        TypeError: some of its entries are lists and some are not.
    """
    flat = isinstance(given, np.ndarray) and given.ndim < 2
    if isinstance(given, str) or (flat and given.dtype != object):
        return False
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        return True
    nested = [_is_list(one) for one in given]
    if any(nested) and not all(nested):
        raise TypeError(
            f"raw ids for all users or one list of raw ids per user are expected, and entry {nested.index(False)} is "
            f"not a list while entry {nested.index(True)} is one"
        )
    return any(nested)


def _is_list(one: Any) -> bool:
    return isinstance(one, Iterable) and not isinstance(one, (str, bytes))


def _as_list(one: Any, what: str) -> list[Any]:
    if not _is_list(one):
        raise TypeError(f"{what} holds {one!r} where a list of raw ids is expected")
    return one.tolist() if isinstance(one, np.ndarray) else list(one)


def _of_table(table: Any, part: HeldOut, what: str) -> tuple[np.ndarray, list[Any]]:
    names = list(table.columns)
    if not set(COLUMNS) <= set(names):
        raise ValueError(f"{what} as a table has the columns 'user' and 'item', one row per pair; found {names}")
    users, items = (_column(table[name]) for name in COLUMNS)
    distinct, back = np.unique(np.asarray(users), return_inverse=True)
    return _positions(distinct.tolist(), part, what)[back], items


def _column(values: Any) -> list[Any]:
    found: list[Any] = values.to_list() if hasattr(values, "to_list") else list(values)
    return found


def _of_the_part(raw: Sequence[Any], owner: np.ndarray) -> tuple[Any, np.ndarray]:
    """Without the pairs of users that the part does not have."""
    inside = owner >= 0
    if inside.all():
        return raw, owner
    return [one for one, keep in zip(raw, inside.tolist(), strict=True) if keep], owner[inside]


def _positions(users: list[Any], part: HeldOut, what: str) -> np.ndarray:
    """(len(users),) int64: where each raw user id stands in the part, -1 if it does not."""
    if part.split is None:
        raise ValueError(f"the part {part.name!r} has no raw user ids: give {what} as one list per user, in its order")
    rows = part.split.users.rows(users)
    order = np.argsort(part.users, kind="stable")
    at = np.minimum(np.searchsorted(part.users[order], rows), len(order) - 1)
    found = np.where((rows >= part.split.users.first) & (part.users[order[at]] == rows), order[at], -1)
    if len(found) and found.max() < 0:
        raise DataError(
            f"none of the {len(found):,} users of {what}, such as {users[:_SHOWN]}, is among the {len(part):,} of "
            f"{part.name!r}"
        )
    return found
