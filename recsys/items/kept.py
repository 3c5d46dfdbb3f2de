"""The output vectors of all items, kept while a model ranks, and what tells when they no longer hold.

Legend: N items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Kept:
    """A table (N', D) that was made from other tensors.

    Weights are compared by value: not every way to change them leaves a trace in their version counters. Of what has a
    row per item the object, its address in memory and its version are remembered.

    Args:
        weights: what it was made from, but for ``large``.
        large: what has a row per item.
    """

    def __init__(self, table: Tensor, weights: Sequence[Tensor], large: Sequence[Tensor]) -> None:
        self.table = table
        self.weights = [value.detach().clone() for value in weights]
        self.large = [_marks(value) for value in large]

    def holds(self, weights: Sequence[Tensor], large: Sequence[Tensor]) -> bool:
        """Whether the table would be made from these tensors."""
        if len(large) != len(self.large) or len(weights) != len(self.weights):
            return False
        if any(own is not marks[0] or _marks(own)[1:] != marks[1:] for own, marks in zip(large, self.large)):
            return False
        return all(
            value.device == own.device and torch.equal(value, own)
            for value, own in zip(self.weights, weights, strict=True)
        )


def _marks(value: Tensor) -> tuple[Tensor, int, int]:
    return value, value.data_ptr(), -1 if value.is_inference() else value._version
