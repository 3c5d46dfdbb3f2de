"""What item tables share: their rows in blocks, and the error for a row that they do not have."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def blocks_of(num_items: int, size: int | None) -> Iterator[slice]:
    """The item rows 1..N in consecutive slices of ``size`` (default: all at once)."""
    step = size or max(num_items, 1)
    for first in range(1, num_items + 1, step):
        yield slice(first, min(first + step, num_items + 1))


def no_row(ids: Tensor, num_items: int, extra: int, remedy: str) -> ValueError:
    """The error for rows ``ids`` beyond a table; ``remedy`` is the table with room for one more."""
    return ValueError(
        f"rows up to {int(ids.max())} are asked for, but the table has {num_items} items and {extra} rows behind them: "
        f"targets that write a mask token need one such row, {remedy}"
    )
