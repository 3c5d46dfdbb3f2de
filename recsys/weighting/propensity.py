"""Inverse propensities: a click on what few people were shown counts more (Saito et al. 2020, Rel-MF).

An event is recorded with probability theta (exposure) times gamma (relevance), so the sum of recorded losses divided
by theta estimates the sum of gamma times loss: what is relevant, not what was clicked. :class:`InversePropensity` gives
the targets of any objective the weights 1 / max(theta, M); inputs are not weighted. theta is counted on training events
only and is a proxy: popularity mixes exposure with quality, so its power is a hyper-parameter, and 0 is the plain loss,
bit for bit. On held-out clicks, which are as biased as training, a debiased model is expected to lose plain NDCG: see
:mod:`recsys.eval.unbiased`.

Where the paper's released code counts clicked items only, so that an item without clicks shifts all after it, here
every item row has its own entry. Legend: B histories, L longest history, N items, P periods, n training events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.errors import DataError
from recsys.hooks import bind, member
from recsys.ids.vectors import Vectors
from recsys.protocols import Context
from recsys.statistics.cooccurrence import require_memory

DAY = 86_400_000  # milliseconds


class Propensity(Protocol):
    """Exposure propensities: ``theta`` is the saved table by item row (entry 0 unused), 0 < theta <= 1."""

    theta: Tensor  # (N+1,) or (P, N+1) float32

    def bind(self, context: Context) -> None: ...
    def __call__(self, batch: Batch) -> Tensor:
        """(B, L) float32 theta of the targets of a prepared batch; what stands where there is none does not matter."""


class PopularityPropensity(nn.Module):
    """theta_i = max( ((n_i + a) / (max_j n_j + a))^power, floor ), n_i the training events of item i.

    Args:
        power: 0 makes all 1, and 1 follows the counts; the paper's is .5.
        floor: the least theta, which items without training events get.
        smoothing: a.
        period_days: count within periods of N days, from the first training event on (needs times); events
            after the last one count as its.

    Raises:
        ValueError: an argument out of range.
        DataError: ``period_days`` is given, and the data have no times.
    """

    theta: Tensor
    start: Tensor  # () int64, milliseconds: where the first period begins

    def __init__(
        self, power: float = 0.5, floor: float = 0.01, smoothing: float = 0.0, period_days: float | None = None
    ) -> None:
        super().__init__()
        if power < 0 or not 0 < floor <= 1 or smoothing < 0 or (period_days is not None and not period_days > 0):
            raise ValueError(
                "power >= 0, 0 < floor <= 1, smoothing >= 0 and period_days > 0 (or None) are needed; found "
                f"{power}, {floor}, {smoothing} and {period_days}"
            )
        self.power, self.floor, self.smoothing, self.period_days = power, floor, smoothing, period_days
        self.needs = frozenset() if period_days is None else frozenset({"times"})
        self.register_buffer("theta", torch.zeros(0))
        self.register_buffer("start", torch.zeros((), dtype=torch.int64))

    def bind(self, context: Context) -> None:
        """Count the training events; without them (a saved model) the table comes from the saved tensors."""
        training = context.training
        if training is None:
            return
        if self.period_days is None:
            self.theta = self._theta(training.item_counts()[None])[0]
            return
        _, items, times = training.events(slice(None))
        if times is None:
            raise DataError("period_days needs times: name the time column when the data are read, or leave it out")
        self.start = torch.tensor(int(times.min(initial=np.iinfo(np.int64).max)) if len(times) else 0)
        period = (times - int(self.start)) // int(self.period_days * DAY)
        size = training.num_items + 1
        count = int(period.max(initial=0)) + 1
        require_memory(28.0 * count * size, f"A table of {count:,} periods by {size:,} items", "raise period_days")
        counts = np.bincount(period * size + items, minlength=count * size).reshape(count, size)
        self.theta = self._theta(counts)

    def forward(self, batch: Batch) -> Tensor:
        """(B, L) theta of the targets."""
        targets, theta = _targets(batch), _known(self).to(batch.ids.device)
        if self.period_days is None:
            return theta[targets]
        if batch.target_times is None:
            raise ValueError("periods need the times of the targets: use data with times and NextItem or LastItem")
        since = batch.target_times - self.start.to(batch.ids.device)
        period = since.div(int(self.period_days * DAY), rounding_mode="floor").clamp(0, len(theta) - 1)
        return theta[period, targets]

    def _theta(self, counts: np.ndarray) -> Tensor:
        """(P, N+1) from counts (P, N+1), by the largest count of each period."""
        smooth = counts.astype(np.float64) + self.smoothing
        most = smooth[:, 1:].max(axis=1, initial=0.0)
        share = smooth / np.where(most > 0, most, 1.0)[:, None]
        return torch.from_numpy(np.clip(share**self.power, self.floor, 1.0).astype(np.float32))


class GivenPropensity(nn.Module):
    """Propensities known from elsewhere (an experiment, the logging policy), by raw item id.

    Args:
        values: raw id -> theta, pairs of these, or the folder of a :class:`recsys.ids.vectors.Vectors` of width 1.
        missing: theta of items that have none; None makes such an item an error.

    Raises:
        DataError: a value outside of (0, 1], or an item without one.
    """

    theta: Tensor

    def __init__(
        self, values: Mapping[Any, float] | Sequence[Sequence[Any]] | str, missing: float | None = None
    ) -> None:
        super().__init__()
        if missing is not None and not 0 < missing <= 1:
            raise ValueError(f"missing must lie in (0, 1], or be None; found {missing}")
        if isinstance(values, str):
            self.values: str | list[list[Any]] = values
        else:
            pairs: Iterable[Any] = values.items() if isinstance(values, Mapping) else values
            self.values = [[_plain(item), float(theta)] for item, theta in pairs]
        self.missing = missing
        self.register_buffer("theta", torch.zeros(0))

    def bind(self, context: Context) -> None:
        """Look the items up; for a saved model the table comes from the saved tensors."""
        if context.training is None or context.vocabulary is None:
            return
        table = self._table()
        if table.width != 1:
            raise DataError(f"propensities are one number per item, and this table is {table.width} wide")
        found, known = table.aligned(context.vocabulary)
        wrong = known & ~((found[:, 0] > 0) & (found[:, 0] <= 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"propensities lie in (0, 1], and item {context.vocabulary.raw(np.array([row]))[0]!r} has "
                f"{found[row, 0]:g} ({int(wrong.sum()):,} items in all): divide by the largest, floor the rest"
            )
        if self.missing is None and not known[1:].all():
            rows = np.flatnonzero(~known[1:])[:3] + 1
            raise DataError(
                f"{int((~known[1:]).sum()):,} items have no propensity, such as "
                f"{context.vocabulary.raw(rows).tolist()}: give them one, or set missing"
            )
        filled = np.where(known, found[:, 0], 1.0 if self.missing is None else self.missing)
        self.theta = torch.from_numpy(filled.astype(np.float32))

    def forward(self, batch: Batch) -> Tensor:
        """(B, L) theta of the targets."""
        return _known(self).to(batch.ids.device)[_targets(batch)]

    def _table(self) -> Vectors:
        if isinstance(self.values, str):
            return Vectors.load(self.values)
        ids, values = zip(*self.values, strict=True) if self.values else ((), ())
        return Vectors.of(list(ids), np.array(values, np.float32)[:, None])


class PositionPropensity(nn.Module):
    """theta by the rank that a target had in the list its user was shown, for data that have it.

    Args:
        values: theta of the first rank, the second, ...; later ranks count as the last one.
        field: ``batch.features[field]`` (B, L) holds the ranks of the targets in their lists, from 0; a Targets part
            of your own puts it there, as features of events are those of the inputs.
    """

    theta: Tensor  # (ranks,)

    def __init__(self, values: Sequence[float], field: str = "target_places") -> None:
        super().__init__()
        self.values, self.field = [float(value) for value in values], field
        if not self.values or not all(0 < value <= 1 for value in self.values):
            raise ValueError(f"give at least one theta, each in (0, 1]; found {self.values}")
        self.register_buffer("theta", torch.tensor(self.values))

    def bind(self, context: Context) -> None:
        """Nothing to learn."""

    def forward(self, batch: Batch) -> Tensor:
        """(B, L) theta of the targets' ranks."""
        if self.field not in batch.features:
            raise ValueError(f"PositionPropensity reads batch.features[{self.field!r}], which no part has set")
        theta = self.theta.to(batch.ids.device)
        return theta[batch.features[self.field].long().clamp(0, len(theta) - 1)]


