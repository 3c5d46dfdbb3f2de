"""Linear layers with ReLU between them, drawn by a generator of their own; what autoencoders of codes are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


def layers(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Layers from ``widths[0]`` to ``widths[-1]``, drawn as torch draws its own: evenly within 1 / sqrt(inputs)."""
    made: list[nn.Module] = []
    for before, after in pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, before, after)
        for weight in layer.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(before), 1 / math.sqrt(before), generator=generator)
        made += [layer, nn.ReLU()]
    return nn.Sequential(*made[:-1])
