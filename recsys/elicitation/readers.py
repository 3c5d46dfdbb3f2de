"""What answers are worth to a model: scores of the catalogue for what somebody said. It decides more than who asks.

* ``history``: likes become the history, in the order they were given. One or two of them are worse than none for some
  models.
* ``blend``: model score + weight x the share of training users who like the item.
* ``groups``: the probability of a like under the taste groups of the answers, dislikes and "unknown" included.

Dislikes never become part of a history: their vectors with a negative sign made lists worse on ml-1m and on Jester.
Without a like yet, ``history`` and ``blend`` rank by the number of likes in training.

Legend: B conversations, N items (columns 0..N-1), Q items of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recsys.elicitation.groups import Groups
from recsys.elicitation.opinions import LIKE
from recsys.recommenders.base import Scores
from recsys.recommenders.history import History


class Reader(Protocol):
    """Scores of all items."""

    def scores(self, likes: Sequence[np.ndarray], answers: np.ndarray) -> np.ndarray:
        """(B, N) for the columns that each liked, first one first, and the ``answers`` (B, Q) about the pool."""
        ...


class Blended:
    """A model's scores for the likes as a history, and what most people like.

    Args:
        model: fitted; it scores all items, and reads neither times nor features.
        share: (N,) share of training users who like each item.
        weight: of the share, in the unit of the model's scores; 0: the model alone.

    Raises:
        ValueError: the model does not score, or reads what nobody is asked; or the weight is negative.
    """

    def __init__(self, model: Any, share: np.ndarray, weight: float = 0.0) -> None:
        if not isinstance(model, Scores):
            raise ValueError(
                f"{type(model).__name__} only makes lists, and answers are read by scores: take a model that scores "
                'all items, or reader="groups"'
            )
        if model.needs - {"weights"}:
            raise ValueError(
                f"this model reads {', '.join(sorted(model.needs))}, and answers have none: take a model that reads "
                'item ids alone, or reader="groups"'
            )
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"expected a weight of at least 0, found {weight}")
        self.model: Any = model
        self.share, self.weight = np.asarray(share, np.float32), float(weight)

    def scores(self, likes: Sequence[np.ndarray], answers: np.ndarray) -> np.ndarray:
        """(B, N) float32."""
        share = np.pad(self.share, (0, self.model.num_items - len(self.share)))  # nobody likes items that came later
        found = np.repeat(share[None], len(likes), 0)
        some = [at for at, one in enumerate(likes) if len(one)]
        if some:
            raw = self.model.vocabulary.raw
            read = self.model.scores([History(raw(likes[at] + 1).tolist()) for at in some])
            found[some] = read + np.float32(self.weight) * share
        return found


class Grouped:
    """What the groups of the answers like.

    Args:
        groups: over all items.
        pool: (Q,) columns.
    """

    def __init__(self, groups: Groups, pool: np.ndarray) -> None:
        self.groups, self.asked = groups, groups.of(pool)

    def scores(self, likes: Sequence[np.ndarray], answers: np.ndarray) -> np.ndarray:
        """(B, N) probability of a like."""
        return np.asarray(self.asked.posterior(answers) @ self.groups.tables[LIKE])
