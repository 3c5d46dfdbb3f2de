"""First-order Markov chain: what people took right after your last item, smoothed toward popularity.

The maximum-likelihood chain with a Dirichlet prior at popularity (Rendle et al. 2010 factorise the same counts; Shani
et al. 2005 smooth them). Knows the last item only, and is hard to beat where sessions are short.

Legend: N items, B histories, P observed pairs of items.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.ids.ranges import blocks
from recsys.protocols import Context
from recsys.recommenders.base import Ranker


class Markov(Ranker):
    """Items by the probability that they follow the last one: (count + smoothing * popularity) / (total + smoothing).

    Args:
        smoothing: how many imagined transitions follow popularity; orders items never seen after the last one.

    Raises:
        ValueError: ``smoothing`` is negative.
    """

    scale = "share"
    starts: Tensor  # (N+2,) int64: pairs of item row r are starts[r] .. starts[r + 1]
    following: Tensor  # (P,) int32 item rows
    counts: Tensor  # (P,) float32

    def __init__(self, smoothing: float = 1.0) -> None:
        super().__init__()
        if smoothing < 0:
            raise ValueError(f"smoothing must not be negative, found {smoothing}")
        self.smoothing = smoothing
        self.register_buffer("starts", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("following", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(0))

    def learn(self, context: Context) -> None:
        """Count how often one item directly follows another in training."""
        super().bind(context)
        if context.training is None:
            raise ValueError("transitions are counted from training events, and the context has none")
        width = context.num_items + 1
        keys, counts = _transitions(context.training, width)
        self.starts = torch.from_numpy(np.searchsorted(keys, np.arange(width + 1) * width))
        self.following = torch.from_numpy((keys % width).astype(np.int32))
        self.counts = torch.from_numpy(counts.astype(np.float32))

    def score(self, batch: Batch) -> Tensor:
        """(B, N) probabilities of the next item, given the last."""
        last = batch.ids.gather(1, (batch.lengths - 1).clamp(min=0)[:, None]).squeeze(1)  # (B,)
        first, size = self.starts[last], self.starts[last + 1] - self.starts[last]
        owner = torch.arange(len(batch), device=last.device).repeat_interleave(size)
        pairs = torch.arange(len(owner), device=last.device) - (size.cumsum(0) - size)[owner] + first[owner]
        total = torch.zeros(len(batch), device=last.device).index_add_(0, owner, self.counts[pairs])
        total = (total + self.smoothing).clamp(min=1e-9)[:, None]
        prior = self.popularity[1:] / self.popularity.sum().clamp(min=1.0)
        scores = self.smoothing * prior / total  # (B, N)
        cell = owner * self.num_items + self.following[pairs].long() - 1
        scores.view(-1).index_add_(0, cell, self.counts[pairs] / total[owner, 0])
        return scores


def _transitions(training: TrainingEvents, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs as sorted keys ``item * width + next item``, and how often each occurs."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for users in blocks(training.lengths):
        owner, items, _ = training.events(users)
        same = owner[1:] == owner[:-1]
        pairs = items[:-1][same].astype(np.int64) * width + items[1:][same]
        found.append(np.unique(pairs, return_counts=True))
    keys, inverse = np.unique(np.concatenate([keys for keys, _ in found]), return_inverse=True)
    weights = np.concatenate([counts for _, counts in found])
    return keys, np.bincount(inverse, weights=weights, minlength=len(keys))
