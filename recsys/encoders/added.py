"""An encoder that reads more of each item than the item table says: further tables are added to the input vectors.

    input(i) = items.embed(i) + sum of table.embed(i) over the further tables

What is scored, or generated, stays the item table's. LIGER adds projected text vectors to the codes that it generates
(arXiv 2411.18814); ids can be added the same way. Where what is scored may change as well, ``SumItems`` is simpler.
Legend: B histories, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.encoders.rearec import LATENT
from recsys.encoders.tokens import TokenMemory
from recsys.hooks import PartList, bind, member
from recsys.protocols import Context, Encoded, Encoder, ItemTable


class AddedInputs(nn.Module):
    """An encoder with further tables among its inputs.

    Args:
        encoder: what is wrapped; one that reads ``items.embed``.
        added: item tables as wide as the encoder.

    Raises:
        ValueError: a table has another width, or the encoder reads code tokens, to which nothing would be added.
    """

    def __init__(self, encoder: Encoder, added: Sequence[ItemTable]) -> None:
        super().__init__()
        if TokenMemory in member(encoder, "gives"):
            raise ValueError(
                f"{type(encoder).__name__} reads the code tokens of items and not their input vectors, so what is "
                "added would never be read: use an encoder of items, such as SASRec"
            )
        for table in added:
            if table.dim != encoder.dim:
                raise ValueError(f"{type(table).__name__} has dim={table.dim}, the encoder dim={encoder.dim}")
        self.encoder, self.added = encoder, PartList(added)
        self.sees, self.dim, self.max_length = encoder.sees, encoder.dim, encoder.max_length
        self.longest = member(encoder, "longest")
        self.newest_only: bool = member(encoder, "newest_only")
        self.needs: frozenset[str] = member(encoder, "needs")
        self.gives: frozenset[type] = member(encoder, "gives")

    @property
    def item_tables(self) -> list[ItemTable]:
        """The further tables, which get rows for items that are added to the catalogue."""
        return list(self.added)

    def bind(self, context: Context) -> None:
        """Initialise the wrapped encoder and the further tables (from torch's seeded generator)."""
        bind(self.encoder, context)
        for table in self.added:
            bind(table, context)

    def forward(self, batch: Batch, items: ItemTable) -> Encoded:
        """What the wrapped encoder makes of the sums."""
        return self.encoder(batch, _Summed(items, list(self.added)))


class _Summed:
    """An item table whose input vectors are sums with those of others."""

    def __init__(self, items: Any, added: list[Any]) -> None:
        self._items, self._added = items, added

    def embed(self, ids: Tensor) -> Tensor:
        found: Tensor = self._items.embed(ids)
        for table in self._added:
            found = found + table.embed(ids.masked_fill(ids >= LATENT, PAD))  # thoughts (ReaRec) are no items
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._items, name)
