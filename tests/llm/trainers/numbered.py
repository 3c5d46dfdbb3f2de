"""A source whose rows are numbers, to see which of them are trained on when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from recsys.data.batch import Batch


class Numbers:
    """Rows first..first + count - 1, each a history of that number's length modulo 4, in another order each epoch."""

    def __init__(self, count: int, size: int = 4, first: int = 0, prepared: bool = True) -> None:
        self.count, self.size, self.first, self.prepared = count, size, first, prepared
        self.num_rows = self.num_targets = count

    def identity(self) -> dict[str, Any]:
        return {"count": self.count, "size": self.size, "first": self.first}

    def num_batches(self, epoch: int) -> int:
        return -(-self.count // self.size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(self.count) + self.first
        for number in range(start, self.num_batches(epoch)):
            rows = torch.from_numpy(order[number * self.size : (number + 1) * self.size][rank::world_size])
            lengths = rows % 4 + 1
            wide = int(lengths.max()) if len(rows) else 1
            ids = (rows[:, None] + 1) * (torch.arange(wide) < lengths[:, None])
            yield Batch(rows, rows, ids, lengths, targets=ids)


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]
