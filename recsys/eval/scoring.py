"""Scores of a model for the users of a held-out part: matched by the ids of items and users, never by their number.

Legend: b users of a batch, N items (rows 1..N).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys.errors import DataError, not_fitted
from recsys.ids.catalogue import row_map
from recsys.recommenders.base import Ranker, Recommends, Scores
from recsys.recommenders.features import code_maps

if TYPE_CHECKING:
    from recsys.data.batch import Batch
    from recsys.data.cut import Cut
    from recsys.data.split import HeldOut, Split
    from recsys.ids.vocabulary import Vocabulary

REMEDY = "evaluate on a split of the data it was trained on, or fit the model on this one"


class Matched(Protocol):
    """A model whose items are matched with those of a held-out part."""

    model: Any
    part: Any  # HeldOut, or a whole Split
    num_items: int
    rows: np.ndarray | None  # (N+1,) the model's row of each item row of the part; None: the same
    device: torch.device


class Scorer:
    """Scores of a model for the users of a part (or of a whole split), in the columns of the model.

    ``rows`` (N+1,) is the model's row of each item row of the part, None where they are the same.

    Raises:
        TypeError: ``part`` is not a held-out part, or ``model`` does not score all items.
        ValueError: the model is not fitted.
        DataError: the two are over other items, or the part has no users or is damaged.
    """

    def __init__(self, model: Any, part: HeldOut | Split) -> None:
        split = getattr(part, "split", part)
        self.model, self.part = model, part
        self.num_items, self.rows = _same_items(model, getattr(split, "items", None), part.num_items)
        self.device = device_of(model)
        self.needs = frozenset(getattr(model, "needs", ()))
        whole: Any = split if hasattr(split, "user_features") else None
        of_events, of_users = code_maps(model, whole)
        self.codes = {"features": of_events, "user_features": of_users}
        self.knows_users = _same_users(getattr(model, "cut", None), getattr(split, "users", None))

    def lengths(self, index: np.ndarray) -> np.ndarray:
        """(n,) how many items of their histories the model reads of the users at ``index`` (n,) of a held-out part."""
        lengths: np.ndarray = self.part.history_lengths[index]  # type: ignore[union-attr]
        return lengths if self.model.max_length is None else np.minimum(lengths, self.model.max_length)

    def user_rows(self, index: np.ndarray) -> np.ndarray:
        """(n,) the user rows of the users at ``index`` (n,) of a held-out part."""
        rows: np.ndarray = self.part.users[index]  # type: ignore[union-attr,index]
        return rows

    def __call__(self, index: np.ndarray) -> Tensor:
        """(b, N) scores for the users at ``index`` of a held-out part, column j for row j + 1 of the model."""
        return self.ask(self.part.batch(index, self.model.max_length, self.needs))  # type: ignore[union-attr]

    def ask(self, batch: Batch) -> Tensor:
        """(b, N) scores for a batch in the rows of the part.

        Raises:
            ValueError: the scores have another shape.
        """
        batch = batch.to(self.device)
        if self.rows is not None:
            batch = batch.replace(ids=torch.from_numpy(self.rows).to(self.device)[batch.ids])
        for field, maps in self.codes.items():
            if maps:
                values = getattr(batch, field)
                known = {name: torch.from_numpy(codes).to(self.device)[values[name]] for name, codes in maps.items()}
                batch = batch.replace(**{field: {**values, **known}})
        if not self.knows_users:
            batch = batch.replace(users=torch.full_like(batch.users, -1))
        scores = self.model.score_safely(batch)
        if tuple(scores.shape) != (len(batch), self.num_items):
            raise ValueError(
                f"{type(self.model).__name__}.score must give one row per user and one column per item, "
                f"({len(batch)}, {self.num_items}); found {tuple(scores.shape)}"
            )
        return scores


def scorer_of(model: Any, part: Any) -> Scorer:
    """The :class:`Scorer` of a model for one held-out part that has users; raises as it does."""
    require_part(part)
    return Scorer(model, part)


def require_part(part: Any) -> None:
    """Raise TypeError unless this is one held-out part, and DataError unless it is sound and has users."""
    if not hasattr(part, "item_counts"):
        raise TypeError(f"evaluate ranks one part, split.valid or split.test; found {type(part).__name__}")
    part.check()
    if not len(part):
        raise DataError(f"the part {part.name!r} has no users: split the data so that some events are held out")


def only_lists(model: Any) -> bool:
    """Whether ``model`` recommends, and does not score all items."""
    scores = isinstance(model, Scores) if isinstance(model, Ranker) else hasattr(model, "score_safely")
    return not scores and isinstance(model, Recommends)


def require_same_items(model: Any, split: Split) -> None:
    """Raise DataError unless the item rows that ``model`` has learned are those of ``split``, id by id."""
    known = getattr(model, "vocabulary", None)
    if known is not None and row_map(known, split.items, ("the model", "the split"), REMEDY) is not None:
        raise DataError(
            "the model and the split number the same items in another order: pass the split that it was trained on"
        )


def device_of(model: Any) -> torch.device:
    """Where the tensors of ``model`` are; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _same_users(cut: Cut | None, users: Vocabulary | None) -> bool:
    """False where it is known that a user row of the part is another user's in training."""
    return cut is None or users is None or not cut.users or cut.users == users.digest


def _same_items(model: Any, items: Vocabulary | None, expected: int) -> tuple[int, np.ndarray | None]:
    """The number of items, and the model's row of each of ``items`` (None: the same)."""
    if only_lists(model) or not hasattr(model, "score_safely"):
        inner = getattr(model, "model", None)
        hint = ": pass its .model, whose ranks are exact" if hasattr(inner, "score_safely") else ""
        hint = hint or (", which only recommends: recsys.evaluate ranks its lists" if only_lists(model) else "")
        raise TypeError(f"a model that scores all items is expected, found {type(model).__name__}{hint}")
    found = getattr(model, "num_items", expected)
    if not found:
        raise not_fitted(model)
    known = getattr(model, "vocabulary", None)
    if known is not None and items is not None:
        return expected, row_map(known, items, ("the model", "the held-out part"), REMEDY)
    if found != expected:
        raise DataError(f"the model knows {found:,} items, the held-out part {expected:,}: {REMEDY}")
    return expected, None
