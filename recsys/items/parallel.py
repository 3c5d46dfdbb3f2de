"""Items by their semantic ids, for states with a head per level: a code's vector meets the head of its level (RPG).

    embed(i) = (1/M) sum_m E[m, c_im]        score(u, i) = (1/temperature) sum_m z_m . E[m, c_im] / |E[m, c_im]|

with the same vectors E at the input and the output, normalised at the output alone. Scores of all items are made by
looking up the M K inner products of a user's heads with the codes, not by M D wide products.

Reference: Hou et al., KDD 2025 (arXiv 2506.05781); see :mod:`recsys.encoders.parallel`.
Legend: B users, N items (rows 1..N, 0 is padding), M levels, K codes of a level, V tokens, D width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.items.codes import CodeItems
from recsys.ranking.ties import best


class ParallelItems(CodeItems):
    """Vectors of codes under :class:`recsys.encoders.parallel.ParallelHeads`; ``dim`` is M D.

    Args:
        width: D, the width of the wrapped encoder.
        levels: M, the codes of an item.
        ids: folder of :class:`recsys.semantic_ids.table.SemanticIds`.
        temperature: divides the scores; the authors' values are .03 and .07.
        std: deviation of fresh vectors.

    Raises:
        ValueError: a number out of range, no folder is named, or its codes have another number of levels.
    """

    def __init__(
        self, width: int = 64, levels: int = 32, ids: str = "", temperature: float = 0.07, std: float = 0.02
    ) -> None:
        super().__init__(width, ids, tied=True, std=std)
        if levels < 1 or temperature <= 0:
            raise ValueError(f"levels >= 1 and temperature > 0 are needed, found {levels} and {temperature}")
        self.temperature, self.levels, self.dim = temperature, levels, levels * width

    def _take(self, codes: Tensor, sizes: Tensor) -> None:
        if codes.shape[1] != self.levels:
            raise ValueError(
                f"levels={self.levels}, but the semantic ids in {self.ids} have {codes.shape[1]} codes an item: give "
                "that number to ParallelItems and ParallelHeads"
            )
        super()._take(codes, sizes)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...): means over their codes."""
        return self._summed(ids, self.tokens) / self.levels

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., M D) of item rows (...), zero for padding."""
        vectors = F.embedding(self.token_table[ids], self._scaled()).flatten(-2)
        return vectors * (ids > 0)[..., None]

    def code_logits(self, hidden: Tensor, level: int) -> Tensor:
        """(..., K) products of the head of a level in ``hidden`` (..., M D) with the vectors of its K codes."""
        head = hidden.unflatten(-1, (self.levels, self.width))[..., level, :]
        found: Tensor = head @ self._scaled()[self.span(level)].T
        return found

    def code_tables(self, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each level its head (T, D) and output vectors (K, D)."""
        heads, vectors = hidden.unflatten(1, (self.levels, self.width)), self._scaled()
        return [(heads[:, level], vectors[self.span(level)]) for level in range(self.levels)]

    def scores(self, users: Tensor, metric: str = "dot", out: Tensor | None = None) -> Tensor:
        """(B, N) scores of ``users`` (B, M D) with all items, by looking up the logits of their codes."""
        if metric != "dot" or users.requires_grad:
            return super().scores(users, metric, out)
        logits = [self.code_logits(users, level) for level in range(self.levels)]
        first, last = users.new_zeros(len(users), 1), users.new_zeros(len(users), 1)
        table = torch.cat([first, *logits, last], 1).T.contiguous()
        found = F.embedding_bag(self.token_table[1:], table, mode="sum").T
        return found.contiguous() if out is None else out.copy_(found)

    @torch.no_grad()
    def topk(self, users: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The K = min(k, N) items with the best scores: (B, K) scores and (B, K) item rows; equal ones by row."""
        found = [best(self.scores(some), k) for some in users.split(256)]
        return torch.cat([values for values, _ in found]), torch.cat([columns + 1 for _, columns in found])

    def _vectors(self, rows: slice) -> Tensor:
        return self.output(torch.arange(rows.start, rows.stop, device=self.tokens.device))

    def _scaled(self) -> Tensor:
        return F.normalize(self.tokens, dim=1) / self.temperature
