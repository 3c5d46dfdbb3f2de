"""The two contracts of a recommender, and the check that one which only makes lists must pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import recsys as rs
from recsys.recommenders.base import Ranker, Recommends, Scores
from recsys.recommenders.top import TopK
from recsys.testing import check_ranker


class InOrder(Ranker):
    """Generates lists: items in the order of the catalogue."""

    heeds_allow = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1))

    def recommend(
        self, histories: Any, k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        k = self._check(k, exclude)
        assert self.vocabulary is not None
        rows = np.zeros((len(histories), k), np.int64)
        unknown = np.zeros(len(histories), np.int64)
        for at, history in enumerate(histories):
            unknown[at] = np.count_nonzero(self.vocabulary.rows(list(history)) < 1)
            out = {*(history if exclude == "history" else ()), *(deny or ())}
            left = [one for one in self.vocabulary.ids if one not in out and (allow is None or one in allow)]
            left = left if self.heeds_allow else self.vocabulary.ids.tolist()[-k:]
            rows[at, : len(left[:k])] = self.vocabulary.rows(left[:k])
        scores = np.where(rows > 0, -np.arange(k), -np.inf).astype(np.float32)
        return TopK(rows, scores, unknown, np.zeros(len(rows), bool), self.vocabulary)


class Deaf(InOrder):
    heeds_allow = False


def test_a_class_with_a_score_scores_and_one_without_recommends() -> None:
    for model in (rs.Popularity(), rs.Markov(), rs.EASE(), rs.ItemKNN()):
        assert isinstance(model, Scores) and isinstance(model, Recommends)
    assert isinstance(InOrder(), Recommends) and not isinstance(InOrder(), Scores)
    assert isinstance(rs.Bundle, type) and issubclass(rs.Bundle, Recommends)
    with pytest.raises(NotImplementedError, match="InOrder has no score"):
        InOrder().score_safely(None)  # type: ignore[arg-type]


def test_one_that_makes_lists_passes_the_check_of_recommenders_and_a_broken_one_is_named() -> None:
    check_ranker(InOrder())
    with pytest.raises(AssertionError, match="allow"):
        check_ranker(Deaf())
