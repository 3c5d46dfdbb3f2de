"""Dropout with 16-bit random numbers: on a CPU the generator, not the multiplication, is what dropout costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero each element with probability ``p`` while training, scale the rest by 1 / (1 - p).

    On the CPU four 16-bit numbers are cut from each 64-bit draw of torch's global generator, so ``p`` is rounded to a
    multiple of 2^-16 and the scale fits the rounded value: the expectation is exact. Elsewhere it is torch's own.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, found {p}")
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """``values`` (any shape) with elements dropped."""
        threshold = round(self.p * 2**16)
        if not self.training or threshold == 0:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.p)
        draws = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: values.numel()] >= threshold - 2**15
        return values * kept.view(values.shape).to(values.dtype).mul_(2**16 / (2**16 - threshold))

    def extra_repr(self) -> str:
        """The probability, for printed models."""
        return f"p={self.p}"
