"""Mamba4Rec: selective state space layers over item embeddings (Liu et al. 2024, arXiv 2403.03900).

    X = LN(Drop(E[s])),  Y = LN(Drop(Mamba(X)) [+ X]),  Z = LN(Drop(W_b Drop(GELU(W_a Y))) + Y)

The residual around the Mamba block is there with two layers or more and missing with one, as in the authors' code.
There is no position table: order comes from the convolution and the recurrence inside the block, so ``max_length`` is
how much of a history is read, not a limit. The encoder sees only the past, so it trains on all positions as well as on
the last one, which is all the authors do. Published recipe: input without the factor sqrt(D), that is
``IdItems(dim, scale=False)``. Deviations: the padding row is neither learned nor scored, and rows carry no padding.

Legend: B histories, T real tokens, D width, Q tokens whose states are wanted.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.blocks import FeedForward
from recsys.nn.dropout import Dropout
from recsys.nn.mamba import Mamba
from recsys.protocols import Context, Encoded, ItemTable

NORM_EPS = 1e-12
READOUTS = ("wanted", "all")


class Mamba4Rec(nn.Module):
    """Histories to states by Mamba layers.

    Args:
        dim: width D, the same as the item table's.
        state, conv, expand: sizes of the Mamba block, see :class:`recsys.nn.mamba.Mamba`.
        dropout: on the embeddings and behind each sub-layer; 0.4 for the sparse Amazon sets.
        max_length: longest history that batches are cut to.
        ssm_init: "recbole", with which the published numbers were made, or "mamba", the block's own; see there.
        hidden: width inside the feed-forward part (default: 4 D).
        kernel: of the scan, see :func:`recsys.nn.scan.selective_scan`.
        readout: "wanted" computes the end of the last layer only for ``batch.wanted_tokens`` and leaves zeros
            elsewhere; "all" for all tokens. The wanted states are the same.

    Raises:
        ValueError: a size below 1, or an unknown name for a choice.
    """

    sees = "past"

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 1,
        state: int = 32,
        conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        max_length: int = 50,
        ssm_init: str = "recbole",
        hidden: int | None = None,
        kernel: str = "auto",
        readout: str = "wanted",
    ) -> None:
        super().__init__()
        check_sizes(max_length, num_layers, hidden, readout)
        self.dim, self.num_layers, self.state, self.conv, self.expand = dim, num_layers, state, conv, expand
        self.dropout, self.max_length, self.ssm_init, self.hidden = dropout, max_length, ssm_init, hidden
        self.kernel, self.readout = kernel, readout
        self.before, self.drop = nn.LayerNorm(dim, NORM_EPS), Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(Mamba(dim, state, conv, expand, ssm_init, kernel), dim, hidden or 4 * dim, dropout, num_layers > 1)
            for _ in range(num_layers)
        )

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise_layers(self)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens, or of those wanted.

        Raises:
            ValueError: the item table has another width.
        """
        check_width(items, self.dim)
        at = wanted(batch, self.readout)
        start = F.pad(batch.lengths.cumsum(0), (1, 0))
        x = self.before(self.drop(items.embed(batch.flat_ids)))  # (T, D)
        for index, layer in enumerate(self.layers):
            x = layer(x, start, at if index == self.num_layers - 1 else None)
        return laid_out(batch, x, at)


class Layer(nn.Module):
    """A mixer of tokens with norm, dropout and feed-forward part behind it, and an optional residual around it.

    Args:
        mixer: called with tokens (S, D), what it knows of their rows, and ``at`` (Q,) or None, the tokens it must
            answer for; None are all T of the rows, which come first among the S.
        hidden: width inside the feed-forward part.
    """

    def __init__(self, mixer: nn.Module, dim: int, hidden: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.mixer, self.residual, self.dropout = mixer, residual, Dropout(dropout)
        self.norm, self.feed_norm = nn.LayerNorm(dim, NORM_EPS), nn.LayerNorm(dim, NORM_EPS)
        self.feed = FeedForward(dim, hidden, dropout, "gelu")

    def forward(self, x: Tensor, rows: Any, at: Tensor | None) -> Tensor:
        """(T, D) or, at some tokens, (Q, D)."""
        y = self.dropout(self.mixer(x, rows, at))
        if self.residual:
            y = y + (x[: len(y)] if at is None else x[at])
        y = self.norm(y)
        return self.feed_norm(self.dropout(self.feed(y)) + y)


def initialise_layers(module: nn.Module) -> None:
    """RecBole's start: N(0, 0.02) and zero biases for linear layers, the rest as torch or the block itself sets it."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.LayerNorm, nn.Conv1d, nn.GRU)):
            layer.reset_parameters()
    for block in module.modules():
        if isinstance(block, Mamba):
            block.reset_parameters()


def check_sizes(max_length: int, num_layers: int, hidden: int | None, readout: str) -> None:
    """Raise ValueError for a size that cannot be, or an unknown ``readout``."""
    if max_length < 1 or num_layers < 1 or (hidden is not None and hidden < 1):
        raise ValueError(
            f"max_length, num_layers and hidden must be >= 1, found {max_length}, {num_layers} and {hidden}"
        )
    if readout not in READOUTS:
        raise ValueError(f"readout must be one of {', '.join(READOUTS)}, found {readout!r}")


def check_width(items: ItemTable, dim: int) -> None:
    """Raise ValueError unless the item table has the encoder's width."""
    if items.dim != dim:
        raise ValueError(f"the item table has width {items.dim}, the encoder {dim}: give both the same dim")


def wanted(batch: Batch, readout: str) -> Tensor | None:
    """The flat tokens (Q,) to answer for, or None for all of them."""
    few = readout == "wanted" and len(batch.wanted_tokens) < len(batch.flat)
    return batch.wanted_tokens if few else None


def laid_out(batch: Batch, states: Tensor, at: Tensor | None) -> Encoded:
    """The answer from the states (Q, D) of the tokens ``at``, zero elsewhere, or from those (T, D) of all."""
    if at is None:
        return Encoded(batch, states)
    tokens = states.new_zeros(len(batch.flat), states.shape[1])
    return Encoded(batch, tokens.index_copy(0, at, states))
