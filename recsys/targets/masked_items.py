"""Items masked out of a history. A training row arrives as up to L + 1 events without targets and leaves as
up to L inputs with targets; a query (a history to recommend for) is already what the encoder reads. Where the batch has
times, ``target_times`` (B, L) holds those of the events to predict.

Legend: B histories, L longest input of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recsys.data.batch import Batch, blanked


class MaskedItems:
    """Some items are replaced by a mask token and predicted from all others (BERT4Rec, arXiv 1904.06690, section 3.6).

    The mask token is row N + 1 of the item table, which the recommender has it make room for. All L + 1 events of a
    training row are inputs, as a query is a history with one mask behind it. Unlike in the authors' data generator,
    masks are drawn anew in every epoch, each token on its own (at least one per history) rather than a fixed number.

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
        """Learn from a :class:`recsys.protocols.Context` which row is the mask: the one behind the items."""
        self.num_items = context.num_items

    def train(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The events with masks among them (their features missing), and at the masks the items that stood there."""
        draws = torch.rand(batch.ids.shape, generator=generator, device=batch.ids.device)
        draws = draws.masked_fill(~batch.mask, 2.0)
        only_last = torch.rand(len(batch), 1, generator=generator, device=batch.ids.device) < self.last
        position = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        masked = (draws < self.probability) | (position == draws.argmin(1, keepdim=True))
        masked = torch.where(only_last, position == batch.lengths[:, None] - 1, masked) & batch.mask
        return batch.replace(
            ids=batch.ids.masked_fill(masked, self._mask),
            targets=batch.ids * masked,
            weights=None if batch.weights is None else batch.weights * masked,
            features={name: blanked(values, masked) for name, values in batch.features.items()},
            target_times=batch.times,
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
            features={name: _append_missing(values, lengths) for name, values in batch.features.items()},
        )

    @property
    def _mask(self) -> int:
        if not self.num_items:
            raise ValueError(
                "MaskedItems does not know the number of items yet: train it with rs.fit or load a run (or call "
                "bind(context) yourself)"
            )
        return self.num_items + 1


def _append_missing(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, ...) of a feature, with nothing known behind each row's last event: (B, L + 1, ...)."""
    longer = torch.cat([values, torch.zeros_like(values[:, :1])], 1)
    return blanked(longer, torch.arange(longer.shape[1], device=lengths.device) == lengths[:, None])


def _append(values: Tensor, lengths: Tensor, newest: Tensor) -> Tensor:
    """(B, L) with ``newest`` (B,) behind each row's last event: (B, L + 1)."""
    longer = torch.nn.functional.pad(values, (0, 1))
    return longer.scatter(1, lengths[:, None], newest[:, None].to(values.dtype))
