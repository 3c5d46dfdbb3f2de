"""A recommender composed of parts: item table, encoder, targets, objective, auxiliaries, augmentations.

Legend: B histories, T targets, N items, D width, K cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import PAD, Batch
from recsys.errors import UnknownItemError
from recsys.protocols import Augmentation, Auxiliary, Encoder, ItemTable, Objective, Targets, Weighting
from recsys.ranking.products import check_metric, refuse_nonfinite
from recsys.ranking.ties import best
from recsys.recommenders.base import SCORE_BUDGET
from recsys.recommenders.modes import evaluating
from recsys.recommenders.parts import Composed

ENCODE_ROWS = 256  # histories encoded at a time when scoring
EXPORT_ROWS = 2**16  # item vectors copied at a time


class Recommender(Composed):
    """Parts put together, checked against each other, trained by :func:`recsys.fit` and ranked like any other.

    Args:
        items: the item table (``IdItems``, text tables, sums).
        encoder: histories to states; its ``max_length`` is the recommender's, less what a query gets appended (a mask)
            and the encoder has no room for.
        objective: the loss of the targets.
        targets: what is predicted where (default ``NextItem``).
        auxiliaries: further losses, each with its ``weight``.
        augmentations: applied in order to every training batch, before the targets are set.
        weightings: how much each target counts, multiplied with the weights that the data may have.

    Raises:
        ValueError: widths differ, the encoder would see its own target, gives no state where the targets are, reads
            less than a part makes, or gives nothing of what a loss reads.
    """

    def __init__(
        self,
        items: ItemTable,
        encoder: Encoder,
        objective: Objective,
        targets: Targets | None = None,
        auxiliaries: Sequence[Auxiliary] = (),
        augmentations: Sequence[Augmentation] = (),
        weightings: Sequence[Weighting] = (),
    ) -> None:
        super().__init__(items, encoder, objective, targets, auxiliaries, augmentations, weightings)

    def score(self, batch: Batch) -> Tensor:
        """(B, N) dot products of user states and item vectors."""
        return self.items.scores(self.vectors(batch))

    def item_vectors(self) -> np.ndarray:
        """(N, D) float32 output vectors of all items, row j for item row j + 1."""
        found = np.empty((self.num_items, self.items.dim), np.float32)
        with evaluating(self), torch.inference_mode():
            for rows in torch.arange(1, self.num_items + 1, device=self.popularity.device).split(EXPORT_ROWS):
                found[int(rows[0]) - 1 : int(rows[-1])] = self.items.output(rows).float().cpu().numpy()
        return found

    def user_vectors(self, histories: Sequence[Any]) -> np.ndarray:
        """(B, D) float32 vectors of raw histories, zero where no item is known."""
        histories = self._ready(histories)
        with evaluating(self), torch.inference_mode():
            chunks = [self.vectors(batch).cpu().numpy() for batch, _ in self._batches(histories)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.items.dim), np.float32)

    def vectors(self, batch: Batch) -> Tensor:
        """(B, D) float32 user vectors of a batch, zero for an empty history.

        Histories of similar length are encoded together, a few at a time: little padding, and memory that stays warm.
        """
        vectors = torch.zeros(len(batch), self.items.dim, device=batch.ids.device)
        order = batch.lengths.argsort(stable=True)
        known = order[batch.lengths[order] > 0]
        for rows in known.split(ENCODE_ROWS) if len(known) else ():
            part = batch.select(rows)
            part = part.trim(int(part.lengths.max()))
            vectors[rows] = self.encode(self.targets.query(part)).user.float()
        return vectors

    def similar(self, items: Sequence[Any], k: int = 10, metric: str = "cosine") -> list[list[tuple[Any, float]]]:
        """The ``k`` items nearest to each given raw item, as (raw id, similarity), itself left out.

        Fewer where the catalogue has no more; equal ones in the order of the catalogue.

        Args:
            metric: "cosine", or "dot" for the inner product, which is what users and items meet in.

        Raises:
            UnknownItemError: an item is not in the catalogue.
            ValueError: ``k`` is below 1, or ``metric`` is neither of the two.
        """
        k = self._check(k, "none")
        check_metric(metric)
        assert self.vocabulary is not None
        rows = self.vocabulary.rows(items)
        if (rows <= PAD).any():
            unknown = [item for item, row in zip(items, rows, strict=True) if row <= PAD]
            raise UnknownItemError(f"{len(unknown)} items are not in the catalogue, such as {unknown[:3]}")
        found: list[list[tuple[Any, float]]] = []
        with evaluating(self), torch.inference_mode():
            for part in torch.from_numpy(rows).split(max(1, SCORE_BUDGET // (4 * self.num_items))):
                values, columns = best(self._similarity(part.to(self.popularity.device), metric), k)
                raw = self.vocabulary.raw(columns.cpu().numpy() + 1).tolist()
                kept = (values > -torch.inf).sum(1).tolist()
                pairs = zip(raw, values.tolist(), kept, strict=True)
                found += [list(zip(ids[:n], near[:n], strict=True)) for ids, near, n in pairs]
        return found

    def _similarity(self, rows: Tensor, metric: str) -> Tensor:
        """(n, N) similarity of item rows (n,) and all items, -inf to themselves."""
        scores = self.items.scores(self.items.output(rows).float(), metric)
        refuse_nonfinite(scores)
        return scores.index_put_(
            (torch.arange(len(rows), device=scores.device), rows - 1), scores.new_tensor(-torch.inf)
        )
