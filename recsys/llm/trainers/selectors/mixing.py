"""What sources that are put together of sources share: what a source is, one batch of many, and turns in an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys.data.batch import Batch


class Source(Protocol):
    """Batches of each epoch: ``recsys.train.source.BatchSource``."""

    @property
    def num_rows(self) -> int: ...

    @property
    def num_targets(self) -> int: ...

    def identity(self) -> dict[str, Any]: ...

    def num_batches(self, epoch: int) -> int: ...

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]: ...


def prepared_alike(sources: Mapping[str, Source]) -> bool:
    """Whether losses get the batches of all sources as they are.

    Raises:
        TypeError: one of them is no source of batches.
        ValueError: those of some are, and of others not.
    """
    for name, source in sources.items():
        if not hasattr(source, "epoch") or not hasattr(source, "num_batches"):
            raise TypeError(
                f"{name!r} is a {type(source).__name__}, not a source of batches, such as "
                "recsys.train.loader.TrainBatches(split.train, batch_size=128)"
            )
    found = {name: bool(getattr(source, "prepared", True)) for name, source in sources.items()}
    if len(set(found.values())) > 1:
        raise ValueError(
            "batches of some sources get their targets from the model, others come with them, and a stage takes one "
            f"kind (prepared): {found}"
        )
    return next(iter(found.values()))


def fixed(name: str, source: Source) -> None:
    """Raise ValueError if epochs of a source hold different numbers of rows where their number is counted on."""
    if getattr(source, "varying", False):
        raise ValueError(
            f"{name!r} is a {type(source).__name__}, whose epochs hold different numbers of rows: a share of its rows "
            "cannot be taken; give the sources that it is made of"
        )


def begin(sources: Sequence[Source], context: Any) -> None:
    """Call ``bind(context)`` of those that have it."""
    for source in sources:
        bind = getattr(source, "bind", None)
        if callable(bind):
            bind(context)


def identity_of(source: Source) -> dict[str, Any]:
    """What identifies a source that is part of another."""
    return {"class": type(source).__qualname__, **source.identity()}


def stacked(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of one kind under each other, padded to the widest, with all fields but ``wanted``.

    Raises:
        ValueError: they are of different kinds, or have different fields.
    """
    kind = type(batches[0])
    if any(type(batch) is not kind for batch in batches):
        raise ValueError(f"batches of several kinds cannot be one: {sorted({type(one).__name__ for one in batches})}")

    def under(name: str, values: list[Any]) -> Any:
        if all(value is None for value in values):
            return None
        if all(isinstance(value, dict) for value in values):
            if any(value.keys() != values[0].keys() for value in values):
                raise ValueError(f"batches differ in what {name} holds: {[sorted(value) for value in values[:2]]}")
            return {key: under(f"{name}.{key}", [value[key] for value in values]) for key in values[0]}
        if not all(isinstance(value, Tensor) for value in values):
            raise ValueError(f"some batches have {name} and others do not: give both sources the same fields")
        shape = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
        rows = sum(len(value) for value in values)
        found = values[0].new_zeros(rows, *shape)
        first = 0
        for value in values:
            inside = (slice(first, first + len(value)), *(slice(size) for size in value.shape[1:]))
            found[inside] = value
            first += len(value)
        return found

    names = [entry.name for entry in fields(kind) if entry.init and entry.name != "wanted"]
    return kind(**{name: under(name, [getattr(batch, name) for batch in batches]) for name in names})


def picked(pool: Batch, rows: Any) -> Batch:
    """Some rows of a batch, padded to the widest of them only."""
    found = pool.select(torch.as_tensor(rows, dtype=torch.int64, device=pool.ids.device))
    return found.trim(max(int(found.lengths.max()), 1)) if len(found) else found
