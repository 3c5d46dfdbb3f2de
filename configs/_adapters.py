"""Adapters beside the feed-forward layers of a language model, with as many trained numbers as LoRA of a rank."""

from __future__ import annotations

from typing import Any, Literal

from recsys.llm.trainers.adapters.adalora import AdaLoRA
from recsys.llm.trainers.adapters.allora import ALLoRA
from recsys.llm.trainers.adapters.aslora import ASLoRA
from recsys.llm.trainers.adapters.sparse import SparseTuning
from recsys.nn.decoder import MLP

Adapter = Literal["lora", "adalora", "aslora", "allora", "sparse", "none"]
ORTHOGONAL = ("adalora",)  # those with a term of the loss


def adapter_of(name: str, rank: int, config: dict[str, Any], depth: int, total: int) -> Any:
    """What :class:`recsys.nn.backbone.Backbone` takes as ``adapter``; None for LoRA, which it makes itself, and "none".

    AdaLoRA has as many numbers as LoRA of ``rank`` when its schedule is over, ASLoRA before its groups are merged.

    Args:
        config: of the language model, of Llama's kind.
        depth: its layers that are kept.
        total: optimizer steps of the training.
    """
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    wanted = 3 * depth * rank * (hidden + middle)
    if name == "adalora":
        first = rank + max(1, rank // 2)
        return AdaLoRA(total, rank, first, alpha=first, dropout=0.05, warmup=total // 10, last=total // 4, targets=MLP)
    if name == "aslora":  # of rank 1: A once and B of each layer, of gate and up, then of down
        each = 2 * (hidden + depth * middle) + middle + depth * hidden
        own = max(1, round(wanted / each))
        return ASLoRA(total, own, alpha=own, targets=MLP)
    if name == "allora":
        return ALLoRA(rank, targets=MLP)
    if name == "sparse":
        shared = (config.get("num_key_value_heads") or config["num_attention_heads"]) / config["num_attention_heads"]
        layer = 2 * hidden * hidden * (1 + shared) + 3 * hidden * middle + 2 * hidden
        return SparseTuning(min(1.0, wanted / (depth * layer)))
    return None
