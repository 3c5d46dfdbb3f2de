"""Written as by somebody outside of the package: preference pairs as the batches of a stage, and a loss on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recsys.data.batch import Batch


@dataclass(frozen=True)
class Pairs(Batch):
    """Histories, and of two items the one that was preferred."""

    better: torch.Tensor | None = None  # (B,) int64
    worse: torch.Tensor | None = None  # (B,) int64


class PairSource:
    """Preference pairs (history, better, worse) in a random order in each epoch; the share of a process by stride."""

    def __init__(self, num_pairs: int = 30, num_items: int = 20, batch_size: int = 8, seed: int = 5) -> None:
        random = np.random.default_rng(seed)
        self.seed, self.batch_size = seed, batch_size
        self.histories = random.integers(1, num_items + 1, (num_pairs, 5))
        self.better, self.worse = random.integers(1, num_items + 1, (2, num_pairs))
        self.asked: list[tuple[int, int]] = []

    @property
    def num_rows(self) -> int:
        return len(self.better)

    @property
    def num_targets(self) -> int:
        return len(self.better)

    def identity(self) -> dict[str, object]:
        values = np.concatenate([self.histories.ravel(), self.better, self.worse])
        return {"pairs": hashlib.sha256(values.tobytes()).hexdigest(), "batch_size": self.batch_size}

    def num_batches(self, epoch: int) -> int:
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1):
        self.asked.append((epoch, start))
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        for number in range(start, self.num_batches(epoch)):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size][rank::world_size]
            yield Pairs(
                rows=torch.from_numpy(rows),
                users=torch.full((len(rows),), -1),
                ids=torch.from_numpy(self.histories[rows]),
                lengths=torch.full((len(rows),), 5),
                better=torch.from_numpy(self.better[rows]),
                worse=torch.from_numpy(self.worse[rows]),
            )


class Preference(nn.Module):
    """The better of two items is to score above the worse one: the mean over the pairs of all processes."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, step):
        users = step.encoded.user
        gap = (users * (step.items.output(step.batch.better) - step.items.output(step.batch.worse))).sum(1)
        return -nn.functional.logsigmoid(gap).mean()
