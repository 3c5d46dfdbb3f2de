"""Ranks in the lists of a model that only recommends: exact to the length K of the lists, unknown behind it.

The model is asked by raw ids, as it is served: with whole histories, ``exclude``, and ``allow`` and ``deny`` where
there are candidates or denied items. What it answers is checked: no item twice, none that may not be shown, none that
the held-out part does not know. Equal scores count in the order of the list.

Legend: n users of the part, b users of a batch, N items (rows 1..N), K list length, E listed items of a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from recsys.errors import DataError
from recsys.eval.candidates import Candidates, Columns, ListedColumns, Lists
from recsys.eval.ranks import Asked, Landed
from recsys.eval.scoring import REMEDY
from recsys.ids.ranges import padded_blocks
from recsys.ids.vocabulary import Vocabulary
from recsys.recommenders.history import histories_of
from recsys.recommenders.top import TopK

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.eval.listed import Listed

USERS = 4096  # of one request, at most
TOKEN_BYTES = 128  # of one raw id in a history, a rough guess
SHOWN = 3  # ids in an error


class Lister:
    """A model that recommends, matched with a held-out part by the raw ids of items.

    Raises:
        TypeError: ``model`` does not recommend, or not with ``exclude``.
        ValueError: the part has no raw ids.
        DataError: the model has a vocabulary that lacks items of the part.
    """

    def __init__(self, model: Any, part: HeldOut) -> None:
        if part.split is None:
            raise ValueError(
                f"{type(model).__name__} only gives lists of raw ids, and the part {part.name!r} has none: evaluate "
                "on split.test or split.valid of a split, or give the model a score_safely(batch)"
            )
        self.model, self.num_items = model, part.num_items
        self.part: HeldOut = part
        self.rows: np.ndarray | None = None  # lists come in raw ids, so there are no rows of the model to translate
        self.device = torch.device("cpu")
        self.items: Vocabulary = part.split.items
        require_known(getattr(model, "vocabulary", None), self.items)
        self.require("exclude")
        self._known: tuple[Vocabulary, np.ndarray] | None = None

    def require(self, *names: str) -> None:
        """Raise TypeError unless ``recommend`` takes these arguments."""
        parameters = inspect.signature(self.model.recommend).parameters
        lacks = [name for name in ("k", *names) if name not in parameters]
        if lacks and all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            raise TypeError(
                f"evaluation asks {type(self.model).__name__}.recommend(histories, k=, exclude=) and, for candidates "
                f"and denied items, allow= and deny=; it lacks {', '.join(lacks)}: add them, see "
                "recsys.recommenders.base.Recommends"
            )

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """(n,) the lengths of the histories of the users at ``index`` (n,)."""
        lengths: np.ndarray = self.part.history_lengths[index]
        return lengths

    def ask(self, index: np.ndarray, k: int, exclude: str, **lists: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """(b, K) item rows of the part, best first and 0 behind the end, and their scores (b, K), if there are any.

        Args:
            lists: ``allow`` and ``deny`` in raw ids, for all or for each user.

        Raises:
            TypeError, ValueError: the answer is not one list of at most ``k`` items for each user.
            DataError: an id that the part does not know.
        """
        found = self.model.recommend(histories_of(self.part, index), k=k, exclude=exclude, **lists)
        rows, scores = self._of_top(found, index) if isinstance(found, TopK) else (self._of_lists(found, index), None)
        if rows.shape[1] > k and rows[:, k:].any():
            at = int(np.flatnonzero(rows[:, k:].any(1))[0])
            self._refuse(f"{np.count_nonzero(rows[at])} items where at most k={k} are wanted", index[at])
        filled = np.zeros((len(index), k), np.int64)
        filled[:, : rows.shape[1]] = rows[:, :k]
        return filled, None if scores is None else scores[:, :k]

    def _of_top(self, top: TopK, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (b, K') and scores (b, K'), without gaps."""
        rows, scores = np.asarray(top.rows), np.asarray(top.scores)
        self._count(len(rows), len(index))
        last = len(top.vocabulary)
        if rows.ndim != 2 or scores.shape != rows.shape or rows.min(initial=0) < 0 or rows.max(initial=0) > last:
            raise ValueError(
                f"{self._name} must give rows and scores of one shape (B, K), rows from 0 (none) to {last:,}; found "
                f"{rows.shape} and {scores.shape}, rows {rows.min(initial=0)}..{rows.max(initial=0)}"
            )
        order = np.argsort(rows == 0, axis=1, kind="stable")  # gaps to the end
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        known = self._rows_of(top.vocabulary)
        if known is not None:
            found = known[rows]
            self._refuse_unknown(found < 0, lambda wrong: top.vocabulary.raw(rows[wrong]).tolist(), index)
            rows = found
        return rows, scores

    def _of_lists(self, lists: Any, index: np.ndarray) -> np.ndarray:
        """Rows (b, K') of one list of raw ids per user."""
        if isinstance(lists, (str, bytes, dict)) or not hasattr(lists, "__iter__"):
            raise TypeError(
                f"{self._name} must give a TopK, or one list of raw ids per history; found {type(lists).__name__}"
            )
        lists = [one.tolist() if isinstance(one, np.ndarray) else one for one in lists]
        self._count(len(lists), len(index))
        odd = [one for one in lists if isinstance(one, (str, bytes)) or not hasattr(one, "__len__")]
        if odd:
            raise TypeError(f"{self._name} must give one list of raw ids per history; found {odd[0]!r} in one's place")
        lengths = np.array([len(one) for one in lists], np.int64)
        raw = list(chain.from_iterable(lists))
        inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
        rows = np.zeros(inside.shape, np.int64)
        rows[inside] = self.items.rows(raw) if raw else 0
        wrong = inside & (rows < 1)
        self._refuse_unknown(wrong, lambda wrong: [raw[at] for at in np.flatnonzero(wrong[inside])], index)
        return rows

    def _rows_of(self, vocabulary: Vocabulary) -> np.ndarray | None:
        """(N'+1,) rows of the part for those of ``vocabulary``, -1 for unknown ones; None where they are the same."""
        if self._known is None or self._known[0] is not vocabulary:
            same = vocabulary is self.items or vocabulary.digest == self.items.digest
            rows = np.zeros(0, np.int64) if same else np.append(0, self.items.rows(vocabulary.ids))
            self._known = vocabulary, rows
        return self._known[1] if len(self._known[1]) else None

    def _count(self, found: int, expected: int) -> None:
        if found != expected:
            raise ValueError(f"{self._name} must give one list per history: {expected:,} expected, {found:,} found")

    def _refuse_unknown(self, wrong: np.ndarray, ids: Any, index: np.ndarray) -> None:
        if wrong.any():
            at = int(np.flatnonzero(wrong.any(1))[0])
            raise DataError(
                f"{self._name} gave {int(wrong.sum()):,} items that the held-out part does not know, such as "
                f"{ids(wrong)[:SHOWN]} for user {self.user(index[at])!r}: evaluate on a split of the data it was "
                "trained on (ids are ints or strings, as in the data), or fit it on this one"
            )

    def _refuse(self, what: str, at: int) -> NoReturn:
        raise ValueError(f"{self._name} gave user {self.user(at)!r} {what}: mend its recommend")

    def user(self, at: int) -> Any:
        """The raw id of the user at a position of the part."""
        assert self.part.split is not None
        return self.part.split.users.raw(self.part.users[[at]]).tolist()[0]

    @property
    def _name(self) -> str:
        return f"{type(self.model).__name__}.recommend"

    def check(self, lists: Listing, hidden: np.ndarray, columns: Columns, denied: np.ndarray | None) -> None:
        """Raise ValueError where a list holds an item twice, or one that may not be shown, or its scores make no sense.

        ``hidden`` are sorted keys user * (N + 1) + item, ``denied`` (N+1,) bool.
        """
        keys = lists.sorted_keys
        self._refuse_items(lists, keys[1:][keys[1:] == keys[:-1]], "twice")
        if len(hidden):
            at = np.minimum(np.searchsorted(hidden, keys), len(hidden) - 1)
            self._refuse_items(lists, keys[hidden[at] == keys], "although it is in the history, or denied")
        user, item = np.divmod(keys, lists.width)
        self._refuse_items(lists, keys[columns.column_of(user, item) == 0], "although it is not a candidate (allow=)")
        if denied is not None:
            self._refuse_items(lists, keys[denied[item]], "although it is denied (deny=)")
        if lists.scores is None:
            return
        inside = lists.rows[:, : lists.scores.shape[1]] > 0
        wrong = inside & ~np.isfinite(lists.scores)
        falls = lists.scores[:, 1:] <= lists.scores[:, :-1]
        for found, what in ((wrong, "a score that is NaN or infinite"), (inside[:, 1:] & ~falls, "scores that rise")):
            if found.any():
                row = int(np.flatnonzero(found.any(1))[0])
                shown = lists.scores[row, inside[row]][: max(SHOWN, int(np.flatnonzero(found[row])[0]) + 2)].tolist()
                self._refuse(f"{what} within its list ({', '.join(f'{one:.6g}' for one in shown)})", lists.index[row])

    def _refuse_items(self, lists: Listing, wrong: np.ndarray, what: str) -> None:
        if len(wrong):
            user, item = divmod(int(wrong[0]), lists.width)
            self._refuse(f"the item {self.items.raw(np.array([item])).tolist()[0]!r} {what}", lists.index[user])


