"""Several item tables as one: their vectors add up (ids + text)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from recsys.data.vectors import Vectors
from recsys.hooks import PartList, bind
from recsys.protocols import Context, Encoder, ItemTable


class SumItems(nn.Module):
    """The sum of tables of one width, at the input and at the output.

    Every table keeps its own ``scale``; give all the same, or what is read is not what is scored. Each has its own
    input-only rows, which add up too.

    Args:
        tables: such as ``[IdItems(64), TextItems(64, vectors)]``.

    Raises:
        ValueError: there is no table, or they differ in width or in input-only rows.
    """

    def __init__(self, tables: Sequence[ItemTable]) -> None:
        super().__init__()
        if not tables:
            raise ValueError(
                "SumItems needs at least one table, such as SumItems([IdItems(64), TextItems(64, vectors)])"
            )
        for name in ("dim", "extra"):
            found = [getattr(table, name, 0) for table in tables]
            if len(set(found)) > 1:
                raise ValueError(f"the tables of a sum must have the same {name}, found {found}")
        self.tables = PartList(tables)
        self.dim: int = tables[0].dim
        self.extra: int = getattr(tables[0], "extra", 0)
        self.num_items = 0

    def bind(self, context: Context) -> None:
        """Bind each table, in order."""
        self.num_items = context.num_items
        for table in self.tables:
            bind(table, context)

    def refresh(self, encoder: Encoder, epoch: int) -> None:
        """Let those tables be made whose vectors an encoder makes."""
        for table in self.tables:
            if hasattr(table, "refresh"):
                table.refresh(encoder, epoch)

    def add_items(self, ids: Sequence[Any], vectors: Vectors | None = None) -> None:
        """Further items in every table, from ``vectors`` or from the folder that each table has.

        Raises:
            ValueError: a table learns a vector per item, and has none for items that training never saw.
        """
        unable = [type(table).__name__ for table in self.tables if not hasattr(table, "add_items")]
        if unable:
            raise ValueError(f"{unable[0]} in this sum has no vectors for items that training never saw")
        for table in {id(table): table for table in self.tables}.values():  # one may be in the sum twice
            table.add_items(ids, vectors)  # type: ignore[operator]
        self.num_items += len(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...)."""
        return _sum([table.embed(ids) for table in self.tables])

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...)."""
        return _sum([table.output(ids) for table in self.tables])

    def blocks(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, (n, D) output vectors) in blocks of ``size`` rows (default: all at once)."""
        step = size or max(self.num_items, 1)
        for same in zip(*(table.blocks(step) for table in self.tables), strict=True):
            yield same[0][0], _sum([vectors for _, vectors in same])


def _sum(vectors: list[Tensor]) -> Tensor:
    total = vectors[0]
    for more in vectors[1:]:
        total = total + more
    return total
