"""Several item tables as one: their vectors add up (ids + text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from recsys.hooks import PartList, bind
from recsys.items.local import LocalItems, check_table, vectors_of
from recsys.protocols import Context, ItemTable


class SumItems(LocalItems):
    """The sum of tables of one width, at the input and at the output.

    Every table keeps its own ``scale``; give all the same, or what is read is not what is scored. Each has input-only
    rows of its own, which add up too: as many as the table that was given the most.

    Args:
        tables: such as ``[IdItems(64), TextItems(64, vectors)]``.

    Raises:
        ValueError: there is no table, or they differ in width.
        TypeError: one is not an item table.
    """

    def __init__(self, tables: Sequence[ItemTable]) -> None:
        super().__init__()
        if not tables:
            raise ValueError(
                "SumItems needs at least one table, such as SumItems([IdItems(64), TextItems(64, vectors)])"
            )
        for table in tables:
            check_table(table)
        found = [table.dim for table in tables]
        if len(set(found)) > 1:
            raise ValueError(f"the tables of a sum must have the same dim, found {found}")
        self.tables = PartList(tables)
        self.dim: int = tables[0].dim
        self.num_items = 0
        self.reserve(max(table.extra for table in tables))

    def reserve(self, rows: int) -> None:
        """Have room for ``rows`` input-only rows in every table."""
        for table in self.tables:
            table.reserve(rows)
        self.extra = max(self.extra, rows)

    def bind(self, context: Context) -> None:
        """Bind each table, in order."""
        self.num_items = context.num_items
        for table in self.tables:
            bind(table, context)

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Any = None) -> None:
        """Further items in every table, from ``vectors`` or the folder that each table has, or from ``features``.

        Raises:
            ValueError: a table learns a vector per item, and has none for items that training never saw.
        """
        unable = [type(table).__name__ for table in self.tables if not hasattr(table, "add_items")]
        if unable:
            raise ValueError(f"{unable[0]} in this sum has no vectors for items that training never saw")
        for table in {id(table): table for table in self.tables}.values():  # one may be in the sum twice
            table.add_items(ids, vectors, features)  # type: ignore[operator]
        self.num_items += len(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors (..., D) of item rows (...)."""
        return _sum([table.embed(ids) for table in self.tables])

    def output(self, ids: Tensor) -> Tensor:
        """Output vectors (..., D) of item rows (...)."""
        return _sum([table.output(ids) for table in self.tables])

    def _vectors(self, rows: slice) -> Tensor:
        return _sum([vectors_of(table, rows) for table in self.tables])


def _sum(vectors: list[Tensor]) -> Tensor:
    total = vectors[0]
    for more in vectors[1:]:
        total = total + more
    return total
