"""Which items are ranked: all of them, those that training never saw, a list, or a list for each user.

The candidates of a batch of users are columns, in the order of the model's rows: equal scores then come in the order in
which the model recommends them. Columns are counted from 1, and 0 is none.

Legend: n users of the part, b users of a batch, N items (rows 1..N), C candidates, P (user, item) pairs.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.errors import DataError, DataWarning
from recsys.eval.listed import Listed, is_per_user
from recsys.ranking.filters import all_or_each

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.eval.scoring import Matched
    from recsys.ids.vocabulary import Vocabulary


class Columns(Protocol):
    """The candidates of a batch of users as columns of a chunk of scores."""

    def column_of(self, owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        """(P,) columns, counted from 1, of (position in the batch, item row), 0 for what is no candidate."""
        ...

    def take(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, C) scores of the candidates out of (b, N), and where there is nothing to show: (C,) or (b, C) bool."""
        ...

    def items(self, columns: np.ndarray) -> np.ndarray:
        """(b, K) item rows at ``columns`` (b, K), 0 for 0."""
        ...

    def sizes(self, users: int) -> np.ndarray:
        """(b,) how many candidates may be shown to each of the ``users`` of the batch."""
        ...


@dataclass(frozen=True)
class Candidates:
    """Candidates that all users share."""

    rows: np.ndarray  # (C,) int64 item rows of the part, ascending
    scorer: Matched
    what: str = ""  # "" for all items
    denied: np.ndarray | None = None  # (N+1,) bool: items that are never shown
    outside: int = 0  # targets of the part that are no candidates

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def universe(self) -> np.ndarray:
        """Item rows that can stand in a list, ascending."""
        return self.rows if self.denied is None else self.rows[~self.denied[self.rows]]

    @property
    def longest(self) -> int:
        """The most items that a list can hold."""
        return len(self.universe)

    def keeps(self, index: np.ndarray, owner: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(P,) bool: which targets are ranked."""
        return self._columns[target] > 0

    def columns(self, index: np.ndarray, owner: np.ndarray, target: np.ndarray) -> Columns:
        """The candidates of the users at ``index``, who have the ``target`` (P,) items of ``owner`` (P,)."""
        return self

    def column_of(self, owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        """(P,) columns, counted from 1, of item rows, 0 for what is no candidate."""
        found: np.ndarray = self._columns[item]
        return found

    def take(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, C) scores of the candidates out of (b, N), and (C,) bool: which are never shown."""
        columns, never = self._tensors
        return scores if columns is None else scores[:, columns], never

    def items(self, columns: np.ndarray) -> np.ndarray:
        """Item rows at ``columns``, 0 for 0, in their shape and type."""
        if self.what == "" and self.scorer.rows is None:
            return columns
        found: np.ndarray = np.append(0, self._ordered).astype(columns.dtype)[columns]
        return found

    def sizes(self, users: int) -> np.ndarray:
        """(b,) how many candidates may be shown to each of the ``users`` of the batch."""
        return np.full(users, len(self.universe))

    def protocol(self) -> dict[str, Any]:
        """What a protocol says about them, with the hit rate that a random order has for one target."""
        found = _deny_protocol(self.denied)
        if self.what:
            count = f"{len(self):,} of {self.scorer.num_items:,} items, {self.what}"
            found |= {"candidates": count, "chance": f"hr@k = k/{len(self.universe)}"}
        return found

    def facts(self) -> dict[str, Any]:
        """What a report keeps of them."""
        found: dict[str, Any] = {"num_candidates": len(self), "targets_outside": self.outside} if self.what else {}
        if self.what == "given" or self.denied is not None:
            found["ranked"] = _digest(self.rows if self.what == "given" else None, self.denied)
        return found

    @cached_property
    def _ordered(self) -> np.ndarray:
        """(C,) the item rows of the part in the order of the model's."""
        rows = self.scorer.rows
        return self.rows if rows is None else self.rows[np.argsort(rows[self.rows])]

    @cached_property
    def _columns(self) -> np.ndarray:
        """(N+1,) int64: item row -> 1 + its column among the candidates, 0 for the others."""
        columns = np.zeros(self.scorer.num_items + 1, dtype=np.int64)
        columns[self._ordered] = np.arange(1, len(self.rows) + 1)
        return columns

    @cached_property
    def _tensors(self) -> tuple[Tensor | None, Tensor | None]:
        device, rows = self.scorer.device, self.scorer.rows
        model_rows = self._ordered if rows is None else rows[self._ordered]
        columns = torch.from_numpy(model_rows - 1).to(device) if self.what else None
        never = None if self.denied is None else torch.from_numpy(self.denied[self._ordered]).to(device)
        return columns, never


@dataclass(frozen=True)
class Lists:
    """Candidates of each user: what is listed for them, and their targets."""

    listed: Listed
    scorer: Matched
    denied: np.ndarray | None
    universe: np.ndarray  # item rows that can stand in a list, ascending
    longest: int  # the most items that a list can hold
    added: int  # targets that were not listed
    outside: int = field(default=0, init=False)

    @classmethod
    def of(cls, listed: Listed, scorer: Matched, denied: np.ndarray | None, part: HeldOut, asked: np.ndarray) -> Lists:
        """For the users at ``asked`` of the part.

        Raises:
            DataError: no user has candidates.
        """
        width = scorer.num_items + 1
        asked = asked[listed.lengths[asked] > 0]
        if not len(asked):
            raise DataError("candidates lists no item for any user of the part: pass raw ids of items")
        owner, item = listed.pairs(asked)
        targets = part.targets(asked)
        both = np.union1d(owner * width + item, targets[0] * width + targets[1])
        universe = np.zeros(width, bool)
        universe[both % width] = True
        if denied is not None:
            universe &= ~denied
        longest = int(np.bincount(both // width, minlength=1).max())
        return cls(listed, scorer, denied, np.flatnonzero(universe), longest, len(both) - len(item))

    def __len__(self) -> int:
        return self.scorer.num_items

    def keeps(self, index: np.ndarray, owner: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(P,) bool: which targets are ranked: those of users who have candidates."""
        found: np.ndarray = self.listed.lengths[index][owner] > 0
        return found

    def columns(self, index: np.ndarray, owner: np.ndarray, target: np.ndarray) -> Columns:
        """The candidates of the users at ``index``, who have the ``target`` (P,) items of ``owner`` (P,)."""
        users, items = self.listed.pairs(index)
        rows, width = self.scorer.rows, self.scorer.num_items + 1
        user, item = np.concatenate([users, owner]), np.concatenate([items, target])
        keys = np.unique(user * width + (item if rows is None else rows[item]))
        return ListedColumns(keys, len(index), self)

    def protocol(self) -> dict[str, Any]:
        """What a protocol says about them."""
        lengths = self.listed.lengths
        mean = lengths[lengths > 0].mean()
        return {"candidates": f"a list per user, {mean:,.1f} items each, and the targets"} | _deny_protocol(self.denied)

    def facts(self) -> dict[str, Any]:
        """What a report keeps of them."""
        return {
            "targets_added": self.added,
            "unknown_candidates": self.listed.unknown,
            "ranked": self.listed.digest + _digest(None, self.denied),
        }

    @cached_property
    def part_rows(self) -> np.ndarray | None:
        """(N+1,) the part's row of each row of the model; None if they are the same."""
        rows = self.scorer.rows
        return None if rows is None else np.argsort(rows)


class ListedColumns:
    """The candidates of a batch of users, as ragged rows that are padded to the longest."""

    def __init__(self, keys: np.ndarray, users: int, lists: Lists) -> None:
        self.keys, self.lists = keys, lists  # (P,) ascending: position in the batch * (N + 1) + row of the model
        self.width = lists.scorer.num_items + 1
        owner, row = np.divmod(keys, self.width)
        self.at = np.arange(len(keys)) - np.searchsorted(owner, owner)  # column of each
        self.rows = np.zeros((users, int(self.at.max(initial=-1)) + 1), np.int64)  # of the model, 0 behind the end
        self.rows[owner, self.at] = row

    def column_of(self, owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        """(P,) columns, counted from 1, of (position in the batch, item row), 0 for what is no candidate."""
        rows = self.lists.scorer.rows
        wanted = owner * self.width + (item if rows is None else rows[item])
        found = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[found] == wanted, self.at[found] + 1, 0)

    def take(self, scores: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, C) scores of the candidates out of (b, N), and (b, C) bool: where there is nothing to show."""
        never = self.rows == 0
        if self.lists.denied is not None:
            never |= self.lists.denied[self._of_the_part(self.rows)]
        columns = torch.from_numpy(np.maximum(self.rows - 1, 0)).to(scores.device)
        return scores.gather(1, columns), torch.from_numpy(never).to(scores.device)

    def items(self, columns: np.ndarray) -> np.ndarray:
        """(b, K) item rows at ``columns`` (b, K), 0 for 0."""
        padded = np.pad(self.rows, ((0, 0), (1, 0)))
        return self._of_the_part(np.take_along_axis(padded, columns.astype(np.int64), axis=1)).astype(columns.dtype)

    def sizes(self, users: int) -> np.ndarray:
        """(b,) how many candidates may be shown to each of the ``users`` of the batch."""
        shown = self.rows > 0
        if self.lists.denied is not None:
            shown &= ~self.lists.denied[self._of_the_part(self.rows)]
        return shown.sum(1)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All candidates: (position in the batch, row of the model), sorted by both."""
        return np.divmod(self.keys, self.width)

    def _of_the_part(self, rows: np.ndarray) -> np.ndarray:
        back = self.lists.part_rows
        return rows if back is None else back[rows]


def choose_candidates(
    candidates: Any, denied: np.ndarray | None, scorer: Matched, asked: np.ndarray
) -> Candidates | Lists:
    """The items to rank, of what :func:`recsys.eval.evaluate.evaluate` was given, for the users at ``asked``.

    Raises:
        ValueError: neither a known word, nor ids, nor a mask of the right shape.
        DataError: there is no candidate, an id is unknown, or no target of the part is among them.
    """
    part: Any = scorer.part
    num_items = scorer.num_items
    candidates = list(candidates) if isinstance(candidates, Iterator) else candidates
    if isinstance(candidates, str) and candidates == "all":
        return Candidates(np.arange(1, num_items + 1), scorer, "", denied)
    if isinstance(candidates, str):
        if candidates != "cold":
            raise ValueError(
                f"candidates is 'all', 'cold', raw item ids, a list of them per user, or a mask by item row; found "
                f"{candidates!r}"
            )
        rows, what = np.flatnonzero(np.asarray(part.item_counts)[1:] == 0) + 1, "unseen in training"
        if not len(rows):
            raise DataError("training saw every item, so none is cold: split with recsys.data.cold.cold_items")
    elif is_per_user(candidates):
        listed = Listed.read(candidates, part, vocabulary_of(scorer, "candidates"), "candidates")
        if listed.unknown:
            message = f"{listed.unknown:,} listed candidates are not in the catalogue"
            if not len(listed.rows):
                raise DataError(f"{message}, and no other is listed: pass raw ids of items as they stand in the data")
            warnings.warn(message, DataWarning, stacklevel=3)
        return Lists.of(listed, scorer, denied, part, asked)
    else:
        rows, what = _rows(candidates, scorer), "given"
    _, target = part.targets(asked)
    outside = int(np.count_nonzero(~np.isin(target, rows)))
    if outside == len(target):
        raise DataError(
            f"none of the {outside:,} targets of {part.name!r} is among the {len(rows):,} candidates: rank among all "
            "items, or hold out events with these"
        )
    return Candidates(rows, scorer, what, denied, outside)


def choose_denied(deny: Any, scorer: Matched) -> tuple[np.ndarray | None, Listed | None]:
    """What is never shown: to anybody as a mask (N+1,), or to each user; None for what was not given."""
    if deny is None:
        return None, None
    items = vocabulary_of(scorer, "deny")
    by_name = isinstance(deny, Mapping) or hasattr(deny, "columns")
    everyone, each = (None, deny) if by_name else all_or_each(deny, "deny", len(scorer.part))
    if everyone is None:
        lists = each if by_name else [() if one is None else one for one in each or ()]
        listed = Listed.read(lists, scorer.part, items, "deny")
        unknown, count = listed.unknown, listed.unknown + len(listed.rows)
    else:
        rows = items.rows(everyone) if everyone else np.zeros(0, np.int64)
        denied = np.zeros(scorer.num_items + 1, bool)
        denied[rows[rows > 0]] = True
        listed, unknown, count = None, int(np.count_nonzero(rows < 1)), len(rows)
    if unknown:
        warnings.warn(f"{unknown:,} of {count:,} denied items are not in the catalogue", DataWarning, stacklevel=3)
    return (denied if listed is None and denied.any() else None), listed


def vocabulary_of(scorer: Matched, what: str) -> Vocabulary:
    """The raw ids behind the item rows of the part.

    Raises:
        ValueError: neither part nor model knows any.
    """
    split = getattr(scorer.part, "split", None)
    found: Vocabulary | None = getattr(scorer.model, "vocabulary", None) if split is None else split.items
    if found is None:
        raise ValueError(
            f"{type(scorer.model).__name__} knows no raw ids, which {what} is given in: fit it on a split, or pass "
            "candidates as a mask (N+1,) bool by item row"
        )
    return found


def _rows(candidates: Sequence[Any] | np.ndarray, scorer: Matched) -> np.ndarray:
    """(C,) distinct item rows of the part, ascending, of a mask or of raw ids."""
    num_items = scorer.num_items
    if isinstance(candidates, np.ndarray) and candidates.dtype == bool:
        if candidates.shape != (num_items + 1,):
            raise ValueError(
                f"a mask of candidates has one entry per row, ({num_items + 1},); found {candidates.shape}"
            )
        rows = np.flatnonzero(candidates[1:]) + 1
    else:
        found = vocabulary_of(scorer, "candidates").rows(candidates)
        if (found < 1).any():
            unknown = [one for one, row in zip(candidates, found.tolist(), strict=True) if row < 1]
            raise DataError(
                f"{len(unknown):,} of {len(found):,} candidates are not in the catalogue, such as {unknown[:3]}"
            )
        rows = np.unique(found)
    if not len(rows):
        raise DataError("candidates names no item: pass raw ids of items, a mask with some of them, or 'all'")
    return rows


def _deny_protocol(denied: np.ndarray | None) -> dict[str, Any]:
    return {} if denied is None else {"denied": f"{int(denied.sum()):,} items"}


def _digest(rows: np.ndarray | None, denied: np.ndarray | None) -> str:
    """A hash of what all users share, for telling reports on other candidates apart."""
    found = hashlib.blake2b(digest_size=8)
    for array in (rows, denied):
        found.update(b"-" if array is None else np.ascontiguousarray(array).data)
    return found.hexdigest()
