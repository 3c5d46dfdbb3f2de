"""A learned vector per item.

Legend: N items (rows 1..N; row 0 is padding and is neither looked up nor scored), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.items.local import LocalItems
from recsys.items.rows import no_row
from recsys.nn.initialise import check_scheme, initialise_table
from recsys.protocols import Context


class IdItems(LocalItems):
    """A learned vector per item, tied: the same table is read at the input and scored at the output.

    With ``tied=False`` a second table is scored, and with it recommended, exported, indexed and compared; what is read
    is the first alone. gSASRec's authors train that by default and report that it converges better (arXiv 2308.07192,
    ``reuse_item_embeddings=False``); it costs another N D numbers, and a row that is no target is only pushed away.

    Args:
        dim: width D.
        scale: multiply *input* vectors by sqrt(D), as the SASRec authors and most ports do; RecBole and gSASRec do
            not, and that is a different model.
        init: see :mod:`recsys.nn.initialise`; of both tables.
        extra: input-only rows behind the items (a mask token, an end token) at least; never scored among the items. A
            recommender asks for those that its parts need.
        tied: one table for both, or two.

    Raises:
        ValueError: a number out of range.
    """

    _learns_rows = True

    def __init__(
        self, dim: int = 64, scale: bool = True, init: str = "normal", extra: int = 0, tied: bool = True
    ) -> None:
        super().__init__()
        if dim < 1 or extra < 0:
            raise ValueError(f"dim must be at least 1, extra at least 0; found {dim} and {extra}")
        self.dim, self.scale, self.init, self.extra, self.tied = dim, scale, check_scheme(init), extra, tied
        self.num_items = 0
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.output_weight = None if tied else nn.Parameter(torch.empty(0, dim))

    def bind(self, context: Context) -> None:
        """Make the tables for ``context.num_items`` items (from torch's generator, which the caller seeds)."""
        self.num_items = context.num_items
        self.weight = self._made(1 + self.num_items + self.extra)
        if not self.tied:
            self.output_weight = self._made(1 + self.num_items)

    def _made(self, rows: int) -> nn.Parameter:
        weight = torch.empty(rows, self.dim)
        initialise_table(weight, self.init)
        weight[0] = 0.0
        return nn.Parameter(weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...).

        Raises:
            ValueError: there is no such row (on the CPU; a GPU ends with an error of its own).
        """
        try:
            vectors = F.embedding(ids, self.weight)
        except IndexError as error:
            raise no_row(ids, self.num_items, self.extra) from error
        return vectors * self.dim**0.5 if self.scale else vectors

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...); of an input-only row its input vector, for who scores it."""
        if self.output_weight is None:
            return F.embedding(ids, self.weight)
        if not self.extra:
            return F.embedding(ids, self.output_weight)
        behind = ids > self.num_items
        own = F.embedding(ids.masked_fill(~behind, 0), self.weight)
        return torch.where(behind[..., None], own, F.embedding(ids.masked_fill(behind, 0), self.output_weight))

    def _vectors(self, rows: slice) -> Tensor:
        return (self.weight if self.output_weight is None else self.output_weight)[rows]
