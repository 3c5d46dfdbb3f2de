"""A linear layer and the product of two small matrices beside it, for adapters that ``peft`` does not have.

Its methods are those of the layers of ``peft``, so that :class:`LinearAdapter` takes either. Legend: O outputs, I
inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (..., I), A (r, I), B (O, r) -> (..., O)


def product(x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """B A x."""
    return F.linear(F.linear(x, inner), outer)


class LowRankLinear(nn.Module):
    """y = W x + scale B A x, with W, A and B in float32 or whatever they are, and y as W gives it."""

    def __init__(
        self, base_layer: nn.Linear, inner: nn.Parameter, outer: nn.Parameter, scale: float, how: Product = product
    ) -> None:
        super().__init__()
        self.base_layer, self.scale, self.how = base_layer, scale, how
        self.lora_A, self.lora_B = inner, outer  # (r, I), (O, r)
        self.disable_adapters = False

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return made
        added = self.how(x.to(self.lora_A.dtype), self.lora_A, self.lora_B)
        return made + (self.scale * added).to(made.dtype)

    @property
    def weight(self) -> Tensor:
        """W, for modules that look at its type or size."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """Of the base."""
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        """I."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """O."""
        return self.base_layer.out_features

    def get_base_layer(self) -> nn.Linear:
        """The layer itself."""
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        """Whether the product is added."""
        self.disable_adapters = not enabled

    @torch.no_grad()
    def merge(self) -> None:
        """Add the product to W."""
        weight = self.base_layer.weight
        weight += (self.scale * self.lora_B @ self.lora_A).to(weight.dtype)


def insert(module: nn.Module, layers: Mapping[str, Any]) -> None:
    """Put layers in the places of those at these paths."""
    for path, layer in layers.items():
        parent, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer)


def fresh(layer: nn.Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (r, I) as a linear layer begins, from torch's generator, and B (O, r) of zeros; at least float32."""
    weight = layer.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    inner = torch.empty(rank, layer.in_features, device=weight.device, dtype=dtype)
    nn.init.kaiming_uniform_(inner, a=5**0.5)
    return nn.Parameter(inner), nn.Parameter(inner.new_zeros(layer.out_features, rank))
