"""The learnable part of SRA-CL (arXiv 2503.04162): which neighbours a positive is mixed from, by attention over texts.

Legend: B histories, R distinct neighbours, k neighbours of each, H width of the text vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN, SLOPE = 1.414, 0.2


class Synthesiser(nn.Module):
    """How much each neighbour counts in the mixture: attention over text vectors (eqs. 6, 7).

    e_qj = LeakyReLU(a^T [W h_q || W h_j]), p_q = softmax_j(e_qj). As a splits into a1 and a2, a vector enters as
    (W^T a1) . h or (W^T a2) . h, which is how it is computed here: no vector is projected. It also means that the order
    of a set of neighbours is the same for every query, that of (W^T a2) . h. With vectors of length 1 the shares start
    almost equal (the largest of ten is .11); the released code takes vectors as their encoder gives them (measured on
    texts: .19 at length 8, .31 at 16, .49 at 30).

    Args:
        text_dim: width H of the text vectors.
        dim: width of W h.
        dropout: of the weights while training; the kept ones are scaled up, so they need not sum to 1.

    Raises:
        ValueError: an argument outside of its range.
    """

    def __init__(self, text_dim: int, dim: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        if text_dim < 1 or dim < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"text_dim and dim must be at least 1, dropout in 0..1 without 1; found {text_dim}, {dim}, {dropout}"
            )
        self.text_dim, self.dim, self.dropout = text_dim, dim, dropout
        self.project = nn.Parameter(torch.empty(dim, text_dim))
        self.attention = nn.Parameter(torch.empty(1, 2 * dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform with gain 1.414, as in the released code."""
        nn.init.xavier_uniform_(self.project, GAIN)
        nn.init.xavier_uniform_(self.attention, GAIN)

    def forward(self, own: Tensor, texts: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
        """(B, k) weights: of queries ``own`` (B, H) their neighbours ``texts[index]``, ``index`` (B, k) into (R, H)."""
        first, second = (self.attention.view(2, self.dim) @ self.project).unbind()  # (H,) each
        scores = F.leaky_relu((own @ first)[:, None] + (texts @ second)[index], SLOPE)
        shares = scores.softmax(1)
        if self.training and self.dropout:
            kept = torch.rand(shares.shape, generator=generator, device=shares.device) >= self.dropout
            shares = shares * kept / (1 - self.dropout)
        return shares