class InversePropensity(nn.Module):
    """Weights 1 / max(theta, M) of the targets, for ``Recommender(weightings=[...])``; works around every objective.

    Args:
        propensity: theta (default: :class:`PopularityPropensity`).
        clip: M. 0 does not clip (unbiased, high variance), 1 makes all weights 1. For sequences .01 to .1.
        normalised: divide the loss by the sum of the weights, which keeps the effective learning rate and makes theta
            matter up to a factor only. Else the loss is an unbiased sum, and BCE has its exact form.

    Raises:
        ValueError: M outside of 0..1.
    """

    def __init__(self, propensity: Any = None, clip: float = 0.01, normalised: bool = True) -> None:
        super().__init__()
        if not 0 <= clip <= 1:
            raise ValueError(f"clip (M) must lie in 0..1, found {clip}")
        self.propensity = PopularityPropensity() if propensity is None else propensity
        self.clip, self.normalised = clip, normalised
        self.needs: frozenset[str] = member(self.propensity, "needs")

    def bind(self, context: Context) -> None:
        """Let the propensities be learned."""
        bind(self.propensity, context)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """(B, L) float32 weights, 0 where there is no target."""
        theta = self.propensity(batch).float()
        return (1 / theta.clamp(min=self.clip)) * (_targets(batch) > 0)

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """For the report: how far the weights go, and how many events they are worth."""
        theta = self.propensity.theta.cpu().numpy()
        if theta.shape != (split.num_items + 1,):
            return {}  # by period or by rank: not one number per item
        return {"Inverse propensities": weight_facts(theta, split.train.item_counts(), self.clip)}


