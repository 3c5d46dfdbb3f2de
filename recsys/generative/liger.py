"""LIGER: what a beam finds, united with the cold items, in the order of a dense head.

    candidates(u) = the K items of the beam  +  all items without training events
    order: cos(u, v_i), u the state of the history, v_i the vector of the item's text

Generation alone never names an item that training did not see; dense retrieval alone compares with the whole catalogue.
``rank_by`` tells which of the three scores orders the lists: "hybrid" as above, "dense" over all items, "generative"
for the beam's log-probabilities. An item that is both in the beam and cold is a candidate once.

Reference: LIGER (arXiv 2411.18814); facebookresearch/liger. What differs: the text is added to the input
per item and not per code token (``AddedInputs``), and beams hold existing items only.
Legend: B histories, N items (rows 1..N), K beams, C cold items.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.batch import PAD
from recsys.generative.dense import DenseRetrieval
from recsys.generative.generator import Generator
from recsys.protocols import Augmentation, Auxiliary, Decoder, Encoded, Encoder, Targets, Weighting
from recsys.ranking.filters import Shown
from recsys.ranking.products import refuse_nonfinite
from recsys.ranking.ties import best

RANK_BY = ("hybrid", "dense", "generative")
METRICS = ("ndcg@10", "hr@10")


class Liger(Generator):
    """A generator whose candidates are re-ranked by a dense head.

    Args:
        items, encoder, decoder, search, targets, augmentations, weightings: as of a ``Generator``.
        auxiliaries: further losses; one of them is a ``DenseRetrieval``, the dense head.
        rank_by: "hybrid", "dense" or "generative"; :meth:`by` gives a trained model another.
        candidates: K, beams that are re-ranked. Where a longer list is asked for there are as many as it has items, so
            a list of up to K items begins a longer one only up to its own candidates: set K to the longest list.

    Raises:
        ValueError: there is no dense head or several, ``rank_by`` is none of the three or needs a dense head whose
            weight is 0, or ``candidates`` is below 1; or as a ``Generator``.
    """

    def __init__(
        self,
        items: Any,
        encoder: Encoder,
        decoder: Decoder,
        search: Any = None,
        rank_by: str = "hybrid",
        candidates: int = 20,
        targets: Targets | None = None,
        auxiliaries: Sequence[Auxiliary] = (),
        augmentations: Sequence[Augmentation] = (),
        weightings: Sequence[Weighting] = (),
    ) -> None:
        super().__init__(items, encoder, decoder, search, targets, auxiliaries, augmentations, weightings)
        heads = [one for one in auxiliaries if isinstance(one, DenseRetrieval)]
        if len(heads) != 1 or heads[0].items.dim != encoder.dim:
            widths = [head.items.dim for head in heads]
            raise ValueError(
                f"auxiliaries must hold one DenseRetrieval as wide as the encoder, {encoder.dim}; found {len(heads)} "
                f"of widths {widths}"
            )
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, found {candidates}")
        self.rank_by, self.candidates = self._checked(rank_by), candidates

    @property
    def dense(self) -> DenseRetrieval:
        """The dense head."""
        return next(one for one in self.auxiliaries if isinstance(one, DenseRetrieval))

    def by(self, rank_by: str) -> Liger:
        """The same model, weights shared, that ranks by another of the three scores."""
        other = copy.copy(self)
        other.rank_by = self._checked(rank_by)
        return other

    def _checked(self, rank_by: str) -> str:
        if rank_by not in RANK_BY:
            raise ValueError(f"rank_by is one of {', '.join(RANK_BY)}, found {rank_by!r}")
        if rank_by != "generative" and not self.dense.weight:
            raise ValueError(
                f'a dense head of weight 0 learns nothing that could rank: rank by "generative", found {rank_by!r}'
            )
        return rank_by

    def sections(self, model: Any, split: Any) -> dict[str, Any]:
        """Of the report: the three scores apart, for all targets and for warm and cold ones."""
        from recsys.eval.evaluate import evaluate

        rows = []
        for rank_by in RANK_BY if self.dense.weight else ("generative",):
            report = evaluate(self.by(rank_by), split.test, k=[10], metrics=METRICS, progress=False, warn=False)
            cold = report.columns["cold_targets"] > 0
            groups = {"all": np.ones_like(cold), "warm": ~cold, "cold": cold}
            means = {
                f"{metric} {name}": round(float(report.columns[metric][group].mean()), 4) if group.any() else "no user"
                for metric in METRICS
                for name, group in groups.items()
            }
            rows.append({"ranked by": rank_by, **means})
        return {"Generative, dense and hybrid scores": rows}

    def _generated(self, encoded: Encoded, shown: Shown, width: int) -> tuple[Tensor, Tensor]:
        if self.rank_by == "generative":
            return self._searched(encoded, shown, width)
        users, vectors = F.normalize(encoded.user.float(), dim=1), self.dense.vectors()
        if self.rank_by == "dense":
            scores = users @ vectors.T
            refuse_nonfinite(scores)
            shown.hide(scores)
            values, columns = best(scores, width)
            return torch.where(values == -torch.inf, PAD, columns + 1), values
        near, _ = self._searched(encoded, shown, max(width, min(self.candidates, self.num_items)))
        cold = self.dense.cold
        rows = torch.cat([near, cold.expand(len(near), -1)], 1)
        scores = torch.einsum("bd,bkd->bk", users, vectors[(rows - 1).clamp(min=0)])
        hidden = rows == PAD
        hidden[:, : near.shape[1]] |= torch.isin(near, cold)  # once among the candidates
        if len(cold):
            kept = torch.zeros(len(near), len(cold), device=scores.device)
            shown.among(cold.cpu().numpy() - 1).hide(kept)
            hidden[:, near.shape[1] :] |= kept == -torch.inf
        scores = scores.masked_fill(hidden, -torch.inf)
        rows, order = rows.sort(dim=1, stable=True)  # equal scores by item row
        values, columns = best(scores.gather(1, order), width)
        return rows.gather(1, columns).masked_fill(values == -torch.inf, PAD), values
