"""Exact ranks of a model that scores all items: every candidate counts, to any depth.

Legend: b users of a batch, N items, K list length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys.eval.candidates import Candidates, Lists
from recsys.eval.ranks import Asked, Landed, Plan, rank_targets
from recsys.eval.scoring import Scorer


@dataclass(frozen=True)
class ExactRanking:
    """Scores in chunks, as many users at once as the memory holds; K is the longest list that a metric reads."""

    scorer: Scorer
    candidates: Candidates | Lists
    plan: Plan
    list_length: int
    depth: int | None = None  # how deep ranks are known; None: all of them

    def batches(self, lengths: np.ndarray) -> Iterator[slice]:
        """Consecutive users whose histories have ``lengths`` (n,) items, a batch at a time."""
        return self.plan.batches(lengths)

    def mode(self) -> AbstractContextManager[object]:
        """The mode that the model answers in."""
        return torch.inference_mode()

    def rank(self, asked: Asked) -> Landed:
        """Where the targets of a batch landed, and the lists (b, K) in item rows of the part.

        Raises:
            ValueError: a score is NaN or +inf, or there is not one per user and item.
        """
        columns = self.candidates.columns(asked.index, asked.owner, asked.target)
        hidden = None
        if asked.hidden is not None:
            at = columns.column_of(*asked.hidden)
            hidden = asked.hidden[0][at > 0], at[at > 0]
        scores, never = columns.take(self.scorer(asked.index))
        landed = rank_targets(
            scores,
            (asked.owner, columns.column_of(asked.owner, asked.target)),
            hidden,
            self.plan.chunk,
            self.list_length,
            self.scorer.user_rows(asked.index),
            never,
        )
        return landed if landed.lists is None else replace(landed, lists=columns.items(landed.lists))
