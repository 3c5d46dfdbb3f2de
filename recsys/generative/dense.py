"""Dense retrieval beside generation: states of histories against vectors of item texts, as a further loss.

    loss_t = -log softmax over the warm items of cos(u_t, v_i) / temperature, at the target

with u_t the encoder's state and v_i what an item table makes of item i. Items without training events are left out of
the sum, so training never pushes them away (LIGER sets their logits to -100). What the table learns of texts places
them all the same.

Reference: LIGER, "Unifying Generative and Dense Retrieval for Sequential Recommendation" (arXiv 2411.18814), and
facebookresearch/liger. Legend: T targets, B histories, N items (rows 1..N), W warm ones, D width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.hooks import bind
from recsys.nn.softmax import cross_entropy
from recsys.protocols import Context, ItemTable, Step


class DenseRetrieval(nn.Module):
    """An auxiliary that trains an item table of its own to be found by the encoder's states.

    Args:
        items: vectors of items by what new ones have too, such as ``TextItems(dim, folder, project="mlp")``; as wide as
            the encoder.
        weight: of the loss.
        temperature: divides cosines.

    Raises:
        ValueError: a number out of range.
    """

    warm: Tensor  # (N+1,) bool

    def __init__(self, items: ItemTable, weight: float = 1.0, temperature: float = 0.07) -> None:
        super().__init__()
        if temperature <= 0 or weight < 0:
            raise ValueError(f"temperature > 0 and weight >= 0 are needed, found {temperature} and {weight}")
        self.items, self.weight, self.temperature = items, weight, temperature
        self.register_buffer("warm", torch.zeros(1, dtype=torch.bool))

    @property
    def item_tables(self) -> list[ItemTable]:
        """The table, which gets rows for items that are added to the catalogue."""
        return [self.items]

    def bind(self, context: Context) -> None:
        """Learn which items have training events; the table is bound too."""
        bind(self.items, context)
        counts = np.zeros(context.num_items + 1) if context.training is None else context.training.item_counts()
        self.warm = torch.from_numpy(np.asarray(counts) > 0)

    def forward(self, step: Step) -> Tensor:
        """The mean over the targets of the update, weighted as in the objective, whatever batches they come in."""
        hidden, targets, weights = step.encoded.at_targets(step.batch)
        if not len(targets):
            return hidden.sum() * 0.0
        rows = self.warm.nonzero().squeeze(1)
        place = self.warm.cumsum(0)  # 1..W of the warm items
        vectors = F.normalize(self.items.output(rows), dim=1)
        states = F.normalize(hidden, dim=1) / self.temperature
        total = cross_entropy(states, place[targets], weights, (vectors,))
        return total / step.total_weight / (step.share or 1.0)  # the recommender multiplies by the share

    def vectors(self) -> Tensor:
        """(N, D) vectors of length 1 of all items, for inference."""
        return F.normalize(self.items.output(torch.arange(1, self.items.num_items + 1, device=self.warm.device)), dim=1)

    @property
    def cold(self) -> Tensor:
        """(C,) the item rows without training events, those that came after training among them."""
        added = torch.arange(len(self.warm), self.items.num_items + 1, device=self.warm.device)
        return torch.cat([(~self.warm[1:]).nonzero().squeeze(1) + 1, added])
