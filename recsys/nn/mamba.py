"""The Mamba block: a gated selective state space model over ragged rows (Gu & Dao 2023, arXiv 2312.00752).

in_proj gives a main path and a gate; the main path goes through a short causal convolution and SiLU, yields the step
sizes, B and C of each token, and through the scan of :mod:`recsys.nn.scan`; out = out_proj(scan * SiLU(gate)).
Parameter names and shapes are those of state-spaces/mamba, so its tensors load as they are. What we do differently:
rows lie behind one another without padding and the state and the convolution start anew at each (theirs has no such
reset), and step sizes and the scan are float32 under autocast too (as in theirs, where it is the kernel's doing).

The two initialisations are far apart. ``"mamba"`` is the authors': step sizes log-uniform in [0.001, 0.1].
``"recbole"`` is what Mamba4Rec and SIGMA train: RecBole's hook sets every linear layer to N(0, 0.02) with zero bias,
those of the step sizes included, so that all begin at softplus(0) = 0.69 and state n halves every 1 / (n + 1) tokens.

Legend: T tokens of all rows, R rows, D width, E = expand * D channels, N states per channel, W convolution width,
Q tokens asked for, K = ceil(D / 16) rank of the step sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.nn.convolution import causal_silu
from recsys.nn.kernels.available import check_kernel
from recsys.nn.scan import selective_scan

INITS = ("recbole", "mamba")
SLOWEST, FASTEST, FLOOR = 1e-3, 1e-1, 1e-4  # step sizes of the "mamba" initialisation


class Memory(NamedTuple):
    """What one-token-at-a-time work carries on for B rows."""

    recent: Tensor  # (B, W - 1, E) inputs of the convolution, oldest first
    state: Tensor  # (B, E, N)


class Mamba(nn.Module):
    """One Mamba block, (T, D) to (T, D). Autocast may run around it; its parameters should stay float32 (or float64).

    With parameters in half precision (``model.half()``) all but the scan is computed in it: the scan converts its
    inputs to float32, with one warning per process, and what it gives goes back to half.

    Args:
        dim: width D.
        state: N, states per channel.
        conv: W, width of the causal convolution.
        expand: E / D.
        init: "recbole" or "mamba", see above.
        kernel: of the scan, see :func:`recsys.nn.scan.selective_scan`.

    Raises:
        ValueError: a size below 1, or an unknown name for a choice.
    """

    def __init__(
        self, dim: int, state: int = 32, conv: int = 4, expand: int = 2, init: str = "recbole", kernel: str = "auto"
    ) -> None:
        super().__init__()
        if min(dim, state, conv, expand) < 1:
            raise ValueError(f"dim, state, conv and expand must be >= 1, found {dim}, {state}, {conv} and {expand}")
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, found {init!r}")
        self.dim, self.state, self.conv, self.expand = dim, state, conv, expand
        self.init, self.kernel = init, check_kernel(kernel)
        self.channels, self.rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * self.channels, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, conv, groups=self.channels, padding=conv - 1)
        self.x_proj = nn.Linear(self.channels, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.channels)
        self.A_log = nn.Parameter(torch.empty(self.channels, state))
        self.D = nn.Parameter(torch.empty(self.channels))
        self.out_proj = nn.Linear(self.channels, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set all weights anew by ``init``, from torch's global generator.

        An encoder's ``bind`` calls this last: :func:`recsys.nn.initialise.initialise` also overwrites A_log and the
        convolution.
        """
        for layer in (self.in_proj, self.conv1d, self.x_proj, self.dt_proj, self.out_proj):
            layer.reset_parameters()
        self.A_log.copy_(torch.arange(1.0, self.state + 1).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        if self.init == "recbole":
            for linear in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
                nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(self.dt_proj.bias)
        else:
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            span = math.log(SLOWEST), math.log(FASTEST)
            sizes = torch.empty(self.channels).uniform_(*span).exp().clamp_(min=FLOOR)
            self.dt_proj.bias.copy_(sizes + torch.log(-torch.expm1(-sizes)))  # the inverse of softplus

    def forward(self, tokens: Tensor, start: Tensor, at: Tensor | None = None) -> Tensor:
        """Outputs (T, D), or (Q, D) if only those of some tokens are asked for.

        Args:
            tokens: (T, D), row after row without padding, oldest token first.
            start: (R + 1,) int64, row r is tokens start[r] to start[r + 1]; empty rows are fine. Of a batch:
                ``F.pad(batch.lengths.cumsum(0), (1, 0))``.
            at: (Q,) int64 flat tokens whose outputs are wanted: the gate, the output projection and the read-out of
                the scan then run on these alone, with the same numbers but for rounding.
        """
        main, gate = self.in_proj.weight.chunk(2)
        x = causal_silu(F.linear(tokens, main).to(self.A_log.dtype), *self._taps(), start, self.kernel)
        delta, b, c = self._select(x)
        y = selective_scan(x, delta, -self.A_log.exp(), b, c, self.D, start, self.kernel, at)
        gated = y * F.silu(F.linear(tokens if at is None else tokens[at], gate))
        return self.out_proj(gated.to(self.out_proj.weight.dtype))

    def initial(self, batch_size: int) -> Memory:
        """The memory of rows that have seen nothing."""
        like = self.A_log
        return Memory(
            like.new_zeros(batch_size, self.conv - 1, self.channels),
            like.new_zeros(batch_size, self.channels, self.state),
        )

    def step(self, token: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next token (B, D) of each row: its output (B, D), and the memory behind it."""
        main, gate = self.in_proj(token).chunk(2, dim=-1)  # (B, E) each
        window = torch.cat([memory.recent, main.to(self.A_log.dtype).unsqueeze(1)], dim=1)  # (B, W, E)
        taps, bias = self._taps()
        x = F.silu((window * taps.T).sum(1) + bias)
        delta, b, c = self._select(x)
        decay = torch.exp(delta.unsqueeze(2) * -self.A_log.exp())  # (B, E, N)
        state = decay * memory.state + (delta * x).unsqueeze(2) * b.unsqueeze(1)
        y = (state * c.unsqueeze(1)).sum(2) + self.D * x
        return self.out_proj(y * F.silu(gate)), Memory(window[:, 1:], state)

    def _taps(self) -> tuple[Tensor, Tensor]:
        """Weights (E, W) and bias (E,) of the convolution."""
        bias = self.conv1d.bias
        assert bias is not None
        return self.conv1d.weight.squeeze(1), bias

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes (T, E), B (T, N) and C (T, N), in the parameters' precision whatever autocast says."""
        dtype = self.A_log.dtype
        rank, b, c = self.x_proj(x).to(dtype).split([self.rank, self.state, self.state], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            delta = F.softplus(self.dt_proj(rank))
        return delta, b, c
