"""Which item could stand for an item: counted from training rows, by the item vectors as they are, or the better one.

The similarities of CoSeRec (Liu et al. 2021, arXiv 2108.06479), the most similar item of each. What we do differently:
counts are of all training events, that is of items[:-2] under leave-last, where the released code counts items[:-3];
an item is never compared with itself, also not for the extremes that similarities are scaled by.

Legend: U users, N items (rows 1..N), D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.split import TrainingEvents
from recsys.protocols import Change, Context, ItemTable
from recsys.randomness import numpy_generator
from recsys.statistics.cooccurrence import interactions, item_similarity

PRODUCTS = 2**24  # of item vectors, held at a time


@runtime_checkable
class Similar(Protocol):
    """What ``Substitute`` and ``Insert`` ask. May have ``bind(context)`` and ``refresh(items, epoch)``."""

    def most_similar(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """An item row for each item row of ``ids`` (any shape, int64), 0 for 0."""


class ItemCF(nn.Module):
    """The item that shares most users, sim(i, j) = sum over shared users u of 1 / log(1 + |I_u|) / sqrt(N_i N_j).

    I_u are the distinct items of a user, N_i the users of an item. Equal similarities: the lower row. An item that
    shares no user gets a random other item, drawn once; ``alone`` counts these. Only training events are counted, in
    chunks of items, and once per training set however many parts ask; the table is not saved with a model.

    Args:
        inverse_user_frequency: count users with many items less (ItemCF-IUF); False counts all the same.
    """

    neighbour: Tensor  # (N+1,) int64 item rows, not saved
    score: Tensor  # (N+1,) float32 similarity scaled to 0..1, -1 where there is none; not saved

    def __init__(self, inverse_user_frequency: bool = True) -> None:
        super().__init__()
        self.inverse_user_frequency = inverse_user_frequency
        self.alone = 0
        self.register_buffer("neighbour", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("score", torch.zeros(0), persistent=False)

    def bind(self, context: Context) -> None:
        """Count, if there are training rows."""
        if context.training is None:
            return
        neighbour, score = _counted(context.training, self.inverse_user_frequency)
        neighbour, items = neighbour.copy(), np.arange(1, context.num_items + 1)
        alone = items[neighbour[1:] == 0]
        self.alone = len(alone)
        drawn = numpy_generator(context.seed, "ItemCF").integers(1, max(context.num_items, 2), len(alone))
        neighbour[alone] = np.minimum(drawn + (drawn >= alone), context.num_items)
        self.neighbour, self.score = torch.from_numpy(neighbour), torch.from_numpy(score)

    def most_similar(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The most similar item of each; nothing is drawn.

        Raises:
            ValueError: no training rows were counted.
        """
        if not len(self.neighbour):
            raise ValueError("ItemCF has counted nothing: bind it with training data, as recsys.fit does")
        return _on(self, ids).neighbour[ids]


class EmbeddingSimilar(nn.Module):
    """The item with the largest dot product of output vectors, found anew at the first step of each epoch.

    That takes 2 N² D operations, of which ``PRODUCTS`` are held at a time. The table is saved with the model, so
    that a run resumed within an epoch goes on with the one of that epoch's first step.
    """

    neighbour: Tensor  # (N+1,) int64 item rows
    score: Tensor  # (N+1,) float32 dot product scaled to 0..1 by the extremes over all pairs of items
    epoch: Tensor  # () int64, the epoch it was found in, -1 for none

    def __init__(self) -> None:
        super().__init__()
        self.bind(Context(0))

    def bind(self, context: Context) -> None:
        """Forget the table; it is found at the next :meth:`refresh`."""
        self._shown: int | None = None
        self.register_buffer("neighbour", torch.zeros(context.num_items + 1, dtype=torch.int64))
        self.register_buffer("score", torch.zeros(context.num_items + 1))
        self.register_buffer("epoch", torch.tensor(-1))

    def carry(self, before: dict[str, Tensor], change: Change) -> None:
        """The table is that of no epoch of the run that begins."""
        self.neighbour, self.epoch = torch.zeros_like(self.neighbour), torch.tensor(-1)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Find the table of this epoch, unless that is done; an auxiliary with views calls this first."""
        if epoch == self._shown:
            return
        self._shown = epoch
        if int(self.epoch) != epoch:
            self.neighbour, self.score = nearest(items, self.neighbour.device)
            self.epoch = torch.tensor(epoch, device=self.neighbour.device)

    def most_similar(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The most similar item of each; nothing is drawn.

        Raises:
            ValueError: no vectors were shown yet.
        """
        if self._shown is None:
            raise ValueError(
                "EmbeddingSimilar has seen no item vectors: an auxiliary with views calls refresh(items, epoch) first, "
                "the augmentations of a Recommender do not, use ItemCF() there"
            )
        return _on(self, ids).neighbour[ids]


