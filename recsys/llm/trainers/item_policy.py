"""A recommender that scores all items as a policy: an item is a sequence of one token, drawn from the full softmax.

    log pi(i | history) = h . e_i - log sum_j exp(h . e_j)

So what is said of sequences holds for SASRec and its kind as well: forgetting, dislikes, rewards of lists.
Legend: B histories, G items of each at most, N sequences, I items of the catalogue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batch import PAD, Batch
from recsys.llm.trainers.drafts import Draft
from recsys.llm.trainers.tuning import Scored
from recsys.protocols import Step
from recsys.ranking.filters import Shown


class ItemPolicy:
    """The softmax over all items.

    Args:
        encoder: that of the recommender, the same object.
        items: its item table where it is trained as well (it is what knows the items; without an adapter only), else
            None.
    """

    def __init__(self, encoder: Any, items: Any = None) -> None:
        self.encoder, self.items = encoder, items

    def parts(self) -> list[nn.Module]:
        """What is trained."""
        return [self.encoder] if self.items is None else [self.encoder, self.items]

    def __call__(self, step: Step, draft: Draft, full: bool = False) -> Scored:
        """See :class:`recsys.llm.trainers.tuning.Policy`; ``full`` takes the scores of all items for each
        history (B, I)."""
        users, items = self._users(step, draft.histories), self._items(step)
        real = draft.real
        owners = real.nonzero()[:, 0]
        rows = draft.rows[real]
        if full:
            everything = items.scores(users).float().log_softmax(1)
            log_probs = everything[owners, rows - 1]
        else:
            log_probs = (users[owners] * items.output(rows)).sum(1).float() - items.log_sum_exp(users).float()[owners]
        found = log_probs[:, None]
        return Scored(
            found,
            torch.ones_like(found, dtype=torch.bool),
            rows[:, None],
            draft.fields(real),
            everything[owners][:, None] if full else None,
        )

    @torch.no_grad()
    def sample(self, step: Step, histories: Batch, count: int, temperature: float, shown: Shown | None) -> Tensor:
        """(B, count) item rows, without replacement: the largest of scores with Gumbel noise."""
        scores = self._items(step).scores(self._users(step, histories)).float() / temperature
        if shown is not None:
            scores[_index(shown.denied.owners), _index(shown.denied.columns)] = -torch.inf
        random = step.generator("ItemPolicy.sample")
        noise = torch.rand(scores.shape, generator=random, device=scores.device, dtype=torch.float64)
        noisy = scores - (-noise.clamp(1e-12, 1 - 1e-12).log()).log().float()
        best, columns = noisy.topk(min(count, scores.shape[1]), dim=1)
        return torch.where(best == -torch.inf, PAD, columns + 1)

    def _users(self, step: Step, histories: Batch) -> Tensor:
        assert step.encode is not None
        users: Tensor = step.encode(step.asked(histories.histories())).user
        return users

    def _items(self, step: Step) -> Any:
        assert step.items is not None
        return step.items


def _index(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.int64))
