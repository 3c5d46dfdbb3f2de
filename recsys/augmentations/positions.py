"""Positions in histories: how many, which ones, and the batch of the events at them.

Legend: B histories, L longest history, n items of a history, W longest history of what is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from recsys.data.batch import Batch, events_at


def part(lengths: Any, share: float) -> Any:
    """floor(share n) of ``lengths`` (a number or whole numbers (B,)), exact for the decimal number that share is."""
    exact = Fraction(str(share)).limit_denominator(10**6)
    return lengths * exact.numerator // exact.denominator


def positions(batch: Batch) -> Tensor:
    """(L,) int64: 0, 1, ..."""
    return torch.arange(batch.ids.shape[1], device=batch.ids.device)


def uniform(batch: Batch, generator: torch.Generator) -> Tensor:
    """(B, L) uniform numbers."""
    return torch.rand(batch.ids.shape, generator=generator, device=batch.ids.device)


def whole(batch: Batch, count: Any, generator: torch.Generator) -> Tensor:
    """(B,) whole numbers, uniform below ``count`` (a number or (B,)): floor of a uniform number times ``count``."""
    draws = torch.rand(len(batch), generator=generator, device=batch.ids.device)
    return torch.minimum((draws * count).long(), torch.as_tensor(count - 1, device=draws.device))


def lowest(draws: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """(B, L) bool: of each row's ``eligible`` positions the ``count`` (B,) with the lowest ``draws`` (B, L) in 0..1."""
    order = draws.masked_fill(~eligible, 2.0).argsort(dim=1, stable=True)
    first = torch.arange(draws.shape[1], device=draws.device) < count[:, None]
    return torch.zeros_like(eligible).scatter(1, order, first) & eligible


def located(taken: Tensor, width: int, skip: Tensor | None = None) -> Tensor:
    """(B, width) int64: where the first, second, ... True of ``taken`` (B, L) bool is, after ``skip`` (B,) of them.

    Behind the last one it is L - 1.
    """
    ranks = taken.cumsum(1)
    wanted = torch.arange(1, width + 1, device=taken.device).expand(len(taken), width)
    wanted = wanted.contiguous() if skip is None else wanted + skip[:, None]
    return torch.searchsorted(ranks, wanted).clamp(max=taken.shape[1] - 1)


def view_of(batch: Batch, **changes: Any) -> Batch:
    """The batch with ``changes`` and without what speaks of the old events: targets, and all that belongs to them.

    Weights stay where there are no targets yet, as in training rows: then they belong to the items.
    """
    kept = {"weights": batch.weights, **changes}
    if batch.targets is not None:
        kept["weights"] = None
    return batch.histories().replace(**kept)


def take(batch: Batch, index: Tensor, lengths: Tensor) -> Batch:
    """A view of the first ``lengths`` (B,) events at ``index`` (B, W), with their times, weights and features."""
    inside = torch.arange(index.shape[1], device=index.device) < lengths[:, None]

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.gather(1, index) * inside

    moved: dict[str, Any] = {name: pick(getattr(batch, name)) for name in ("ids", "times", "weights")}
    moved["features"] = {name: events_at(values, index, inside) for name, values in batch.features.items()}
    return view_of(batch, lengths=lengths, **moved)


def pick_rows(batches: Sequence[Batch], choice: Tensor) -> Batch:
    """Each history, with what all batches have of it, from the batch that ``choice`` (B,) int64 names."""
    width = max(batch.ids.shape[1] for batch in batches)

    def pick(name: str) -> Tensor | None:
        return choose([getattr(batch, name) for batch in batches])

    def choose(values: list[Any]) -> Tensor | None:
        if any(value is None for value in values):
            return None
        picked = _widened(values[0], width)
        for number, value in enumerate(values[1:], 1):
            mine = (choice == number).view(-1, *[1] * (value.dim() - 1))
            picked = torch.where(mine, _widened(value, width), picked)
        return picked

    shared = [name for name in batches[0].features if all(name in batch.features for batch in batches)]
    features = {name: choose([batch.features[name] for batch in batches]) for name in shared}
    changes = {name: pick(name) for name in ("ids", "lengths", "times", "weights")}
    return batches[0].replace(**changes, features=features)


def _widened(values: Tensor, width: int) -> Tensor:
    return values if values.dim() == 1 else pad(values, (*(0, 0) * (values.dim() - 2), 0, width - values.shape[1]))
