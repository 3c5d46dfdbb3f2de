"""Recformer (Li et al. 2023, arXiv 2305.13731): users and items are texts, and one Longformer reads both.

A history is a document: ``<s>``, then the sentences of its items, the newest first; the state of ``<s>`` is the user.
An item is a document of one item. Scores are cosines of the two; trained with ``FullSoftmax(temperature=0.05)`` against
a matrix of all items that is a constant within an epoch (section 3.4). No item has an id: items without interactions
are ranked like others.

Two stages (algorithm 1 of the paper), by the names of ``Stage``: in "first", and any other, the matrix
(:class:`recsys.items.recformer.RecformerItems`) is made anew before each epoch; in "second" it stays as it was in the
best epoch; in "pretrain" it is not read.

What we do differently from the authors' code (AaronHeee/RecFormer): what cannot reach ``<s>`` is not computed in the
last layer, unless all states are needed; padding has item position ``max_length`` and token type 3 everywhere; item
texts are cleaned; and the mean of a document counts every token once, where their "avg" counts ``<s>`` twice (unit
vectors differ by .046) and fails unless the document's length is a multiple of the window.

Legend: B histories, S tokens, D width, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.documents import Documents, TokenRows, distinct_rows, documents, newest_first
from recsys.nn.longformer import Longformer, pretrained_longformer
from recsys.protocols import Context, Encoded, ItemTable

EMPTY = ("zero", "start")
POOLING = ("first", "mean")


class ItemSentences(TokenRows, Protocol):
    """What the encoder asks of ``recsys.llm.tokens.ItemTokens``: tokens by item row, and more for new items."""

    vocab_size: int
    truncated: int
    start: int
    pad: int
    mask: int

    def bind(self, context: Context) -> None: ...
    def encode(self, texts: Sequence[Mapping[str, str]]) -> Any: ...


@dataclass(frozen=True)
class ReadDocuments:
    """The documents that were read, with what it takes to predict words in them."""

    given_by = "Recformer(...)"

    words: Tensor  # (B, S) int64
    starts: Tensor  # (B, S) bool, where a word begins
    real: Tensor  # (B, S) bool, not padding
    table: Tensor  # (V, D) vectors of the tokens
    mask: int  # the token that stands for a hidden one
    hidden: Tensor | None = None  # (B, S, D) states of all tokens, where the batch gave the words


class Recformer(nn.Module):
    """Histories to users by their items' text; needs ``LastItem`` or ``OneTarget``, and ``RecformerItems``.

    The numbers of the published model are ``dim=768, num_layers=12, num_heads=12, hidden=3072``;
    :meth:`from_pretrained` reads them from a checkpoint.

    Args:
        tokens: ``recsys.llm.tokens.ItemTokens(...)``.
        hidden: width inside the feed-forward part (default: 4 D).
        window: tokens that a token sees besides itself, half on each side, and ``<s>``.
        max_length: items read, the newest.
        max_tokens: tokens read, ``<s>`` included; the oldest text is cut.
        pooling: the state of the "first" token, as the authors published it, or the plain "mean" of all.
        empty: user of a history without items: "zero", as everywhere in this library, or the vector of ``<s>`` alone
            ("start"), as in the authors' code.
        pretrained: folder or hub name of a Longformer whose weights training starts from; its tokenizer must be that
            of ``tokens``. Not read when a saved model is loaded.

    Raises:
        ValueError: a number or name that makes no sense.
    """

    sees = "all"
    newest_only = True
    gives = frozenset({ReadDocuments})

    def __init__(
        self,
        tokens: ItemSentences,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        hidden: int | None = None,
        window: int = 64,
        max_length: int = 50,
        max_tokens: int = 1024,
        dropout: float = 0.1,
        pooling: str = "first",
        empty: str = "zero",
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, found {max_length}")
        if pooling not in POOLING or empty not in EMPTY:
            raise ValueError(
                f"pooling is one of {', '.join(POOLING)} and empty one of {', '.join(EMPTY)}; found {pooling!r}, "
                f"{empty!r}"
            )
        self.tokens, self.dim, self.num_layers, self.num_heads, self.hidden = tokens, dim, num_layers, num_heads, hidden
        self.window, self.max_length, self.max_tokens, self.dropout = window, max_length, max_tokens, dropout
        self.pooling, self.empty, self.pretrained = pooling, empty, pretrained
        self.text = Longformer(
            tokens.vocab_size,
            dim,
            num_layers,
            num_heads,
            hidden or 4 * dim,
            window,
            max_tokens,
            max_length + 1,
            dropout,
        )
        self.num_items = 0

    @classmethod
    def from_pretrained(cls, name: str, tokens: ItemSentences, **more: Any) -> Recformer:
        """The encoder with the numbers of a checkpoint's config, which training then starts from.

        Raises:
            ValueError: see :func:`recsys.nn.longformer.pretrained_longformer`.
        """
        config, _ = pretrained_longformer(name)
        windows = config["attention_window"]
        widest = max(windows) if isinstance(windows, (list, tuple)) else windows
        given = {
            "dim": config["hidden_size"],
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "hidden": config["intermediate_size"],
            "window": min(widest, 64),
            "max_tokens": min(config["max_position_embeddings"] - 2, 1024),
        }
        return cls(tokens, **{**given, **more}, pretrained=name)

    def bind(self, context: Context) -> None:
        """Tokenise the items and initialise all weights, from ``pretrained`` if that is given."""
        self.num_items = context.num_items
        self.tokens.bind(context)
        self.text.reset()
        if self.pretrained is not None and context.training is not None:
            self.text.load_longformer(pretrained_longformer(self.pretrained)[1])

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """User vectors of unit length, also as the states of the newest tokens; other states are zero.

        It gives :class:`ReadDocuments`. If the batch has ``words``, these are read in place of the histories' own, and
        the documents come with the states of all their tokens.
        """
        make = None if getattr(items, "made", True) else getattr(items, "make", None)
        if make is not None and not torch.is_grad_enabled():
            make(self)  # weights that were never trained here, for a ranking without fine-tuning
        found = documents(
            self.tokens, newest_first(batch, self.max_length), self.max_tokens, self.tokens, self.max_length
        )
        changed = batch.words
        if changed is not None:
            found = Documents(changed, found.types, found.places, found.starts, found.real)
        hidden = self.text(found, first_only=changed is None and self.pooling == "first")
        user = self._summary(hidden, found.real)
        if self.empty == "zero":
            user = user * (batch.lengths > 0)[:, None]
        newest = batch.lengths > 0
        tokens = user.new_zeros(int(batch.lengths.sum()), self.dim).index_copy(0, batch.last[newest], user[newest])
        read = ReadDocuments(
            found.words, found.starts, found.real, self.text.words.weight, self.tokens.mask,
            None if changed is None else hidden,
        )  # fmt: skip
        return Encoded(batch, tokens, (read,), user)

    def encode_items(self, texts: Sequence[Mapping[str, str]], shard: int = 256) -> Tensor:
        """(n, D) unit vectors of items by their text, column -> value, as ``RecformerItems`` has for the catalogue."""
        table = self.tokens.encode(texts)
        device = self.text.words.weight.device
        return self._encode_rows(type(table)(*(one.to(device) for one in table)), len(texts), shard)

    def encode_catalogue(self, shard: int = 256) -> Tensor:
        """(N, D) unit vectors of all items, in eval mode and without gradient, ``shard`` items at a time."""
        return self._encode_rows(self.tokens, self.num_items, shard)

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """What was cut, for the report: attributes, and the training histories whose text is longer than is read."""
        counts = self.tokens.offsets.diff().cpu().numpy()
        ends = np.concatenate([[0], counts[split.prepared.items].cumsum()])
        start = np.maximum(split.train.start, split.train.stop - self.max_length)
        cut = ends[split.train.stop] - ends[start] > self.max_tokens - 1
        return {
            "Item texts": {
                "tokens per item": round(float(counts[1:].mean()), 1),
                "items without text": int((counts[1:] == 0).sum()),
                "attributes cut": self.tokens.truncated,
                f"training histories of more than {self.max_tokens - 1} tokens, cut": int(cut.sum()),
                "training histories": len(cut),
            }
        }

    @torch.no_grad()
    def _encode_rows(self, table: TokenRows, count: int, shard: int) -> Tensor:
        training = self.training
        self.eval()
        device = self.text.words.weight.device
        distinct, index = distinct_rows(table, count)
        order = table.offsets.diff()[distinct].argsort(stable=True)  # little padding in a shard
        vectors = torch.zeros(len(distinct), self.dim, device=device)
        for part in order.split(shard):
            found = documents(table, distinct[part, None], self.max_tokens, self.tokens, self.max_length)
            vectors[part] = self._summary(self.text(found, first_only=self.pooling == "first"), found.real).float()
        self.train(training)
        return vectors[index]

    def _summary(self, hidden: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "first":
            return F.normalize(hidden[:, 0], dim=-1)
        return F.normalize((hidden * real[..., None]).sum(1), dim=-1)
