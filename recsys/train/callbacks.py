"""Callbacks: functions that see each epoch of a run when it is validated, and may stop the run.

>>> def enough(epoch: Epoch) -> bool:
...     return epoch.metrics.get("ndcg@10", 0.0) > 0.3

``fit(model, split, callbacks=[enough])`` then ends behind the first epoch that is above 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.runs.checkpoint import random_state, restore_random_state

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class StopTraining(Exception):
    """Raised by a callback to stop the run; what it says is kept in the record of the epoch."""


@dataclass(frozen=True)
class Epoch:
    """An epoch that is over, as callbacks see it: behind its validation, before it is written to disk.

    A callback returns True, or raises :class:`StopTraining` with a reason, to stop the run: the best weights are kept,
    and the last record of ``history`` says under "stopped" by whom. Asked for again, with a callback of that name, the
    run stays stopped; without it, it goes on. Callbacks are called on every process alike, and one process that wants
    to stop stops all. What they draw at random changes nothing for training. An error in a callback ends ``fit`` with
    that error: the checkpoint from before the validation is kept, and the run goes on from there. A model that is
    counted rather than trained has one epoch.
    """

    epoch: int  # of the run, from 1
    stage: int  # from 0
    stage_name: str
    metrics: Mapping[str, Any]  # the record of the epoch, as in metrics.jsonl: loss, terms, the metric if validated
    model: Any  # with the weights of this epoch; to be read, not changed
    best: Mapping[str, Any] | None  # metric, value, epoch and stage of the best weights so far


Callback = Callable[[Epoch], bool | None]


def name_of(callback: Callback) -> str:
    """What a callback is called: its name if it is a function, else that of its class."""
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


def consult(callbacks: Sequence[Callback], epoch: Epoch, fabric: Fabric | None = None) -> dict[str, str] | None:
    """Call all ``callbacks``; who stopped the run and why, None if none did; the same on every process.

    Raises:
        Exception: whatever a callback raises; a RuntimeError on the other processes.
    """
    if not callbacks:
        return None
    before = random_state()
    stops, reason, failed = [0.0] * len(callbacks), "", None
    try:
        for number, callback in enumerate(callbacks):
            try:
                stops[number] = _stops(callback, callback(epoch))
            except StopTraining as stop:
                stops[number], reason = 1.0, reason or str(stop)
    except Exception as error:  # told once the other processes know of it
        failed = error
    finally:
        restore_random_state(before)
    errors = float(failed is not None)
    if fabric is not None and fabric.world_size > 1:
        flags = torch.tensor([*stops, errors], device=fabric.device)
        summed: Any = fabric.all_reduce(flags, reduce_op="sum")
        *stops, errors = summed.tolist()
    if failed is not None:
        raise failed
    if errors:
        raise RuntimeError("a callback failed on another process, which says how; the last checkpoint is kept")
    who = next((callback for callback, flag in zip(callbacks, stops, strict=True) if flag), None)
    return None if who is None else {"by": name_of(who), **({"why": reason} if reason else {})}


def _stops(callback: Callback, answer: Any) -> float:
    if answer is not None and not isinstance(answer, (bool, np.bool_)):
        raise TypeError(f"{name_of(callback)} returned {answer!r}: a callback returns True to stop the run, else None")
    return float(bool(answer))


def frozen(record: dict[str, Any]) -> Mapping[str, Any]:
    """A view of a record that cannot be written to."""
    return MappingProxyType({k: MappingProxyType(v) if isinstance(v, dict) else v for k, v in record.items()})
