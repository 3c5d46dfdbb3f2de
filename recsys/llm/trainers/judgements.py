"""Batches of histories with items that are known to be something: to be forgotten or kept, liked or hidden.

Sources for a stage of :func:`recsys.fit` (``Stage(data=...)``). Every history ends before the item that it is judged
with, and is made of training events alone. Legend: R rows (histories), G items of the one with the most, E judgements.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recsys.data.batch import Batch
from recsys.data.split import TrainingEvents
from recsys.errors import DataError
from recsys.ids.ranges import spread
from recsys.llm.trainers.drafts import JudgedBatch
from recsys.llm.trainers.sequences import Role
from recsys.randomness import numpy_generator


class Judgements:
    """Rows of judged items behind histories, shuffled in each epoch.

    Args:
        training: the training events that histories are read from.
        users: (E,) int64 user rows.
        stops: (E,) int64 training event before which the history of each judgement ends.
        items: (E,) int64 item rows.
        roles: (E,) int64 of Role.
        amounts: (E,) float32 weights, None for 1.
        max_length: longest history.
        batch_size: rows of a batch: judgements of one user and one stop share a row.
        seed: of the order.
        needs: optional fields of batches that the model reads.

    Raises:
        DataError: there is no judgement.
    """

    prepared = True

    def __init__(
        self,
        training: TrainingEvents,
        users: np.ndarray,
        stops: np.ndarray,
        items: np.ndarray,
        roles: np.ndarray,
        amounts: np.ndarray | None = None,
        max_length: int = 50,
        batch_size: int = 64,
        seed: int = 0,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        if not len(items):
            raise DataError("there is no judged item: nothing to train on")
        order = np.lexsort((np.arange(len(items)), stops, users))
        users, stops = np.asarray(users, np.int64)[order], np.asarray(stops, np.int64)[order]
        fresh = np.ones(len(order), bool)
        fresh[1:] = (users[1:] != users[:-1]) | (stops[1:] != stops[:-1])
        self.training, self.max_length, self.batch_size, self.seed = training, max_length, batch_size, seed
        self.users, self.stops = users[fresh], stops[fresh]
        self.first = np.append(np.flatnonzero(fresh), len(order))
        self.items, self.roles = np.asarray(items, np.int64)[order], np.asarray(roles, np.int64)[order]
        self.amounts = None if amounts is None else np.asarray(amounts, np.float32)[order]
        self.needs = needs

    @classmethod
    def of_users(
        cls, training: TrainingEvents, users: np.ndarray, role: Role, most: int | None = None, **more: Any
    ) -> Judgements:
        """Every training event of ``users`` (rows) but the first, behind the events before it.

        Args:
            most: at most so many of them, drawn once by the seed.
        """
        users = np.asarray(users, np.int64)
        start, stop = training.start[users], training.stop[users]
        owner, event = spread(np.minimum(start + 1, stop), stop)
        if most is not None and len(event) > most:
            drawn = numpy_generator(more.get("seed", 0), "judgements").choice(len(event), most, replace=False)
            owner, event = owner[np.sort(drawn)], event[np.sort(drawn)]
        _, items, _ = training.events(users)
        base = np.append(0, np.cumsum(stop - start))[:-1]
        rows = items[base[owner] + event - start[owner]]
        return cls(training, users[owner], event, rows, np.full(len(rows), int(role)), **more)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.users)

    @property
    def num_targets(self) -> int:
        """E."""
        return len(self.items)

    def identity(self) -> dict[str, Any]:
        """A hash of what is judged, and how it is laid out."""
        digest = hashlib.sha256()
        for array in (self.users, self.stops, self.first, self.items, self.roles, self.amounts):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        layout = {"max_length": self.max_length, "batch_size": self.batch_size, "seed": self.seed}
        return {"judgements": digest.hexdigest(), **layout}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return math.ceil(self.num_rows / self.batch_size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, without the first ``start``."""
        order = numpy_generator(self.seed, "judgements", epoch).permutation(self.num_rows)
        for number in range(start, self.num_batches(epoch)):
            yield self.batch(order[number * self.batch_size : (number + 1) * self.batch_size][rank::world_size])

    def batch(self, rows: np.ndarray) -> JudgedBatch:
        """The batch of some rows."""
        plain = self.training.gather(self.users[rows], self.max_length, stop=self.stops[rows], needs=self.needs)
        owner, at = spread(self.first[rows], self.first[rows + 1])
        counts = self.first[rows + 1] - self.first[rows]
        column = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        shape = (len(rows), int(counts.max(initial=1)))

        def laid(values: np.ndarray) -> torch.Tensor:
            wide = np.zeros(shape, values.dtype)
            wide[owner, column] = values[at]
            return torch.from_numpy(wide)

        known = {name: getattr(plain, name) for name in plain.__dataclass_fields__ if name != "weights"}
        amounts = None if self.amounts is None else laid(self.amounts)
        return JudgedBatch(**known, judged=laid(self.items), roles=laid(self.roles), amounts=amounts)


class Together:
    """Each batch is one of every source: the first is gone through once an epoch, the others are drawn from.

    So that every batch has what an objective compares (what is to be forgotten, and what is to be kept).
    """

    prepared = True

    def __init__(self, sources: Sequence[Judgements]) -> None:
        if len(sources) < 2:
            raise ValueError(f"several sources are put together, found {len(sources)}")
        self.sources = list(sources)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return sum(min(one.num_rows, self.sources[0].num_batches(0) * one.batch_size) for one in self.sources)

    @property
    def num_targets(self) -> int:
        """Judgements of the first source."""
        return self.sources[0].num_targets

    def identity(self) -> dict[str, Any]:
        """Those of the sources."""
        return {"sources": [one.identity() for one in self.sources]}

    def num_batches(self, epoch: int) -> int:
        """Those of the first source."""
        return self.sources[0].num_batches(epoch)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, without the first ``start``."""
        first, others = self.sources[0], self.sources[1:]
        for number, batch in enumerate(first.epoch(epoch, start, rank, world_size), start):
            parts = [batch]
            for place, other in enumerate(others):
                random = numpy_generator(other.seed, "together", epoch, number, place)
                size = min(other.batch_size, other.num_rows)
                parts.append(other.batch(random.choice(other.num_rows, size, replace=False)[rank::world_size]))
            yield joined(parts)


def joined(parts: Sequence[Any]) -> JudgedBatch:
    """Judged batches under each other."""
    parts = [one for one in parts if len(one)] or list(parts[:1])
    plain = Batch.join(parts)
    most = max(one.judged.shape[1] for one in parts)

    def under(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(value, (0, most - value.shape[1])) for value in values])

    weighed = any(one.amounts is not None for one in parts)
    amounts = [torch.ones(one.judged.shape) if one.amounts is None else one.amounts for one in parts]
    known = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    return JudgedBatch(
        **known,
        judged=under([one.judged for one in parts]),
        roles=under([one.roles for one in parts]),
        amounts=under(amounts) if weighed else None,
    )
