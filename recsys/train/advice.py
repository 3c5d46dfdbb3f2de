"""What makes a run that will take hours shorter."""

from __future__ import annotations

from typing import Any

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
        "target: objective=rs.SampledSoftmax() scores 256 sampled ones and needs about a tenth of that at 200,000 items"
    )


def _scores_all(model: Any) -> bool:
    """Whether the objective, or one inside it, is the full softmax."""
    from recsys.hooks import parts_of
    from recsys.objectives.softmax import FullSoftmax

    return any(isinstance(part, FullSoftmax) for _, part in parts_of(getattr(model, "objective", None)))


def _span(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
