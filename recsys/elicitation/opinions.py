"""What users have said about items: known or not, liked or not.

A rated item is known, one without a rating is not; for films that were seen and not rated that is false, and so real
people answer more questions than these data say.

Legend: U users, N items (columns 0..N-1, item row less one), n opinions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from recsys.errors import DataError
from recsys.ids.ranges import spread
from recsys.ids.vocabulary import Vocabulary

if TYPE_CHECKING:
    from recsys.data.split import Split

UNASKED, UNKNOWN, LIKE, DISLIKE = -1, 0, 1, 2  # what an item of the pool may be to a user


@dataclass(frozen=True)
class Opinions:
    """One opinion per user and item, users in order, each user's oldest first."""

    owner: np.ndarray  # (n,) int64 user rows
    items: np.ndarray  # (n,) int64 columns
    liked: np.ndarray  # (n,) bool
    num_users: int
    vocabulary: Vocabulary = field(repr=False)
    ratings: np.ndarray | None = None  # (n,) float32, where the data have any
    data_hash: str = ""

    @classmethod
    def of(cls, split: Split, rating: str | None = None, liked: float = 4.0, part: str = "train") -> Opinions:
        """The opinions in a split; of an item that a user had several times the newest one.

        Args:
            rating: the column of events with the ratings, kept by ``Dataset.scan(event_columns={NAME: "number"})``.
                None: every event is a like, and nobody dislikes anything.
            liked: a rating from which on an item is liked.
            part: "train", or "all" for every event of every user.

        Raises:
            DataError: there is no such column, it has no numbers, or there is no event.
        """
        prepared = split.prepared
        starts, stops = prepared.offsets[:-1], split.train_stop if part == "train" else prepared.offsets[1:]
        owner, index = spread(starts, stops)
        if not len(index):
            raise DataError("there are no events to learn opinions from: pass a split with training events")
        items = np.asarray(prepared.items[index], np.int64) - 1
        values = None if rating is None else _values(split, rating, index)
        key = owner * prepared.num_items + items
        last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
        kept = np.sort(last)  # a user's events stay in their order, and users too
        told = np.ones(len(kept), bool) if values is None else values[kept] >= liked
        rated = None if values is None else values[kept]
        return cls(owner[kept], items[kept], told, prepared.num_users, split.items, rated, split.data_hash)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.vocabulary)

    def of_users(self, users: np.ndarray) -> Opinions:
        """The opinions of some user rows, under the numbers 0, 1, ... in the order of ``users``, which is ascending."""
        place = np.full(self.num_users, -1)
        place[users] = np.arange(len(users))
        return self._where(place[self.owner] >= 0, owner=place, num_users=len(users))

    def where(self, chosen: np.ndarray) -> Opinions:
        """The ``chosen`` (n,) of them."""
        return self._where(chosen)

    def over(self, vocabulary: Vocabulary) -> Opinions:
        """The same about the items of another catalogue; of items that it does not hold there are none.

        Raises:
            DataError: no item is in it.
        """
        if vocabulary.digest == self.vocabulary.digest:
            return replace(self, vocabulary=vocabulary)
        rows = vocabulary.rows(self.vocabulary.ids)[self.items]
        if not (rows > 0).any():
            raise DataError("the model knows none of the items of these data: pass the split that it was trained on")
        return replace(self, items=rows - 1, vocabulary=vocabulary)._where(rows > 0)

    @cached_property
    def likes(self) -> Any:
        """(U, N) CSR float32 of ones."""
        return self._matrix(self.liked)

    @cached_property
    def dislikes(self) -> Any:
        """(U, N) CSR float32 of ones."""
        return self._matrix(~self.liked)

    @cached_property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) likes and (N,) dislikes of each item, float64."""
        size = self.num_items
        return (
            np.bincount(self.items[self.liked], minlength=size).astype(float),
            np.bincount(self.items[~self.liked], minlength=size).astype(float),
        )

    def answers(self, pool: np.ndarray) -> np.ndarray:
        """(U, Q) int8: what each user would answer about each column of ``pool`` (Q,)."""
        place = np.full(self.num_items, -1)
        place[pool] = np.arange(len(pool))
        inside = place[self.items] >= 0
        found = np.full((self.num_users, len(pool)), UNKNOWN, np.int8)
        found[self.owner[inside], place[self.items[inside]]] = np.where(self.liked[inside], LIKE, DISLIKE)
        return found

    def _matrix(self, chosen: np.ndarray) -> Any:
        ones = np.ones(int(chosen.sum()), np.float32)
        return sparse.csr_matrix((ones, (self.owner[chosen], self.items[chosen])), (self.num_users, self.num_items))

    def _where(self, chosen: np.ndarray, owner: np.ndarray | None = None, num_users: int | None = None) -> Opinions:
        own = self.owner[chosen]
        return replace(
            self,
            owner=own if owner is None else owner[own],
            items=self.items[chosen],
            liked=self.liked[chosen],
            ratings=None if self.ratings is None else self.ratings[chosen],
            num_users=self.num_users if num_users is None else num_users,
        )


def _values(split: Split, rating: str, index: np.ndarray) -> np.ndarray:
    features = split.prepared.features
    if features is None or rating not in features.kinds:
        raise DataError(
            f"these data keep no column {rating!r} of events: scan them with event_columns={{{rating!r}: 'number'}}"
        )
    if features.kinds[rating] != "number":
        raise DataError(f"the column {rating!r} is of the kind {features.kinds[rating]}, and ratings are numbers")
    values = np.asarray(features[rating].take(index).values, np.float32)
    if not np.isfinite(values).all():
        missing = int((~np.isfinite(values)).sum())
        raise DataError(
            f"{missing:,} of {len(values):,} events have no {rating!r}: clean the data, or leave rating out"
        )
    return values
