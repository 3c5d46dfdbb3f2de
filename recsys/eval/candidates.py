"""Which items are ranked, if not all: those that training never saw, or a list.

Legend: n users of the part, N items (rows 1..N), C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import DataError

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pool:
    """The candidates of an evaluation, ascending, so that equal scores keep the order of the rows."""

    rows: np.ndarray  # (C,) int64 item rows
    num_items: int
    what: str
    outside: int  # targets of the part that are no candidates

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def places(self) -> np.ndarray:
        """(N+1,) int64: item row -> 1 + its column among the candidates, 0 for the others."""
        places = np.zeros(self.num_items + 1, dtype=np.int64)
        places[self.rows] = np.arange(1, len(self.rows) + 1)
        return places

    def columns(self, device: torch.device) -> Tensor:
        """(C,) the columns of the candidates in the scores of all items."""
        return torch.from_numpy(self.rows - 1).to(device)

    def items(self, places: np.ndarray) -> np.ndarray:
        """Item rows of ``places``, 0 for 0, in their shape and type."""
        found: np.ndarray = np.append(0, self.rows).astype(places.dtype)[places]
        return found

    def protocol(self) -> dict[str, Any]:
        """What a protocol says about them, with the hit rate that a random order has for one target."""
        count = f"{len(self):,} of {self.num_items:,} items, {self.what}"
        return {"candidates": count, "chance": f"hr@k = k/{len(self)}"}


def choose_pool(candidates: str | Sequence[Any] | np.ndarray, model: Any, part: HeldOut) -> Pool | None:
    """The items to rank of what :func:`recsys.eval.evaluate.evaluate` was asked for; None for all.

    Raises:
        ValueError: neither a known word, nor ids, nor a mask of the right shape.
        DataError: there is no candidate, an id is unknown, or no target of the part is among them.
    """
    num_items = len(part.item_counts) - 1
    if isinstance(candidates, str) and candidates == "all":
        return None
    if isinstance(candidates, str):
        if candidates != "cold":
            raise ValueError(f"candidates is 'all', 'cold', raw item ids or a mask by item row; found {candidates!r}")
        rows, what = np.flatnonzero(np.asarray(part.item_counts)[1:] == 0) + 1, "unseen in training"
        if not len(rows):
            raise DataError("training saw every item, so none is cold: split with recsys.data.cold.cold_items")
    else:
        rows, what = _rows(candidates, num_items, model), "given"
    _, target = part.targets(np.arange(len(part)))
    outside = int(np.count_nonzero(~np.isin(target, rows)))
    if outside == len(target):
        raise DataError(
            f"none of the {outside:,} targets of {part.name!r} is among the {len(rows):,} candidates: rank among all "
            "items, or hold out events with these"
        )
    return Pool(rows, num_items, what, outside)


def _rows(candidates: Sequence[Any] | np.ndarray, num_items: int, model: Any) -> np.ndarray:
    """(C,) distinct item rows, ascending, of a mask or of raw ids."""
    if isinstance(candidates, np.ndarray) and candidates.dtype == bool:
        if candidates.shape != (num_items + 1,):
            raise ValueError(
                f"a mask of candidates has one entry per row, ({num_items + 1},); found {candidates.shape}"
            )
        rows = np.flatnonzero(candidates[1:]) + 1
    else:
        rows = _known(candidates, getattr(model, "vocabulary", None), model)
    if not len(rows):
        raise DataError("candidates names no item: pass raw ids of items, a mask with some of them, or 'all'")
    return rows


def _known(ids: Sequence[Any] | np.ndarray, vocabulary: Vocabulary | None, model: Any) -> np.ndarray:
    if vocabulary is None:
        raise ValueError(f"{type(model).__name__} knows no raw ids: pass candidates as a mask (N+1,) bool by item row")
    rows = vocabulary.rows(ids)
    if (rows < 1).any():
        unknown = [one for one, row in zip(ids, rows.tolist(), strict=True) if row < 1]
        raise DataError(f"{len(unknown):,} of {len(rows):,} candidates are not in the catalogue, such as {unknown[:3]}")
    return np.unique(rows)
