"""Who chooses the next question: fixed lists, and a draw. What the answers were does not matter to them.

An asker is built from the opinions of training users about the items of a pool and answers :meth:`Asker.gains`: a
number for each item of the pool, of which the largest that was not asked yet is the next question, equal ones in the
order of the pool. It keeps no state of a conversation, so calls can be repeated and spread over machines.

With n users who know an item, l who like it, d who dislike it, of U: H2 is the entropy of (l, d) / n, H3 that of
(l, d, U - n) / U, in nats (Rashid et al. 2002, Getting to know you; 2008, Learning preferences of new users).

Legend: Q items of the pool, B conversations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.special import xlogy

from recsys.elicitation.opinions import Opinions
from recsys.errors import DataError
from recsys.randomness import numpy_generator


class Asker(Protocol):
    """What may be asked next."""

    adaptive: bool  # whether gains depend on the answers

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) float for the ``answers`` so far, (B, Q) int8 of UNASKED, UNKNOWN, LIKE and DISLIKE."""
        ...

    def tensors(self) -> dict[str, np.ndarray]:
        """All that it learned."""
        ...


class Fixed:
    """The same list for everybody.

    Args:
        order: (Q,) float: the larger, the earlier.
    """

    adaptive = False

    def __init__(self, order: np.ndarray) -> None:
        self.order = np.asarray(order, np.float64)
        assert np.isfinite(self.order).all()

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) the same for each conversation."""
        return np.broadcast_to(self.order, answers.shape)

    def tensors(self) -> dict[str, np.ndarray]:
        """The list."""
        return {"order": self.order}


class Random:
    """Any item of the pool. The draw derives from the seed and the answers so far, and repeats with them.

    Args:
        seed: of the draws.
    """

    adaptive = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def gains(self, answers: np.ndarray) -> np.ndarray:
        """(B, Q) uniform numbers; another conversation draws others once its answers differ."""
        found = np.empty(answers.shape)
        for at, row in enumerate(answers):
            key = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=8).hexdigest()
            found[at] = numpy_generator(self.seed, "question", key).random(answers.shape[1])
        return found

    def tensors(self) -> dict[str, np.ndarray]:
        """Its seed."""
        return {"seed": np.array([self.seed])}


def entropy(*shares: np.ndarray) -> np.ndarray:
    """The entropy in nats of a distribution given by its terms, 0 log 0 being 0."""
    return np.asarray(-sum(xlogy(one, one) for one in shares))


def _known(opinions: Opinions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    likes, dislikes = opinions.counts
    return likes, dislikes, likes + dislikes


def _popular(opinions: Opinions) -> np.ndarray:
    return _known(opinions)[2]


def _liked(opinions: Opinions) -> np.ndarray:
    return opinions.counts[0]


def _entropy0(opinions: Opinions) -> np.ndarray:
    likes, dislikes, known = _known(opinions)
    users = opinions.num_users
    return entropy(likes / users, dislikes / users, 1.0 - known / users)


def _entropy2(opinions: Opinions) -> np.ndarray:
    likes, dislikes, known = _known(opinions)
    some = np.maximum(known, 1.0)
    return entropy(likes / some, dislikes / some)


def _logpop_entropy(opinions: Opinions) -> np.ndarray:
    known = _known(opinions)[2]
    return np.asarray(np.log(np.maximum(known, 1.0)) * _entropy2(opinions))


def _pop_entropy(opinions: Opinions) -> np.ndarray:
    return np.asarray(_known(opinions)[2] * _entropy2(opinions))


def _variance(opinions: Opinions) -> np.ndarray:
    if opinions.ratings is None:
        raise DataError("the variance of ratings needs ratings: name their column with rating=, or take 'entropy0'")
    known = np.maximum(_known(opinions)[2], 1.0)
    sums = np.bincount(opinions.items, opinions.ratings, opinions.num_items)
    squares = np.bincount(opinions.items, opinions.ratings.astype(float) ** 2, opinions.num_items)
    return np.asarray(np.maximum(squares / known - (sums / known) ** 2, 0.0))


def _pop_variance(opinions: Opinions) -> np.ndarray:
    return np.asarray(np.sqrt(_known(opinions)[2]) * _variance(opinions))


LISTS: dict[str, Callable[[Opinions], np.ndarray]] = {
    "liked": _liked,
    "popular": _popular,
    "entropy0": _entropy0,
    "logpop_entropy": _logpop_entropy,
    "pop_entropy": _pop_entropy,
    "variance": _variance,
    "pop_variance": _pop_variance,
}
