"""Full softmax cross-entropy, exact, without ever holding targets x items.

loss_t = log sum_j exp(h_t . e_j) - h_t . e_target(t), over the whole catalogue, padding excluded.

Use when: the catalogue fits the time (cost grows with T * N * D); it is the best plain loss at any size that does
(Klenitskiy & Vasilev 2023, arXiv 2309.07602: NDCG@10 .182 against .134 of one-negative BCE on ML-1M).
Prefer instead: :class:`recsys.objectives.sampled.SampledSoftmax` above some hundred thousand items.

The sum over all items is the item table's to make (``cross_entropy`` of :class:`recsys.protocols.ItemTable`); tables
that are local do it by :mod:`recsys.nn.softmax`. Legend: T targets, N items, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.protocols import Encoded, ItemTable


class FullSoftmax(nn.Module):
    """Cross-entropy over all items.

    Args:
        temperature: divides the scores (training only; ranking does not change).
        chunk: targets worked on at a time (default: as many as keep their scores near 8 MB, at most 512, at least 64).
    """

    def __init__(self, temperature: float = 1.0, chunk: int | None = None) -> None:
        super().__init__()
        if temperature <= 0 or (chunk is not None and chunk < 1):
            raise ValueError(f"temperature and chunk must be positive, found {temperature} and {chunk}")
        self.temperature, self.chunk = temperature, chunk

    def forward(self, encoded: Encoded, batch: Batch, items: ItemTable, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss; ``generator`` is not used."""
        hidden, targets, weights = encoded.at_targets(batch)
        hidden = hidden / self.temperature if self.temperature != 1.0 else hidden
        return items.cross_entropy(hidden, targets, weights, chunk=self.chunk)