class Hybrid(nn.Module):
    """Of the two most similar items the one whose similarity, scaled to 0..1, is higher; the counted one in a tie.

    Args:
        cf: the counted similarity, alone in charge during the warm-up.
        model: the similarity of vectors.
        warm_up: epochs before vectors are asked; 160 in CoSeRec for Sports, 220 for Beauty (its code asks them one
            epoch later).

    Raises:
        ValueError: a negative ``warm_up``.
    """

    def __init__(self, cf: ItemCF, model: EmbeddingSimilar, warm_up: int = 160) -> None:
        super().__init__()
        if warm_up < 0:
            raise ValueError(f"warm_up is a number of epochs, 0 or more; found {warm_up}")
        self.cf, self.model, self.warm_up = cf, model, warm_up
        self._warm: bool | None = None  # not known before refresh

    def bind(self, context: Context) -> None:
        """Bind both."""
        self._warm = None
        self.cf.bind(context)
        self.model.bind(context)

    def refresh(self, items: ItemTable, epoch: int) -> None:
        """Find the table of vectors of this epoch, once the warm-up is over."""
        self._warm = epoch >= self.warm_up
        if self._warm:
            self.model.refresh(items, epoch)

    def most_similar(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The most similar item of each; nothing is drawn.

        Raises:
            ValueError: no training rows were counted, or the epoch is not known.
        """
        counted = self.cf.most_similar(ids, generator)
        if self._warm is None:
            raise ValueError(
                "Hybrid does not know the epoch: an auxiliary with views calls refresh(items, epoch) first, the "
                "augmentations of a Recommender do not, use ItemCF() there"
            )
        if not self._warm:
            return counted
        return torch.where(self.model.score[ids] > self.cf.score[ids], self.model.most_similar(ids, generator), counted)


@torch.no_grad()
def nearest(items: ItemTable, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Each item's best other item by dot product of output vectors: rows (N+1,) int64 and scores (N+1,) scaled to 0..1.

    About ``PRODUCTS`` products at a time. Equal products: the lower row. A single item is its own.
    """
    found, best, lowest = [], [], []
    for rows in torch.arange(1, items.num_items + 1, device=device).split(max(1, PRODUCTS // items.num_items)):
        with torch.autocast(rows.device.type, enabled=False):
            products = items.scores(items.output(rows).float())
        own = (torch.arange(len(rows), device=device), rows - 1)
        lowest.append(products.index_put_(own, products.new_tensor(torch.inf)).min())
        value, column = products.index_put_(own, products.new_tensor(-torch.inf)).max(1)
        found.append(torch.where(value > -torch.inf, column + 1, rows))
        best.append(value)
    neighbour, score = torch.cat(found), torch.cat(best)
    low = torch.stack(lowest).min()
    scaled = (score - low) / (score.max() - low).clamp(min=torch.finfo(torch.float32).tiny)
    scaled = torch.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)  # of a single item
    return nn.functional.pad(neighbour, (1, 0)), nn.functional.pad(scaled, (1, 0))


_TABLES: WeakKeyDictionary[TrainingEvents, dict[bool, tuple[np.ndarray, np.ndarray]]] = WeakKeyDictionary()


def _counted(training: TrainingEvents, inverse_user_frequency: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N+1,) int64, 0 where there are none, and scores (N+1,) float32; counted once per training set."""
    tables = _TABLES.setdefault(training, {})
    if inverse_user_frequency not in tables:
        tables[inverse_user_frequency] = _count(training, inverse_user_frequency)
    return tables[inverse_user_frequency]


def _count(training: TrainingEvents, inverse_user_frequency: bool) -> tuple[np.ndarray, np.ndarray]:
    neighbour = np.zeros(training.num_items + 1, np.int64)
    score = np.full(training.num_items + 1, -1.0, np.float32)
    highest, low, high = np.full(training.num_items + 1, -np.inf), np.inf, -np.inf
    for item, other, value in _similarities(training, inverse_user_frequency):
        if not len(value):
            continue
        start = _starts(item)
        best = np.maximum.reduceat(value, start)
        equal = np.flatnonzero(value == np.repeat(best, np.diff(start, append=len(item))))
        lowest = equal[_starts(item[equal])]
        neighbour[item[start]], highest[item[start]] = other[lowest], best
        low, high = min(low, value.min()), max(high, value.max())
    known = neighbour > 0
    score[known] = (highest[known] - low) / (high - low) if high > low else 0.0
    return neighbour, score


def _similarities(
    training: TrainingEvents, inverse_user_frequency: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Chunks of pairs that share users, by item, then by other item: (item row, other row, similarity), (n,) each."""
    matrix = interactions(training)
    weighted = matrix.astype(np.float64)
    if inverse_user_frequency:
        sizes = np.diff(matrix.indptr)  # (U,) distinct items
        weighted.data = np.repeat(1.0 / np.log1p(np.maximum(sizes, 1)), sizes)
    for item, other, value in item_similarity(matrix, weighted):
        yield item, other, np.round(value, 12)  # so that equal sums in another order are equal


def _starts(row: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(row, prepend=-1))


def _on(part: Any, ids: Tensor) -> Any:
    """The part on the device of ``ids``: the augmentations of a recommender are not moved with it."""
    return part if part.neighbour.device == ids.device else part.to(ids.device)
