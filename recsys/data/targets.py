"""What is predicted where: the next item at every position, one item after a whole prefix, or items masked out.

Legend: B histories, L longest input of the batch. A training row arrives as up to L + 1 events without targets and
leaves as up to L inputs with targets; a query (a history to recommend for) is already what the encoder reads. Where
the batch has times, ``extra["target_times"]`` (B, L) holds those of the events to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import Batch


class NextItem:
    """Each position predicts the item that follows it: a history of n + 1 events gives n targets.

    The targets stand in the input one step later, so only an encoder that sees the past can be trained this way.
    """

    sees = "past"
    scheme = "windows"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Inputs ``ids[:, :-1]`` and targets ``ids[:, 1:]``; a weight moves with its target."""
        targets = _tail(batch.ids)
        weights = None if batch.weights is None else _tail(batch.weights)
        return _inputs(batch, targets, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


class LastItem:
    """Only the last position predicts: one training row per prefix of each history.

    Use when the encoder reads the whole input (``sees = "all"``). Costs one row per event instead of one per user;
    prefer :class:`NextItem` for encoders that see only the past.
    """

    sees = "all"
    places = "newest"
    scheme = "prefixes"

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The first n of n + 1 events as input, the last one as the target of the last position."""
        targets = _tail(batch.ids)
        inputs = (batch.lengths - 1).clamp(min=0)
        last = torch.arange(targets.shape[1], device=targets.device) == inputs[:, None] - 1
        weights = None if batch.weights is None else _tail(batch.weights) * last
        return _inputs(batch, targets * last, weights)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


class OneTarget:
    """One target per user and epoch, at a random place of the history, and what precedes it as input.

    So do Recformer's authors (arXiv 2305.13731, collators), where ``LastItem`` takes every prefix of every history
    in every epoch. The place is uniform over the whole training history, however long, and the input the newest events
    before it; in the stages ``late`` it is in the second half. Unlike theirs an input has at least one item: a user
    without history is never asked for.
    """

    sees = "all"
    places = "newest"
    scheme = "drawn"

    def __init__(self, late: Sequence[str] = ("pretrain",)) -> None:
        self.late, self.stage = list(late), ""

    def bind(self, context: Any) -> None:
        """Forget the stage of an earlier fit."""
        self.stage = ""

    def on_stage(self, name: str) -> None:
        """Remember which stage runs."""
        self.stage = name

    def draw(self, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """(n,) places of the targets in histories of ``lengths`` (n,), two events or more."""
        lowest = np.maximum((lengths - 1) // 2, 1) if self.stage in self.late else np.ones_like(lengths)
        return random.integers(lowest, lengths)

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The events before a random one as input, and that one as the target of the last position.

        ``extra["place"]`` (B,) says which event that is, where it was drawn before the rows were read; else it is drawn
        from the events of the row.
        """
        extra = dict(batch.extra)
        drawn = extra.pop("place", None)
        if drawn is None:
            draws = torch.rand(len(batch), generator=generator, device=batch.ids.device)
            late = self.stage in self.late
            lowest = ((batch.lengths - 1) // 2).clamp(min=1) if late else batch.lengths.clamp(max=1)
            count = (batch.lengths - lowest).clamp(min=1)
            drawn = lowest + (draws * count).long().clamp(max=count - 1)
        inputs = torch.minimum(drawn, batch.lengths - 1).clamp(min=0)
        place = torch.arange(max(batch.ids.shape[1] - 1, 1), device=batch.ids.device)
        keep, last = place < inputs[:, None], place == inputs[:, None] - 1

        def shifted(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, 2))[:, 1 : 1 + len(place)] * last

        ids = torch.nn.functional.pad(batch.ids, (0, 1))[:, : len(place)]
        changes: dict[str, Any] = {"ids": ids * keep, "lengths": inputs, "targets": shifted(batch.ids)}
        if batch.weights is not None:
            changes["weights"] = shifted(batch.weights)
        if "events" in extra:  # the event that is predicted, not the newest of the row
            extra["events"] = extra["events"] - (batch.lengths - 1 - inputs).clamp(min=0)
        if batch.times is not None:
            changes["times"] = torch.nn.functional.pad(batch.times, (0, 1))[:, : len(place)] * keep
            extra["target_times"] = shifted(batch.times)
            if batch.query_time is not None:
                changes["query_time"] = extra["target_times"].sum(1)
        return batch.replace(**changes, extra=extra)

    def query(self, batch: Batch) -> Batch:
        """The history itself: its last position predicts the next item."""
        return batch


class MaskedItems:
    """Some items are replaced by a mask token and predicted from all others (BERT4Rec, arXiv 1904.06690, section 3.6).

    The mask token is row N + 1 of the item table, which needs ``IdItems(extra=1)``. All L + 1 events of a training row
    are inputs, as a query is a history with one mask behind it. Unlike in the authors' data generator, masks are drawn
    anew in every epoch, each token on its own (at least one per history) rather than a fixed number of them.

    Args:
        probability: share of the tokens that are masked; the authors took .2 for MovieLens, .4 for Steam and .6 for
            Beauty.
        last: share of the rows in which the newest item alone is masked, as in a query; the authors make one such
            sample for every ten others (FeiSun/BERT4Rec, gen_data_fin.py with ``dupe_factor=10``).

    Raises:
        ValueError: a share outside of its range.
    """

    sees = "all"
    scheme = "windows"
    appends = 1  # tokens that a query has behind its history
    rows_behind = 1

    def __init__(self, probability: float = 0.2, last: float = 0.1) -> None:
        if not 0.0 < probability < 1.0:
            raise ValueError(f"probability must lie between 0 and 1, found {probability}")
        if not 0.0 <= last <= 1.0:
            raise ValueError(f"last must lie in 0..1, found {last}")
        self.probability, self.last = probability, last
        self.num_items = 0

    def bind(self, context: Any) -> None:
        """Learn from a :class:`recsys.seams.Context` which row is the mask: the one behind the items."""
        self.num_items = context.num_items

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The events with masks among them, and at the masks the items that stood there."""
        draws = torch.rand(batch.ids.shape, generator=generator, device=batch.ids.device)
        draws = draws.masked_fill(~batch.mask, 2.0)
        only_last = torch.rand(len(batch), 1, generator=generator, device=batch.ids.device) < self.last
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        masked = (draws < self.probability) | (place == draws.argmin(1, keepdim=True))
        masked = torch.where(only_last, place == batch.lengths[:, None] - 1, masked) & batch.mask
        return batch.replace(
            ids=batch.ids.masked_fill(masked, self._mask),
            targets=batch.ids * masked,
            weights=None if batch.weights is None else batch.weights * masked,
            extra=batch.extra if batch.times is None else {**batch.extra, "target_times": batch.times},
        )

    def query(self, batch: Batch) -> Batch:
        """The history and a mask behind it, at the time of the query, or of the newest item if that is unknown."""
        lengths, times = batch.lengths, batch.times
        if times is not None:
            newest = times.gather(1, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)
            asked = newest if batch.query_time is None else torch.maximum(batch.query_time, newest)
            times = _append(times, lengths, asked)
        return batch.replace(
            ids=_append(batch.ids, lengths, torch.full_like(lengths, self._mask)),
            lengths=lengths + 1,
            weights=None if batch.weights is None else _append(batch.weights, lengths, torch.ones_like(lengths)),
            times=times,
        )

    @property
    def _mask(self) -> int:
        if not self.num_items:
            raise ValueError("MaskedItems does not know the number of items yet: call bind(context) first")
        return self.num_items + 1


def _append(values: Tensor, lengths: Tensor, newest: Tensor) -> Tensor:
    """(B, L) with ``newest`` (B,) behind each row's last event: (B, L + 1)."""
    longer = torch.nn.functional.pad(values, (0, 1))
    return longer.scatter(1, lengths[:, None], newest[:, None].to(values.dtype))


def _inputs(batch: Batch, targets: Tensor, weights: Tensor | None) -> Batch:
    lengths = (batch.lengths - 1).clamp(min=0)
    return batch.replace(
        ids=_head(batch.ids, lengths),
        lengths=lengths,
        targets=targets,
        weights=weights,
        times=None if batch.times is None else _head(batch.times, lengths),
        extra=batch.extra if batch.times is None else {**batch.extra, "target_times": _tail(batch.times)},
    )


def _head(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, L+1) without each row's last event: (B, max(L, 1)), zero where nothing is left."""
    values = values[:, : max(values.shape[1] - 1, 1)]
    return values * (torch.arange(values.shape[1], device=values.device) < lengths[:, None])


def _tail(values: Tensor) -> Tensor:
    """(B, L+1) without the first column: (B, max(L, 1)), so that a batch of single events keeps a column."""
    return values[:, 1:] if values.shape[1] > 1 else torch.zeros_like(values)