def weight_facts(theta: np.ndarray, counts: np.ndarray, clip: float) -> dict[str, float]:
    """Facts about the weights of events, ``counts`` (N+1,) of each item with propensity ``theta`` (N+1,).

    The effective sample size is (sum w)^2 / sum w^2: as many equally weighted events have the same variance.
    """
    weights = 1 / np.maximum(theta[1:].astype(np.float64), max(clip, 1e-12))
    events = counts[1:].astype(np.float64)
    total, seen = max(events.sum(), 1.0), events > 0
    size = effective_size(weights, events)
    return {
        "events": float(events.sum()),
        "maximum weight": float(weights[seen].max(initial=0.0)),
        "mean weight": float((weights * events).sum() / total),
        "effective sample size": size,
        "effective share": size / total,
        "share of clipped targets": float(events[theta[1:] < clip].sum() / total),
    }


def effective_size(weights: np.ndarray, times: np.ndarray | float = 1.0) -> float:
    """(sum w)^2 / sum w^2 of weights (n,) that occur ``times`` each; 0 if there are none."""
    squares = float((weights**2 * times).sum())
    return float((weights * times).sum() ** 2 / squares) if squares else 0.0


def _known(part: Any) -> Tensor:
    theta: Tensor = part.theta
    if theta.shape[-1] == 0:
        raise ValueError(
            f"{type(part).__name__} has no propensities: train it with rs.fit (or call bind(context) yourself, with a "
            "training part); a loaded model may not have them"
        )
    return theta


def _targets(batch: Batch) -> Tensor:
    if batch.targets is None:
        raise ValueError("the batch has no targets: propensities weigh the targets of a prepared batch")
    return batch.targets


def _plain(item: Any) -> Any:
    return item.item() if isinstance(item, np.generic) else item
