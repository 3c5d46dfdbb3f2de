"""SIGMA: a Mamba block run on a history and on its partly reversed copy, gated, with a short-term GRU beside it
(Liu et al., AAAI 2025, arXiv 2408.11451; the equations are those of the authors' code, not of the paper's text).

    u1 = x + W1 x + b1,  u2 = x' + W2 x' + b2            x' is x with all but the newest ``keep`` items reversed
    g1 = Drop(S(u1) + G(u1)),  g2 = Drop(S(u2) + G(g1))  S(v) = Ws SiLU(v) + bs,  G(v) = Wg sigmoid(v) + bg
    z = a1 (M * g1 + M) + a2 (M' * g2 + M') + a3 GRU(conv(x))        M = Mamba(x), M' = Mamba(x'), one set of weights
    out = Wp z + bp

and around it the layers of :mod:`recsys.encoders.mamba4rec`. The reversed pass and the convolution read later items,
so only the last position of an input can be trained (``LastItem``). ``gate_cross="repo"`` (default) feeds the finished
gate g1 to G in g2; ``"clean"`` feeds u2.

What we do differently: all but the newest ``keep`` *real* items are reversed, where the authors' code reverses the
first positions of the padded row (``benchmarks/quality/released.py`` has that); padding is never scored, and the
convolution sees zeros behind a row's end, so padding has no effect.

Legend: B histories, L = ``max_length``, T real tokens, S tokens with padding that is read, D width, Q wanted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.encoders.mamba4rec import (
    NORM_EPS,
    Layer,
    check_sizes,
    check_width,
    initialise_layers,
    laid_out,
    wanted,
)
from recsys.nn.dropout import Dropout
from recsys.nn.gru import Steps, run_gru
from recsys.nn.mamba import Mamba
from recsys.protocols import Context, Encoded, ItemTable

GATES = ("repo", "clean")
MIXING = (0.8, 0.1, 0.1)  # start of the scalars before the forward, the reversed and the recurrent branch


class SIGMA(nn.Module):
    """Histories to states by gated Mamba layers that read them in two orders.

    Args:
        dim: width D, the same as the item table's (``IdItems(dim, scale=False)`` in the published recipe).
        state, conv, expand: sizes of the Mamba block, see :class:`recsys.nn.mamba.Mamba`.
        dropout: on the embeddings and behind each sub-layer; ``gate_dropout`` on the gates.
        max_length: longest history that batches are cut to.
        keep: newest items that are not reversed; ``max_length`` reverses none.
        gate_cross: see above.
        ssm_init: "recbole", with which the published numbers were made, or "mamba", the block's own; see there.
        readout: "wanted" computes the end of the last layer only for ``batch.wanted_tokens`` and leaves zeros
            elsewhere; "all" for all tokens. The wanted states are the same.
        kernel: of the scan, see :func:`recsys.nn.scan.selective_scan`.
        hidden: width inside the feed-forward part (default: 4 D).

    Raises:
        ValueError: ``keep`` is negative or above ``max_length``, a size is below 1, or a name of a choice is unknown.
    """

    sees = "all"
    retired: ClassVar = {  # arguments that were there: what the part does now, and what to do about another value
        "flip": ("valid", "its class is PaddedSIGMA of benchmarks/quality/released.py now: train again with that one")
    }

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 1,
        state: int = 32,
        conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        gate_dropout: float = 0.2,
        max_length: int = 50,
        keep: int = 5,
        gate_cross: str = "repo",
        ssm_init: str = "recbole",
        readout: str = "wanted",
        kernel: str = "auto",
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(max_length, num_layers, hidden, readout)
        if not 0 <= keep <= max_length:
            raise ValueError(
                f"keep, the newest items that are not reversed, must lie in 0..max_length={max_length}, found {keep}: "
                "lower keep, or raise max_length"
            )
        self.dim, self.num_layers, self.state, self.conv, self.expand = dim, num_layers, state, conv, expand
        self.dropout, self.gate_dropout, self.max_length, self.keep = dropout, gate_dropout, max_length, keep
        self.gate_cross, self.ssm_init, self.readout = gate_cross, ssm_init, readout
        self.kernel, self.hidden = kernel, hidden
        self.before, self.drop = nn.LayerNorm(dim, NORM_EPS), Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(
                GatedMamba(Mamba(dim, state, conv, expand, ssm_init, kernel), gate_dropout, gate_cross),
                dim,
                hidden or 4 * dim,
                dropout,
                num_layers > 1,
            )
            for _ in range(num_layers)
        )

    def bind(self, context: Context) -> None:
        """Initialise all weights (from torch's generator, which the caller seeds)."""
        initialise_layers(self)
        for block in self.modules():
            if isinstance(block, GatedMamba):
                block.mixing.data.copy_(torch.tensor(MIXING))

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States of all real tokens, or of those wanted.

        Raises:
            ValueError: the item table has another width.
        """
        check_width(items, self.dim)
        at = wanted(batch, self.readout)
        x = items.embed(batch.flat_ids)  # (T, D)
        if not len(x):
            return Encoded(batch, x)
        x, rows = self.laid(x, batch)
        return laid_out(batch, self.layers[-1](x, rows, at), at)

    def laid(self, x: Tensor, batch: Batch) -> tuple[Tensor, Rows]:
        """Input of the last layer (S, D), real tokens (T, D) first, and the rows in it."""
        x, rows = self.before(self.drop(x)), valid_rows(batch.lengths, self.keep)
        for layer in self.layers[:-1]:
            x = layer(x, rows, None)
        return x, rows


@dataclass(frozen=True)
class Rows:
    """Where T tokens, row after row, find what they read among S tokens, of which they are the first T."""

    start: Tensor  # (B + 1,) row r is tokens start[r] to start[r + 1]
    flipped: Tensor  # (T,) into S: the token that stands there in the reversed copy
    around: Tensor  # (T, 3) into S + 1: the tokens that the convolution sees; S is a zero vector
    steps: Steps


def valid_rows(lengths: Tensor, keep: int) -> Rows:
    """Rows without padding: all but the last ``keep`` tokens of each are reversed."""
    start, position, last = positions_of_tokens(lengths)
    token = torch.arange(len(position), device=lengths.device)
    head = (last + 1 - keep).clamp(min=0)
    flipped = token + torch.where(position < head, head - 1 - 2 * position, 0)
    around = torch.stack([token - 1, token, token + 1], dim=1)
    around[:, 0].masked_fill_(position == 0, len(token))
    around[:, 2].masked_fill_(position == last, len(token))
    return Rows(start, flipped, around, Steps.of(lengths))


def positions_of_tokens(lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row starts (B + 1,), and of each token its position and that of its row's last token (T,)."""
    start = F.pad(lengths.cumsum(0), (1, 0))
    token = torch.arange(int(start[-1]), device=lengths.device)
    return start, token - start[:-1].repeat_interleave(lengths), (lengths - 1).repeat_interleave(lengths)


class GatedMamba(nn.Module):
    """The mixer of SIGMA: forward and reversed pass with their gates, and the recurrent branch.

    Args:
        mamba: the block that both passes share.
        gate_dropout: on the gates.
        gate_cross: "repo" or "clean", see the head of this file.

    Raises:
        ValueError: an unknown ``gate_cross``.
    """

    def __init__(self, mamba: Mamba, gate_dropout: float, gate_cross: str) -> None:
        super().__init__()
        if gate_cross not in GATES:
            raise ValueError(f"gate_cross must be one of {', '.join(GATES)}, found {gate_cross!r}")
        dim = mamba.dim
        self.mamba, self.gate_cross, self.gate_drop = mamba, gate_cross, Dropout(gate_dropout)
        self.dense, self.flipped_dense = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.silu_gate, self.sigmoid_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.conv, self.gru = nn.Conv1d(dim, dim, 3, padding=1), nn.GRU(dim, dim, bias=False)
        self.mixing = nn.Parameter(torch.tensor(MIXING))
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rows: Rows, at: Tensor | None) -> Tensor:
        """Outputs (T, D) of the tokens of ``rows``, or (Q, D), from tokens ``x`` (S, D)."""
        count = len(rows.flipped)
        ahead, back = x[:count], x.index_select(0, rows.flipped)
        start = torch.cat([rows.start, rows.start[1:] + count])  # both passes are one call on 2 B rows
        at_both = None if at is None else torch.cat([at, at + count])
        forward, backward = self.mamba(torch.cat([ahead, back]), start, at_both).chunk(2)
        recent = run_gru(self.gru, self._convolve(x, rows), rows.steps)
        if at is not None:
            ahead, back, recent = (part.index_select(0, at) for part in (ahead, back, recent))
        first, second = self._gates(ahead, back)
        a, b, c = self.mixing
        return self.projection(a * (forward * first + forward) + b * (backward * second + backward) + c * recent)

    def _gates(self, ahead: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        """The gates of both passes (Q, D) each."""
        u1, u2 = ahead + self.dense(ahead), back + self.flipped_dense(back)
        first = self.gate_drop(self._sum(u1, u1))
        return first, self.gate_drop(self._sum(u2, first if self.gate_cross == "repo" else u2))

    def _sum(self, by_silu: Tensor, by_sigmoid: Tensor) -> Tensor:
        return self.silu_gate(F.silu(by_silu)) + self.sigmoid_gate(torch.sigmoid(by_sigmoid))

    def _convolve(self, x: Tensor, rows: Rows) -> Tensor:
        """The dense convolution (T, D) over each token and its neighbours, as one product."""
        kernel = self.conv.weight.transpose(1, 2).flatten(1)  # (D, 3 D)
        seen = F.pad(x, (0, 0, 0, 1)).index_select(0, rows.around.flatten())
        return F.linear(seen.view(len(rows.around), -1), kernel, self.conv.bias)
