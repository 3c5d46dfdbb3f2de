"""Why an item is recommended: what becomes of it when one item of the history is left out, for any model.

What is compared is on one scale per kind of model, that of :mod:`recsys.recommenders.blend`: the logarithm of the
probability over the catalogue for what is trained by a softmax; the score over the largest one for what is counted;
1 / (60 + rank) for what makes lists. Leave-one-out influence says what the model does with this history, not what
would have been if the person had not met that item.

Legend: L items of the history, M items asked about, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recsys.errors import UnknownItemError
from recsys.recommenders.base import Scores
from recsys.recommenders.blend import SMOOTHING
from recsys.recommenders.history import History
from recsys.serve.bundle import Bundle

DEPTH = 200  # of the lists of a model that only makes lists
NEWEST = 100  # items of a history that are left out in turn, of models that read it whole
NUMBERS = 2**23  # scores held at a time


@dataclass(frozen=True)
class Influence:
    """What M items owe to the L items of a history."""

    items: list[Any]  # (M,) raw ids asked about
    history: list[Any]  # (L,) raw ids, oldest first: those that the model reads
    rank: np.ndarray  # (M,) int64 rank among the items outside the history, 1 the best; 0: beyond a list that is made
    change: np.ndarray  # (L, M) float64: what the item has less when the history lacks this one
    rank_without: np.ndarray  # (L, M) int64: its rank then, among the same items


def leave_one_out(bundle: Bundle, history: History | Sequence[Any], items: Sequence[Any]) -> Influence:
    """The influence of each item of ``history`` on each of ``items``.

    Histories are scored L + 1 times in batches. Only the newest items that the model reads are left out, at most 100;
    unknown ones have no influence and are not among them.

    Raises:
        UnknownItemError: an item asked about is not one that the model scores.
        ValueError: the history holds no known item.
    """
    history = history if isinstance(history, History) else History(history)
    vocabulary = bundle.vocabulary_of_model
    rows, known = vocabulary.rows(list(items)), vocabulary.rows(list(history.items)) > 0
    if (rows < 1).any():
        unknown = [one for one, row in zip(items, rows, strict=True) if row < 1]
        raise UnknownItemError(f"{len(unknown)} items are none that the model scores, such as {unknown[:3]}")
    read = np.flatnonzero(known)[-min(bundle.model.max_length or NEWEST, NEWEST) :]
    if not len(read):
        raise ValueError("the history holds no known item, so there is nothing that could be left out")
    others = np.ones(bundle.model.num_items, bool)
    others[vocabulary.rows([history.items[at] for at in np.flatnonzero(known).tolist()]) - 1] = False
    variants = [history, *(_without(history, int(at)) for at in read)]
    size = max(1, NUMBERS // bundle.model.num_items)
    wanted, ranks = [], []
    for first in range(0, len(variants), size):
        scaled = _on_scale(bundle, variants[first : first + size])
        wanted.append(scaled[:, rows - 1])
        ranks.append(_ranks(scaled, rows, others))
    own, places = np.concatenate(wanted), np.concatenate(ranks)
    left = [history.items[at] for at in read.tolist()]
    return Influence(list(items), left, places[0], (own[0] - own[1:]).astype(np.float64), places[1:])


def _without(history: History, at: int) -> History:
    def less(values: Any) -> Any:
        return [one for position, one in enumerate(values) if position != at]

    times = None if history.times is None else less(history.times)
    features = history.features and {
        name: less(values) if isinstance(values, (list, tuple, np.ndarray)) and len(values) == len(history) else values
        for name, values in history.features.items()
    }
    return replace(history, items=less(history.items), times=times, features=features)


def _on_scale(bundle: Bundle, histories: list[History]) -> np.ndarray:
    """(B, N) what the model says of all items, comparable between histories."""
    model = bundle.model
    if not isinstance(model, Scores):
        top, _ = bundle._rank(histories, min(DEPTH, model.num_items), "none")
        found = np.zeros((len(histories), model.num_items + 1))
        shares = np.broadcast_to(1 / (SMOOTHING + np.arange(1, top.rows.shape[1] + 1)), top.rows.shape)
        np.put_along_axis(found, top.rows, shares, 1)
        return found[:, 1:]
    scores = torch.from_numpy(model.scores(histories)).double()
    vocabulary = bundle.vocabulary_of_model
    empty = torch.tensor([not (vocabulary.rows(list(one.items)) > 0).any() for one in histories])
    if model.scale == "softmax":
        popular = (model.popularity[1:].double().cpu() + 1).log()  # what stands in for an empty history
        scores[empty] = popular.expand(int(empty.sum()), -1)
        return scores.log_softmax(1).numpy()
    found = np.where(np.isneginf(scores.numpy()), 0.0, scores.numpy())
    largest = found.max(1, keepdims=True)
    return np.divide(found, largest, out=np.zeros_like(found), where=largest > 0)


def _ranks(scaled: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(B, M) 1 + how many of the ``others`` (N,) are better; 0 for those that a list does not hold."""
    own, among = scaled[:, rows - 1], scaled[:, others]
    ranks = np.stack([(among > own[:, [column]]).sum(1) + 1 for column in range(len(rows))], 1)
    return np.where((own == 0) & (scaled.min(1) == 0)[:, None] & (scaled.max(1) <= 1 / SMOOTHING)[:, None], 0, ranks)
