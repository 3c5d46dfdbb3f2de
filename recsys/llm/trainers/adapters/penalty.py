"""The term that an adapter adds to the loss, in training by other losses than those over sequences."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recsys.protocols import Step


class AdapterPenalty(nn.Module):
    """An auxiliary: ``penalty()`` of an adapter that some part of the model holds, such as a backbone.

    Args:
        adapter: the same object as in that part.
        weight: of the term.

    Raises:
        TypeError: the adapter has no penalty, so that this would do nothing.
        ValueError: the weight is negative.
    """

    def __init__(self, adapter: Any, weight: float = 1.0) -> None:
        super().__init__()
        if not callable(getattr(adapter, "penalty", None)):
            raise TypeError(f"{type(adapter).__name__} has no penalty: leave AdapterPenalty out")
        if weight < 0:
            raise ValueError(f"weight must be at least 0, found {weight}")
        self.adapter, self.weight = adapter, weight

    def forward(self, step: Step) -> Tensor:
        """Scalar: the penalty as it is, whatever the batch."""
        value: Tensor = self.adapter.penalty()
        return value
