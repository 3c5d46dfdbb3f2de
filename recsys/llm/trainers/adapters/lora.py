"""LoRA (Hu et al. 2022, arXiv 2106.09685): a product of two small matrices beside each linear layer, through ``peft``.

y = W x + alpha / r B A Drop(x),        A random, B zero at first
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from recsys.llm.trainers.adapters.linear import LinearAdapter
from recsys.nn.decoder import package


class LoRA(LinearAdapter):
    """Low-rank matrices beside linear layers, of transformers' models and of ours.

    Args:
        rank: r.
        alpha: what they add is scaled by alpha / rank.
        dropout: before them, in training.
        targets: as of :class:`LinearAdapter`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, rank: int = 8, alpha: float = 16, dropout: float = 0.0, targets: Sequence[str] | None = None
    ) -> None:
        super().__init__(targets)
        check(rank, alpha, dropout)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def _inject(self, module: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
        peft = package("peft")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=exactly(chosen), bias="none"
        )
        peft.inject_adapter_in_model(config, module)


def exactly(paths: Mapping[str, nn.Linear]) -> str:
    """A pattern for ``peft`` that fits these paths, and none that ends in one of them."""
    return "|".join(map(re.escape, paths))


def check(rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Raise ValueError if one of them is out of range."""
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"rank must be at least 1, alpha above 0 and dropout in [0, 1), found {rank}, {alpha} and {dropout}"
        )
