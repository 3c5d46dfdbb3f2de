"""DuoRec: contrast of a history with itself under dropout, and with another of the same target (arXiv 2110.05730)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.auxiliaries.contrast import (
    NO_EVENTS,
    inputs,
    newest_target,
    together,
)
from recsys.auxiliaries.pairs import ViewContrast, checked_length
from recsys.data.batch import PAD, Batch
from recsys.protocols import Context, Step
from recsys.statistics.same_target import same_item
from recsys.targets.next_item import NextItem

MODES = ("us_x", "un", "su", "us")


class DuoRec(ViewContrast):
    """The history under another dropout, and another training history with the same target (Qiu et al. 2022).

    With h the state of the recommendation pass, h' of the same history read again, h_s of another history with the same
    target (arXiv 2110.05730; modes as in the authors' code):

    - "us_x" (default): NT-Xent(h', h_s), one pass over twice the rows;
    - "un": NT-Xent(h, h'), one pass; nothing but noise where the encoder has no dropout;
    - "su": NT-Xent(h, h_s), one pass;
    - "us": the sum of "un" and "su", one pass over twice the rows.

    Use when: several histories lead to the same item. The other history says what the target says already, so rows with
    one target are false negatives of each other elsewhere in the batch: ``hide=("target",)``.

    A row is its whole window here, and its target that of the newest position (trained on the last position alone, with
    ``LastItem`` targets, this is the authors' form). The other history is what stands before another training event
    with the item of that target, drawn uniformly, or before the row's own where there is no other; held-out events are
    out of reach. Rows without a target at the newest position take no part.

    Args:
        mode: one of the above.
        max_length: newest items of the other history that are read; by default as many as the longest input of the
            batch has, which is less than the encoder's reach where batches are sorted by length.
        weight, temperature, cosine, hide, keep: see :class:`ViewContrast`; ``weight`` is of both terms of "us".

    Raises:
        ValueError: as :class:`ViewContrast`, or an unknown mode, or a ``max_length`` below 1.
    """

    same_history = False
    as_ranked = True

    def __init__(
        self,
        weight: float = 0.1,
        mode: str = "us_x",
        temperature: float = 1.0,
        cosine: bool = False,
        hide: Sequence[str] = (),
        keep: float = 0.0,
        max_length: int | None = None,
    ) -> None:
        super().__init__(weight, temperature, "last", cosine, hide, keep)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, found {mode!r}")
        self.mode, self.max_length = mode, checked_length(max_length)
        self.longest = None if mode == "un" else self.max_length  # "un" reads no other history
        self.needs = frozenset() if mode == "un" else frozenset({"events"})
        self._training: Any = None

    def bind(self, context: Context) -> None:
        """Remember the training events, if there are any."""
        self._training = context.training

    def forward(self, step: Step) -> Tensor:
        """The loss of a step, 0 if at most one row takes part."""
        if self.mode == "us_x":
            return super().forward(step)
        rows = self.rows(step.batch)
        batch, anchors = step.batch.select(rows), step.encoded.user[rows]
        others: Sequence[Tensor] = [anchors] * (2 if self.mode == "us" else 1)  # no rows, but terms as in any process
        if len(rows):
            views = [inputs(batch)] if self.mode == "un" else list(self.views(step, batch))
            others = together(step, views[1:] if self.mode == "su" else views).user.split(len(batch))
        return torch.stack([self.contrast(step, batch, anchors, other) for other in others]).sum()

    def rows(self, batch: Batch) -> Tensor:
        """(B,) int64: which rows of the prepared batch take part."""
        return (newest_target(batch) > PAD).nonzero().squeeze(1)

    def views(self, step: Step, batch: Batch) -> tuple[Batch, Batch]:
        """The history, and another with the same target as it would be ranked."""
        return inputs(batch), step.asked(inputs(self.positives(batch, step.generator("DuoRec"))))

    def positives(self, batch: Batch, generator: torch.Generator) -> Batch:
        """(B, L') histories before other training events with the newest target of each row, with that target.

        Raises:
            ValueError: no training events are known (a loaded model), or the batch does not say which it predicts.
        """
        if self._training is None:
            raise ValueError(
                "DuoRec draws histories with the same target from the training events, and has none: train it with "
                "rs.fit (or call bind(context) yourself, with a training part)"
            )
        if batch.events is None:
            raise ValueError(f"DuoRec reads the events of the batch: {NO_EVENTS}")
        events, targets = batch.events.cpu().numpy(), newest_target(batch).cpu().numpy()
        users, found = same_item(self._training).draw(events, targets, generator)
        length = (batch.ids.shape[1] if self.max_length is None else self.max_length) + 1
        optional = {name for name in ("times", "query_time") if getattr(batch, name) is not None}
        gathered = self._training.gather(users, length, stop=np.asarray(found) + 1, needs=frozenset(optional))
        return NextItem().train(gathered.to(batch.ids.device))
