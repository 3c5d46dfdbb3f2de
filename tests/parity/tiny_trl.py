"""What comparisons with trl share: a vocabulary of words without a file, and a trainer of a tiny Llama on the CPU.

trl's losses are methods of its trainers, so a trainer is made and asked for the loss of a batch. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.llm.trainers.tiny import END, PAD, VOCABULARY


def trl() -> Any:
    """The module, or a skipped test."""
    return pytest.importorskip("trl", exc_type=ImportError)


def words(ids: list[int]) -> str:
    """A text that the tokenizer turns into these ids."""
    return " ".join(map(word, ids))


def word(token: int) -> str:
    """That of one id."""
    return f"<{token}>"


def tokenizer() -> Any:
    """Words by their numbers. No word is part of another, as special tokens are cut out first."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    table = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word(n): n for n in range(VOCABULARY)}, unk_token=word(PAD))
    )
    table.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=table, pad_token=word(PAD), eos_token=word(END))


def trainer(
    method: str, folder: Path, model: Any, rows: list[dict[str, Any]], settings: Any = None, **more: Any
) -> Any:
    """trl's trainer called ``method`` ("DPO", "SFT", "GRPO") of the model on these rows, all of them in one batch.

    Args:
        settings: of its configuration, by name.
        more: further arguments of the trainer.
    """
    library, datasets = trl(), pytest.importorskip("datasets")
    known = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "seed": 0}
    config = getattr(library, f"{method}Config")(**known, per_device_train_batch_size=len(rows), **(settings or {}))
    return getattr(library, f"{method}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer(), **more
    )


def batch_of(made: Any) -> dict[str, Tensor]:
    """The one batch that the trainer would train on."""
    (batch,) = made.get_train_dataloader()
    return dict(batch)


def slopes(loss: Tensor, model: Any) -> Tensor:
    """The gradient of the loss by all weights of the model, as one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
    return torch.cat([one.flatten() for one in found])
