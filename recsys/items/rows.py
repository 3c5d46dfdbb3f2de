"""What item tables share: the errors for rows that they do not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from recsys.errors import DataError
from recsys.ids.vectors import Vectors


def no_row(ids: Tensor, num_items: int, extra: int) -> ValueError:
    """The error for rows ``ids`` beyond a table."""
    return ValueError(
        f"rows up to {int(ids.max())} are read, but the table has {num_items} items and {extra} rows behind them. "
        "A Recommender makes room for the mask and end tokens of its parts; without one, call "
        "items.reserve(1), or items.reserve(2) for an end token too, before bind"
    )


def rows_for(ids: Sequence[Any], vectors: Vectors, width: int) -> np.ndarray:
    """(n, width) float32 vectors of items that are new to a table.

    Raises:
        DataError: one has none.
        ValueError: they are of another width.
    """
    if vectors.width != width:
        raise ValueError(f"the vectors of new items are {vectors.width} wide, those of the table {width}")
    rows = vectors.vocabulary.rows(ids)
    if (rows < 0).any():
        missing = [one for one, row in zip(ids, rows, strict=True) if row < 0]
        raise DataError(
            f"{len(missing):,} of {len(ids):,} new items have no vector, such as {missing[0]!r}: pass vectors= that "
            "hold all of them"
        )
    return np.asarray(vectors.array[rows], np.float32)
