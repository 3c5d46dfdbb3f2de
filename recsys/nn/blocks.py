"""The Transformer block layouts that go by the name of SASRec, and the gated one of eSASRec.

| layout | rule | source |
|---|---|---|
| ``original`` | q = LN(x), a = q + MHA(q, x, x), u = LN(a), y = u + FFN(u) | kang205/SASRec (code) |
| ``pre`` | x + MHA(LN x), then + FFN(LN .) | the SASRec paper's text; pmixer ``--norm_first`` |
| ``post`` | LN(x + MHA(x)), LN(. + FFN(.)) | RecBole, pmixer since 2025 |
| ``ligr`` | x + sigmoid(G x) * MHA(LN x), the same with a gated FFN | eSASRec, arXiv 2508.06450 |

In ``original`` the residual is the *normalised* tensor while keys and values come from the raw one: paper and code
differ, and most published numbers come from the code. All take and give (T, D) over the T real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.attention import Attention
from recsys.nn.continuation import Past, Place
from recsys.nn.dropout import Dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
LAYOUTS = ("original", "pre", "post", "ligr")

Attend = Callable[[Tensor, Tensor], tuple[Tensor, Past]]  # queries, source of keys and values -> mixed values, past


class FeedForward(nn.Module):
    """W2 Drop(act(W1 x)), biases as in SASRec."""

    def __init__(self, dim: int, hidden: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.activation, self.dropout = ACTIVATIONS[activation], Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        return self.outer(self.dropout(self.activation(self.inner(tokens))))


class GatedFeedForward(nn.Module):
    """W2 Drop(act(W1 x) * W3 x), no biases (eSASRec)."""

    def __init__(self, dim: int, hidden: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.activation, self.dropout = ACTIVATIONS[activation], Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        gate, value = self.inner(tokens).chunk(2, dim=-1)
        return self.outer(self.dropout(self.activation(gate) * value))


class Block(nn.Module):
    """One block in one of the ``LAYOUTS``.

    Args:
        hidden: width inside the feed-forward part.
        inner_dropout: dropout inside the feed-forward part (SASRec has it, BERT-style ``post`` blocks do not).
        causal: see :class:`recsys.nn.attention.Attention`.
    """

    def __init__(
        self,
        layout: str,
        dim: int,
        num_heads: int,
        hidden: int,
        dropout: float,
        attention_dropout: float = 0.0,
        output_projection: bool = True,
        activation: str = "relu",
        inner_dropout: bool = True,
        norm_eps: float = 1e-8,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, found {layout!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
        gated = layout == "ligr"
        self.attention = Attention(dim, num_heads, attention_dropout, output_projection, causal)
        self.feed = (GatedFeedForward if gated else FeedForward)(
            dim, hidden, dropout if inner_dropout else 0.0, activation
        )
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim, norm_eps), nn.LayerNorm(dim, norm_eps)
        self.dropout = Dropout(dropout)
        self.attention_gate = nn.Linear(dim, dim) if gated else None
        self.feed_gate = nn.Linear(dim, dim) if gated else None
        self.run = {"original": self._original, "pre": self._pre, "post": self._post, "ligr": self._ligr}[layout]

    def forward(self, tokens: Tensor, batch: Batch) -> Tensor:
        """(T, D) to (T, D)."""
        return self.begin(tokens, batch)[0]

    def begin(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Past]:
        """The same, and what later tokens read of it."""
        return self.run(tokens, lambda query, source: self.attention.begin(query, source, batch))

    def newest(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Past]:
        """The same at the newest token alone of each history that has one, (Q, D), without the cost of the others."""
        at = batch.last[batch.lengths > 0]
        return self.run(tokens, lambda query, source: self.attention.newest(query, source, batch), at)

    def extend(self, tokens: Tensor, past: Past, places: Sequence[Place]) -> tuple[Tensor, Past]:
        """(Q, D) to (Q, D) of one more token behind each wanted one, and the past with it."""
        return self.run(tokens, lambda query, source: self.attention.extend(query, source, past, places))

    # x (T, D) are the tokens that are read; at (Q,), those that are asked for, None for all.

    def _original(self, x: Tensor, attend: Attend, at: Tensor | None = None) -> tuple[Tensor, Past]:
        query = self.attention_norm(_pick(x, at))
        mixed, past = attend(query, x)
        u = self.feed_norm(query + mixed)
        return u + self.dropout(self.feed(u)), past

    def _pre(self, x: Tensor, attend: Attend, at: Tensor | None = None) -> tuple[Tensor, Past]:
        normed = self.attention_norm(x)
        mixed, past = attend(_pick(normed, at), normed)
        x = _pick(x, at) + self.dropout(mixed)
        return x + self.dropout(self.feed(self.feed_norm(x))), past

    def _post(self, x: Tensor, attend: Attend, at: Tensor | None = None) -> tuple[Tensor, Past]:
        own = _pick(x, at)
        mixed, past = attend(own, x)
        x = self.attention_norm(own + self.dropout(mixed))
        return self.feed_norm(x + self.dropout(self.feed(x))), past

    def _ligr(self, x: Tensor, attend: Attend, at: Tensor | None = None) -> tuple[Tensor, Past]:
        assert self.attention_gate is not None and self.feed_gate is not None
        normed = self.attention_norm(x)
        mixed, past = attend(_pick(normed, at), normed)
        x = _pick(x, at)
        x = x + torch.sigmoid(self.attention_gate(x)) * self.dropout(mixed)
        return x + torch.sigmoid(self.feed_gate(x)) * self.dropout(self.feed(self.feed_norm(x))), past


def _pick(tokens: Tensor, at: Tensor | None) -> Tensor:
    return tokens if at is None else tokens.index_select(0, at)