def require_known(known: Any, items: Vocabulary) -> None:
    """Raise DataError unless ``known``, the vocabulary of a model if it has one, holds all ``items`` of a part.

    It may hold more: items that came after training.
    """
    if not isinstance(known, Vocabulary) or known is items or known.digest == items.digest:
        return
    lacks = items.ids[known.rows(items.ids) < known.first] if known.kind == items.kind else items.ids
    if len(lacks):
        raise DataError(
            f"the held-out part has {len(items):,} items, and the model does not know {len(lacks):,} of them, such as "
            f"{lacks[:SHOWN].tolist()} (it knows {len(known):,}, such as {known.ids[:SHOWN].tolist()}): {REMEDY}"
        )


@dataclass(frozen=True)
class Listing:
    """The lists of a batch of users, in item rows of the part."""

    index: np.ndarray  # (b,) positions of the users in the part
    rows: np.ndarray  # (b, K), 0 behind the end
    scores: np.ndarray | None  # (b, K') float32
    width: int  # N + 1

    @cached_property
    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        user, at = self.rows.nonzero()
        keys = user * self.width + self.rows[user, at]
        order = np.argsort(keys)
        return keys[order], at[order]

    @property
    def sorted_keys(self) -> np.ndarray:
        """(E,) user * (N + 1) + item, ascending."""
        return self._keys[0]

    def find(self, owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        """(P,) positions, from 0, of items in the lists of their users; -1 for what is not listed."""
        keys, positions = self._keys
        if not len(keys):
            return np.full(len(owner), -1, np.int64)
        wanted = owner * self.width + item
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, positions[at], -1)

    def tied(self, owner: np.ndarray, at: np.ndarray) -> np.ndarray:
        """(P,) bool: whether what stands at position ``at`` has the score of a neighbour in the list."""
        if self.scores is None:
            return np.zeros(len(owner), bool)
        padded = np.pad(self.scores, 1, constant_values=np.nan)[1:-1]
        own, before, behind = (padded[owner, np.maximum(at, 0) + shift] for shift in (1, 0, 2))
        return (at >= 0) & ((own == before) | (own == behind))


