"""Where the batches of a stage come from: the training rows of the split, or a source of one's own.

``Stage(data=...)`` takes any object with the members of :class:`BatchSource`; no base class is required.
:class:`recsys.train.loader.TrainBatches`, the default, is one: over the training part of another split it is a stage on
other data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from recsys.data.batch import Batch
from recsys.protocols import Context


@runtime_checkable
class BatchSource(Protocol):
    """The batches of each epoch, a function of epoch and position alone, so that a stopped run goes on exactly.

    Item rows are those of the split (1..N, 0 is padding). Fields of one's own are those of a subclass of ``Batch``,
    which losses read from ``step.batch``.

    Three further members it may have: ``bind(context)``, called once before training, again when a run is resumed, with
    the seed, the ids and the training events; ``prepared``: True (so it is without it) if batches go to the losses
    as they are, False if the model's augmentations, targets and weightings apply to them, as to the split's; and
    ``varying``: True if epochs hold different numbers of rows, which nobody can know before they come, as where each
    batch is drawn from one of several domains.

    What a source holds is up to you: events that the run is validated on must not be among it.
    """

    @property
    def num_rows(self) -> int:
        """Rows of each epoch, over all processes; where epochs are ``varying``, about how many: never counted on."""

    @property
    def num_targets(self) -> int:
        """What an epoch predicts, over all processes: targets, or pairs; about, where epochs are ``varying``."""

    def identity(self) -> dict[str, Any]:
        """What decides the batches, as plain data (a hash of the data, sizes): a run resumes only where it is equal."""

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same on every process."""

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """The batches of the run's ``epoch`` (from 0), without the first ``start``; of each the share of one process.

        The shares of all processes make up the batch; one may be without rows.
        """


def check_members(source: Any) -> None:
    """Raise TypeError if ``source`` lacks a member of :class:`BatchSource`."""
    members = ("num_rows", "num_targets", "identity", "num_batches", "epoch")
    lacking = [name for name in members if not hasattr(source, name)]
    if lacking:
        raise TypeError(
            f"data is a source of batches with {', '.join(members)}; {type(source).__name__} lacks "
            f"{', '.join(lacking)} (see recsys.train.source.BatchSource)"
        )


def is_prepared(source: Any) -> bool:
    """Whether losses get the batches of ``source`` as they are."""
    return bool(getattr(source, "prepared", True))


def is_varying(source: Any) -> bool:
    """Whether epochs of ``source`` hold different numbers of rows."""
    return bool(getattr(source, "varying", False))


def begin_source(source: Any, context: Context) -> None:
    """Call its own ``bind``, if it has one; not of what it holds, which may be a model."""
    bind = getattr(source, "bind", None)
    if callable(bind):
        bind(context)


def first_batch(source: BatchSource) -> Batch:
    """Some batch of the source, for a process that gets none of the rows of one."""
    for batch in source.epoch(0):
        if len(batch):
            return batch
    raise ValueError(f"{type(source).__name__} gives no rows in its first epoch: there is nothing to train on")
