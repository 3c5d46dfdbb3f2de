"""Item-kNN: what users of your items also took (Sarwar et al. 2001; Deshpande & Karypis 2004, top-N recommendation).

Similarity is the cosine of two items' sets of users; every item keeps its k nearest, and a history scores an item by
the similarities of those of its items that list it as a neighbour. What we do differently: the shrinkage is added to
the cosine's denominator (as in Ferrari Dacrema et al. 2019, arXiv 1907.06902), and recent history may count more.

Legend: N items, K neighbours, B histories, T distinct items of all histories.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.statistics.cooccurrence import distinct, interactions, item_similarity, largest, require_memory

PAIRS = 2**22  # (history item, neighbour) pairs scored at a time


class ItemKNN(Ranker):
    """Items by their similarity to the history; one sparse row of ``k`` neighbours per item.

    Args:
        k: neighbours kept per item.
        shrink: added to the cosine's denominator; damps similarities that rest on few users.
        decay: weight of a history item is ``decay ** age``, newest = 0; 1 counts all the same.

    Raises:
        ValueError: an argument out of range.
        MemoryError: the neighbours do not fit, said before anything starts.
    """

    scale = "share"
    neighbours: Tensor  # (N+1, K) int32 item rows, 0 where there are fewer
    similarities: Tensor  # (N+1, K) float32

    def __init__(self, k: int = 100, shrink: float = 10.0, decay: float = 1.0) -> None:
        super().__init__()
        if k < 1 or shrink < 0 or not 0 < decay <= 1:
            raise ValueError(f"k >= 1, shrink >= 0 and 0 < decay <= 1 are needed; found {k}, {shrink} and {decay}")
        self.k, self.shrink, self.decay = k, shrink, decay
        self.register_buffer("neighbours", torch.zeros(1, k, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(1, k))

    def learn(self, context: Context) -> None:
        """Find each item's neighbours, in chunks of items."""
        if context.training is None:
            raise ValueError("neighbours are counted from training events, and the context has none")
        what = f"ItemKNN with k={self.k} on {context.num_items:,} items"
        require_memory(context.num_items * self.k * 8, what, "keep fewer neighbours")
        super().bind(context)
        matrix = interactions(context.training)
        neighbours = np.zeros((context.num_items + 1, self.k), np.int32)
        similarities = np.zeros((context.num_items + 1, self.k), np.float32)
        for item, other, value in item_similarity(matrix, shrink=self.shrink, title="item-kNN"):
            chosen, rank = largest(item, value, self.k)
            neighbours[item[chosen], rank] = other[chosen]
            similarities[item[chosen], rank] = value[chosen]
        self.neighbours, self.similarities = torch.from_numpy(neighbours), torch.from_numpy(similarities)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) summed similarities to the distinct items of each history."""
        owner, items, weights = distinct(batch, self.num_items, self.decay)
        scores = torch.zeros(len(batch) * (self.num_items + 1), device=batch.ids.device)
        for part in torch.split(torch.arange(len(items), device=items.device), max(1, PAIRS // self.k)):
            near = self.neighbours[items[part]].long()  # (n, K)
            cell = owner[part, None] * (self.num_items + 1) + near
            values = self.similarities[items[part]] * weights[part, None]
            scores.index_add_(0, cell.flatten(), values.flatten())
        return scores.view(len(batch), -1)[:, 1:]
