"""What makes a run that will take hours shorter."""

from __future__ import annotations

import sys
from typing import Any

AFTER_SECONDS = 20.0  # of an epoch, before its length is estimated
LONG_SECONDS = 3600.0
MANY_ITEMS = 10_000  # below, the softmax over all items is a small part of the work


def slow_epoch(model: Any, seconds_left: float, num_items: int) -> str | None:
    """What to try if the rest of an epoch takes hours because every item is scored for every target; else None.

    Args:
        seconds_left: estimated from the updates so far.
    """
    if not seconds_left >= LONG_SECONDS or num_items < MANY_ITEMS or not _scores_all(model):
        return None
    return (
        f"this epoch takes {_span(seconds_left)} more, as the full softmax scores all {num_items:,} items for every "
        "target: objective=rs.SampledSoftmax() scores a few hundred sampled ones instead"
    )


class Adviser:
    """Prints :func:`slow_epoch` once in a run, as soon as an epoch shows how long it takes."""

    def __init__(self, model: Any, enabled: bool = True) -> None:
        self.model, self.silent = model, not enabled

    def __call__(self, seconds: float, done: int, left: int) -> None:
        """After ``done`` updates of an epoch in ``seconds``, with ``left`` to go."""
        if self.silent or seconds < AFTER_SECONDS or not done:
            return
        advice = slow_epoch(self.model, seconds / done * left, self.model.num_items)
        if advice is not None:
            self.silent = True
            print(advice, file=sys.stderr, flush=True)


def _scores_all(model: Any) -> bool:
    """Whether the objective, or one inside it, is the full softmax."""
    from recsys.hooks import parts_of
    from recsys.objectives.softmax import FullSoftmax

    return any(isinstance(part, FullSoftmax) for _, part in parts_of(getattr(model, "objective", None)))


def _span(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
