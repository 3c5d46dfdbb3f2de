"""The text encoder of Longformer (Beltagy et al. 2020, arXiv 2004.05150) for documents of up to some thousand tokens.

Every token attends to the ``window / 2`` tokens on each side and to the first token; the first token attends to all,
with projections of its own (section 3.1 of the paper). Four tables are summed at the input, as in Recformer (arXiv
2305.13731, section 3.2): words, positions, token types and item positions. Equal to ``LongformerModel`` of transformers
where the last two are zero.

How: :mod:`recsys.nn.local_attention`. The first token's row is computed once more with the global projections and put
over it; where only the first token is asked for, the last layer computes nothing else. Legend: B documents, S tokens of
the longest, D width, H heads, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.nn.documents import Documents
from recsys.nn.dropout import Dropout
from recsys.nn.local_attention import Chunks, Whole, local_attention
from recsys.storage.hub import from_hub

FIRST_POSITION = 2  # as in RoBERTa: 1 is the position of padding, 0 is never used
NUM_TYPES = 4  # the first token, keys, values, padding
OTHERWISE = (
    "pass the folder of a downloaded model, or build the encoder from numbers with the tokenizer trained here: "
    "pretrained=None, ItemTokens(tokenizer=None)"
)
_HUB = "pip install 'recsys[llm]'"
_NAMES = {
    "embeddings.word_embeddings.": "words.",
    "embeddings.position_embeddings.": "positions.",
    "embeddings.token_type_embeddings.": "types.",
    "embeddings.item_position_embeddings.": "places.",
    "embeddings.LayerNorm.": "norm.",
    "encoder.layer.": "layers.",
    ".attention.self.": ".attention.",
    ".attention.output.dense.": ".attention.output.",
    ".attention.output.LayerNorm.": ".attention_norm.",
    ".intermediate.dense.": ".inner.",
    ".output.LayerNorm.": ".outer_norm.",
    ".output.dense.": ".outer.",
}


class Longformer(nn.Module):
    """Documents to states, post-norm.

    Args:
        num_words: V.
        hidden: width inside the feed-forward part.
        window: tokens that a token sees besides itself, half on each side.
        max_tokens: longest document S.
        num_places: item positions 0..num_places - 1.

    Raises:
        ValueError: heads do not divide the width, or the window is odd.
    """

    def __init__(
        self,
        num_words: int,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden: int = 3072,
        window: int = 64,
        max_tokens: int = 1024,
        num_places: int = 51,
        dropout: float = 0.1,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be divisible by num_heads >= 1, found dim={dim}, num_heads={num_heads}")
        if window < 2 or window % 2 or num_layers < 1 or max_tokens < 2:
            raise ValueError(
                "window must be even and at least 2, num_layers at least 1, max_tokens at least 2; found "
                f"{window}, {num_layers} and {max_tokens}"
            )
        self.window, self.max_tokens = window, max_tokens
        self.words = nn.Embedding(num_words, dim)
        self.positions = nn.Embedding(max_tokens + FIRST_POSITION, dim)
        self.types = nn.Embedding(NUM_TYPES, dim)
        self.places = nn.Embedding(num_places, dim)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.drop = Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(dim, num_heads, hidden, dropout, norm_eps) for _ in range(num_layers))

    def reset(self) -> None:
        """N(0, 0.02) weights, zero biases, unit norms, as transformers draws them (from torch's global generator)."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()

    def forward(self, documents: Documents, first_only: bool = False) -> Tensor:
        """(B, S, D) states, or (B, 1, D), those of the first tokens.

        Raises:
            ValueError: a document is longer than ``max_tokens``.
        """
        words, real = documents.words, documents.real
        length = words.shape[1]
        if length > self.max_tokens:
            raise ValueError(f"a document of {length} tokens came to a Longformer with max_tokens={self.max_tokens}")
        running = torch.arange(FIRST_POSITION, FIRST_POSITION + length, device=words.device)
        positions = torch.where(real, running, FIRST_POSITION - 1)
        x = self.words(words) + self.positions(positions) + self.types(documents.types) + self.places(documents.places)
        x = self.drop(self.norm(x))
        local = local_attention(real, self.window // 2)
        for layer in self.layers[:-1]:
            x = layer(x, local, real)
        last: Any = self.layers[-1]
        return last.first(x, real) if first_only else last(x, local, real)  # type: ignore[no-any-return]

    def load_longformer(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Take over weights of a Longformer of transformers by name and shape; the names of ours that it lacks.

        A longer position table gives its first rows. A table of token types of another size is left as it is.

        Raises:
            ValueError: the weights are those of another model, or of another size.
        """
        given = {_own_name(name): value for name, value in weights.items()}
        own = self.state_dict()
        if "positions.weight" in given:
            given["positions.weight"] = given["positions.weight"][: len(own["positions.weight"])]
        fits = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
        left = [name for name in own if name not in fits]
        wrong = [name for name in left if not name.startswith(("types.", "places."))]
        if wrong:
            found = {name: tuple(given[name].shape) for name in wrong if name in given}
            raise ValueError(
                f"these weights do not fit the encoder: {len(wrong)} of {len(own)} tensors are missing or of another "
                f"size, such as {wrong[0]} (expected {tuple(own[wrong[0]].shape)}, found {found.get(wrong[0])}); give "
                "the encoder the numbers of the checkpoint's config, and its tokenizer"
            )
        self.load_state_dict(fits, strict=False)
        return left


class _Layer(nn.Module):
    def __init__(self, dim: int, num_heads: int, hidden: int, dropout: float, norm_eps: float) -> None:
        super().__init__()
        self.attention = LongAttention(dim, num_heads, dropout)
        self.attention_norm, self.outer_norm = nn.LayerNorm(dim, norm_eps), nn.LayerNorm(dim, norm_eps)
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, local: Whole | Chunks, real: Tensor) -> Tensor:
        return self._rest(x, self.attention(x, local, real))

    def first(self, x: Tensor, real: Tensor) -> Tensor:
        return self._rest(x[:, :1], self.attention.first(x, real))

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = self.attention_norm(x + self.drop(mixed))
        out: Tensor = self.outer_norm(x + self.drop(self.outer(F.gelu(self.inner(x)))))
        return out


class LongAttention(nn.Module):
    """Attention of each token to its band and the first token, and of the first token to all."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_global, self.key_global = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value_global, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, local: Whole | Chunks, real: Tensor) -> Tensor:
        """(B, S, D) from (B, S, D), where a token sees what ``local`` says, and the first one all ``real`` (B, S)."""
        mixed = self._attend(local, self.query(x), self.key(x), self.value(x))
        return self.output(torch.cat([self._global(x, real), mixed[:, 1:]], 1))  # type: ignore[no-any-return]

    def first(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, 1, D): the first token alone."""
        return self.output(self._global(x, real))  # type: ignore[no-any-return]

    def _global(self, x: Tensor, real: Tensor) -> Tensor:
        query, key, value = self.query_global(x[:, :1]), self.key_global(x), self.value_global(x)
        return self._attend(partial(F.scaled_dot_product_attention, attn_mask=real[:, None, None]), query, key, value)

    def _attend(self, attention: Callable[..., Tensor], *projected: Tensor) -> Tensor:
        """(B, T, D) of T queries, from queries, keys and values."""
        heads = (one.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for one in projected)
        return attention(*heads, dropout_p=self.dropout if self.training else 0.0).transpose(1, 2).flatten(2)


def pretrained_longformer(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights (language-model head included) of a Longformer: a folder, or a name on the Hugging Face hub.

    Raises:
        ImportError: transformers is not installed.
        ValueError: it is not a Longformer, or neither here nor on the hub.
    """
    try:
        from transformers import AutoConfig, LongformerForMaskedLM
    except ImportError as error:
        raise ImportError(f"the pretrained model {name!r} needs transformers: {_HUB}") from error
    kind = AutoConfig.from_pretrained  # LongformerConfig would call any model a Longformer, and draw what it lacks
    found: Any = from_hub(lambda offline: kind(name, local_files_only=offline), name, "model", OTHERWISE)
    if found.model_type != "longformer":
        raise ValueError(f"{name!r} is a {found.model_type} model, and a Longformer is expected")
    load = LongformerForMaskedLM.from_pretrained
    model: Any = from_hub(lambda offline: load(name, local_files_only=offline), name, "model", OTHERWISE)
    return model.config.to_dict(), dict(model.state_dict())


def _own_name(name: str) -> str:
    """Our name of a weight of transformers, with or without the prefix of a model around it."""
    for prefix in ("embeddings.", "encoder.layer."):
        at = name.find(prefix)
        if at >= 0:
            name = name[at:]
            break
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name
