"""A softmax per level of a semantic id: all codes of the next item predicted at once, each for itself (RPG).

    loss_t = (1/M) sum_m [ log sum_k exp(l_tmk) - l_tm(c_m of the target) ]

with l_tmk the logit of code k of level m given state h_t. The score of an item is the sum of its codes' logits, which
orders the items like the sum of their log-probabilities, as the normalisers are the same for all of them: exact over
the catalogue, without a search.

Use when: codes are unordered (product quantisation, parallel experts) and many (16 to 64), and items come and go.
Prefer instead: ``FullSoftmax`` over the same table, which compares items and not codes.
Reference: Hou et al., "Generating Long Semantic IDs in Parallel for Recommendation", KDD 2025 (arXiv 2506.05781).
Legend: T targets, M levels, K codes of a level, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.data.batch import Batch
from recsys.nn.softmax import cross_entropy
from recsys.protocols import Encoded


class CodeSoftmax(nn.Module):
    """The mean over levels of the cross-entropy of the target's code, over an item table with codes.

    Args:
        chunk: targets worked on at a time (default: as many as keep their logits near 8 MB).

    Raises:
        TypeError: when it is used, the item table has no codes.
    """

    def __init__(self, chunk: int | None = None) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be positive, found {chunk}")
        self.chunk = chunk

    def forward(self, encoded: Encoded, batch: Batch, items: object, generator: torch.Generator) -> Tensor:
        """The sum over the targets of weight times loss; ``generator`` is not used."""
        tables, codes = getattr(items, "code_tables", None), getattr(items, "codes", None)
        if tables is None or codes is None:
            raise TypeError(
                f"CodeSoftmax predicts the codes of items, and {type(items).__name__} has none: use CodeItems, or "
                "FullSoftmax as the objective"
            )
        hidden, targets, weights = encoded.at_targets(batch)
        wanted = codes[targets] + 1
        levels = tables(hidden)
        losses = [
            cross_entropy(states, wanted[:, level], weights, (vectors,), self.chunk)
            for level, (states, vectors) in enumerate(levels)
        ]
        return torch.stack(losses).sum() / len(levels)
