"""A head per level of a semantic id, behind any encoder (RPG).

    z_m = h + SiLU(W_m h + b_m),    normalised to length 1

for each of M levels, side by side: states are M D wide. With :class:`recsys.items.parallel.ParallelItems` an item's
score is the sum over levels of z_m with the vector of the item's code, an inner product of M D numbers.

``CodeItems`` under the plain encoder is the same model without heads (all z_m are h), D numbers wide, and ranks in a
quarter of the time (``python benchmarks/speed/generate.py --part rpg``). As in the authors' code W begins at zero and b
at random.
Reference: Hou et al., KDD 2025 (arXiv 2506.05781), section on parallel prediction; facebookresearch/RPG_KDD2025.
Legend: B histories, T tokens, Q wanted ones, M levels, D width of the encoder.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.hooks import bind, member
from recsys.protocols import Context, Encoded, Encoder, ItemTable


class ParallelHeads(nn.Module):
    """An encoder whose states have one head per level.

    Args:
        encoder: what is wrapped.
        levels: M, the codes of an item.

    Raises:
        ValueError: ``levels`` is below 1.
    """

    def __init__(self, encoder: Encoder, levels: int) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels must be at least 1, found {levels}")
        self.encoder, self.levels = encoder, levels
        self.sees, self.width, self.dim = encoder.sees, encoder.dim, levels * encoder.dim
        self.max_length = encoder.max_length
        self.longest = member(encoder, "longest")
        self.newest_only: bool = member(encoder, "newest_only")
        self.needs: frozenset[str] = member(encoder, "needs")
        self.gives: frozenset[type] = member(encoder, "gives")
        self.weight = nn.Parameter(torch.zeros(self.dim, self.width))
        self.bias = nn.Parameter(torch.zeros(self.dim))

    def bind(self, context: Context) -> None:
        """Initialise the wrapped encoder, then the heads (from torch's seeded generator)."""
        bind(self.encoder, context)
        nn.init.zeros_(self.weight)
        nn.init.uniform_(self.bias, -(self.width**-0.5), self.width**-0.5)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """States (T, M D) of the real tokens, those of ``batch.wanted_tokens``; zero elsewhere."""
        encoded = self.encoder(batch, _Inputs(items, self.width))
        wanted = batch.wanted_tokens
        heads = self._heads(encoded.tokens[wanted])
        users = None if encoded.users is None else self._heads(encoded.users)
        if len(wanted) < len(encoded.tokens):
            return Wanted(encoded.batch, None, encoded.given, users, wanted, heads)
        return replace(encoded, tokens=heads, users=users)

    def _heads(self, hidden: Tensor) -> Tensor:
        """(Q, D) to (Q, M D)."""
        inner = F.silu(F.linear(hidden, self.weight, self.bias)).unflatten(1, (self.levels, self.width))
        return F.normalize(hidden[:, None] + inner, dim=2).flatten(1)


class Wanted(Encoded):
    """States (Q, D) of some tokens, wide ones: zeros of all others are laid out only if somebody reads ``tokens``.

    Targets, and the newest items of histories that are ranked, are looked up among the states that there are.
    """

    def __init__(
        self,
        batch: Batch,
        tokens: Tensor | None = None,
        given: tuple[Any, ...] = (),
        users: Tensor | None = None,
        rows: Tensor | None = None,
        values: Tensor | None = None,
    ) -> None:
        found = {"batch": batch, "given": given, "users": users, "rows": rows, "values": values}
        vars(self).update(found if tokens is None else {**found, "tokens": tokens})

    rows: Tensor  # (Q,) ascending, which of the flat tokens they are
    values: Tensor  # (Q, D)

    @cached_property
    def tokens(self) -> Tensor:  # type: ignore[override]
        """(T, D): all of them."""
        return self.values.new_zeros(len(self.batch.flat), self.values.shape[1]).index_copy(0, self.rows, self.values)

    @cached_property
    def user(self) -> Tensor:
        """(B, D), as of any encoder."""
        known = self.batch.lengths > 0
        if self.users is None and "tokens" not in vars(self) and torch.equal(self.rows, self.batch.last[known]):
            place = known.nonzero().squeeze(1)
            return self.values.new_zeros(len(self.batch), self.values.shape[1]).index_copy(0, place, self.values)
        return super().user

    def at_targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, targets and weights, as of any encoder."""
        if "tokens" not in vars(self) and batch.targets is not None:
            chosen = batch.flatten(batch.targets) > 0
            if torch.equal(self.rows, chosen.nonzero().squeeze(1)):
                _, targets, weights = Encoded(batch, self.rows.new_zeros(len(chosen), 1)).at_targets(batch)
                return self.values, targets, weights
        return super().at_targets(batch)


class _Inputs:
    """An item table as the wrapped encoder reads it: input vectors D wide."""

    def __init__(self, items: Any, dim: int) -> None:
        self._items, self.dim = items, dim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)
