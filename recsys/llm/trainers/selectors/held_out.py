"""Held-out events of some users as batches with targets: what Skill-It measures losses on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from recsys.data.batch import PAD, Batch
from recsys.data.split import HeldOut
from recsys.errors import DataError
from recsys.randomness import numpy_generator


class HeldOutBatches:
    """Each user's history with the first held-out item as the target of its newest event; a source of batches.

    They are the same in each epoch, and are to be measured on, not trained on: give it the validation part.

    Args:
        part: such as ``split.valid``, or the part of some users (``part.subset``).
        max_length: newest events of a history that are read.
        batch_size: users of a batch.
        users: so many, drawn once by ``seed``; None: all that have a history.
        needs: optional fields of batches that the model reads, as of ``model.needs``.

    Raises:
        ValueError: a number below 1.
        DataError: no user of the part has a history.
    """

    prepared = True

    def __init__(
        self,
        part: HeldOut,
        max_length: int = 50,
        batch_size: int = 256,
        users: int | None = None,
        needs: frozenset[str] = frozenset(),
        seed: int = 0,
    ) -> None:
        if min(max_length, batch_size, 1 if users is None else users) < 1:
            raise ValueError(
                f"max_length, batch_size and users must be at least 1; {max_length}, {batch_size}, {users}"
            )
        self.part, self.max_length, self.batch_size, self.needs, self.seed = part, max_length, batch_size, needs, seed
        chosen = np.flatnonzero(part.history_lengths > 0)
        if not len(chosen):
            raise DataError(f"none of the {len(part):,} users of the part {part.name!r} has a history to predict from")
        if users is not None and users < len(chosen):
            drawn = numpy_generator(seed, "HeldOutBatches").choice(len(chosen), users, replace=False)
            chosen = chosen[np.sort(drawn)]
        self.index = chosen  # (n,) int64 positions within the part

    @property
    def num_rows(self) -> int:
        """Users that are measured on."""
        return len(self.index)

    @property
    def num_targets(self) -> int:
        """One a user."""
        return len(self.index)

    def identity(self) -> dict[str, Any]:
        """Which users and targets, by a hash, and how they are cut."""
        targets = self.part.prepared.items[self.part.target_start[self.index]]
        digest = hashlib.sha256(self.part.users[self.index].tobytes() + np.ascontiguousarray(targets).tobytes())
        return {"targets": digest.hexdigest(), "max_length": self.max_length, "batch_size": self.batch_size}

    def num_batches(self, epoch: int = 0) -> int:
        """Batches of an epoch."""
        return -(-len(self.index) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches, in the order of the part; see :class:`recsys.train.source.BatchSource`."""
        for number in range(start, self.num_batches()):
            some = self.index[number * self.batch_size : (number + 1) * self.batch_size][rank::world_size]
            batch = self.part.batch(some, self.max_length, self.needs)
            if len(some):
                first = self.part.prepared.items[self.part.target_start[some]].astype(np.int64)
                targets = torch.full_like(batch.ids, PAD)
                targets[torch.arange(len(some)), batch.lengths - 1] = torch.from_numpy(first)
                batch = batch.replace(targets=targets)
            yield batch