@dataclass(frozen=True)
class ListRanking:
    """Targets looked for in the lists of a model; K, the largest cut-off, is ``depth``."""

    scorer: Lister
    candidates: Candidates | Lists
    memory: int  # bytes
    depth: int
    exclude: str
    denied: Listed | None

    def __post_init__(self) -> None:
        allow = isinstance(self.candidates, Lists) or bool(self.candidates.what)
        deny = self.denied is not None or self.candidates.denied is not None or self.exclude == "history-except-targets"
        self.scorer.require("exclude", *["allow"] * allow, *["deny"] * deny)

    def batches(self, lengths: np.ndarray) -> Iterator[slice]:
        """Consecutive users whose histories have ``lengths`` (n,) items, a batch at a time."""
        for block in padded_blocks(lengths, self.memory, TOKEN_BYTES * self.depth, TOKEN_BYTES):
            for first in range(block.start, min(block.stop, len(lengths)), USERS):
                yield slice(first, min(first + USERS, block.stop, len(lengths)))

    def mode(self) -> AbstractContextManager[object]:
        """The mode that the model answers in."""
        return torch.no_grad()

    def rank(self, asked: Asked) -> Landed:
        """Where the targets of a batch landed in the lists.

        Raises:
            TypeError, ValueError, DataError: the model's lists do not fit the arguments.
        """
        width, users = self.scorer.num_items + 1, len(asked.index)
        columns = self.candidates.columns(asked.index, asked.owner, asked.target)
        exclude = "history" if self.exclude == "history" else "none"
        rows, scores = self.scorer.ask(asked.index, self.depth, exclude, **self._given(asked, columns))
        lists = Listing(asked.index, rows, scores, width)
        user, item = asked.hidden or (np.zeros(0, np.int64), np.zeros(0, np.int64))
        hidden = user * width + item
        self.scorer.check(lists, hidden, columns, self.candidates.denied)
        at = lists.find(asked.owner, asked.target)
        never = np.isin(asked.owner * width + asked.target, hidden)
        lost = columns.column_of(user, item) > 0
        if self.candidates.denied is not None:
            never |= self.candidates.denied[asked.target]
            lost &= ~self.candidates.denied[item]
        candidates = columns.sizes(users) - np.bincount(user[lost], minlength=users)
        return Landed(
            above=np.maximum(at, 0),
            size=np.ones(len(at), np.int64),
            reached=at >= 0,
            candidates=candidates,
            lists=rows.astype(np.int32),
            unlisted=(at < 0) & ~never,
            tied=lists.tied(asked.owner, at),
        )

    def _given(self, asked: Asked, columns: Columns) -> dict[str, Any]:
        """``allow`` and ``deny`` of a batch, in raw ids; only what there is."""
        found: dict[str, Any] = {}
        if isinstance(columns, ListedColumns):
            found["allow"] = self._lists(*columns.pairs(), len(asked.index))
        elif isinstance(self.candidates, Candidates) and self.candidates.what:
            found["allow"] = self._shared[0]
        pairs = None if self.denied is None else self.denied.pairs(asked.index)
        if self.exclude == "history-except-targets":  # which recommend does not know, so the rest of it is denied
            pairs = asked.hidden
        everyone = self._shared[1]
        if pairs is not None:
            found["deny"] = [[*own, *everyone] for own in self._lists(*pairs, len(asked.index))]
        elif everyone:
            found["deny"] = everyone
        return found

    def _lists(self, owner: np.ndarray, item: np.ndarray, users: int) -> list[list[Any]]:
        """The raw ids of (user position, item row) pairs, sorted by position, as a list per user."""
        ends = np.cumsum(np.bincount(owner, minlength=users))[:-1]
        return [one.tolist() for one in np.split(self.scorer.items.raw(item), ends)]

    @cached_property
    def _shared(self) -> tuple[list[Any], list[Any]]:
        """What all users may be shown, and what none may, in raw ids; empty where nothing says so."""
        items, candidates = self.scorer.items, self.candidates
        allow = items.raw(candidates.rows).tolist() if isinstance(candidates, Candidates) and candidates.what else []
        return allow, [] if candidates.denied is None else items.raw(np.flatnonzero(candidates.denied)).tolist()
