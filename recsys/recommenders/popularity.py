"""Popularity: the items with most training events first, of all time or of the last days.

The first number a paper should be compared with. A recent window is the stronger of the two where taste drifts
(Ji et al. 2020, "A re-visit of the popularity baseline in recommender systems", arXiv 2005.13829).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.errors import DataError
from recsys.ids.ranges import blocks
from recsys.protocols import Context
from recsys.recommenders.base import Ranker

DAY = 86_400_000  # milliseconds


class Popularity(Ranker):
    """Items by their number of training events.

    Args:
        window_days: count only the events of the last N days before the end of training (needs times); None: all time.

    Raises:
        ValueError: ``window_days`` is not positive.
        DataError: ``window_days`` is given and the data have no times.
    """

    scale = "share"
    counts: Tensor

    def __init__(self, window_days: float | None = None) -> None:
        super().__init__()
        if window_days is not None and not window_days > 0:
            raise ValueError(f"window_days must be positive, or None for all time; found {window_days}")
        self.window_days = window_days
        self.register_buffer("counts", torch.zeros(1))

    def learn(self, context: Context) -> None:
        """Count the training events of each item."""
        super().bind(context)
        training = context.training
        if training is None:
            raise ValueError("popularity is counted from training events, and the context has none")
        if self.window_days is None:
            self.counts = self.popularity.clone()
            return
        if "times" not in training.fields:
            raise DataError("window_days needs times: name the time column when the data are read, or leave it out")
        chunks = list(blocks(training.lengths))
        times = (training.events(users)[2] for users in chunks)
        end = max(int(found.max()) for found in times if found is not None and len(found))
        counts = np.zeros(training.num_items + 1, np.int64)
        for users in chunks:
            _, items, when = training.events(users)
            assert when is not None
            counts += np.bincount(items[when > end - self.window_days * DAY], minlength=len(counts))
        self.counts = torch.as_tensor(counts, dtype=torch.float32)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) the same counts for everybody."""
        return self.counts[1:].repeat(len(batch), 1)
