"""Several objectives over one batch: dislikes beside what is to stay, pairs beside imitation.

    L = sum_k weight_k L_k

Each reads the sequences of its own roles and passes over the others, so a batch that holds all of them is all it takes
(:class:`recsys.llm.trainers.judgements.Together` makes such batches).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from recsys.hooks import PartList, bind
from recsys.llm.trainers.sequences import Sequences
from recsys.protocols import Context


class Combined(nn.Module):
    """The weighted sum of objectives.

    Args:
        parts: the objectives.
        weights: one for each; None: 1.

    Raises:
        ValueError: fewer than two parts, or not a positive weight for each.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(parts) if weights is None else [float(one) for one in weights]
        if len(parts) < 2 or len(weights) != len(parts) or not all(one > 0 for one in weights):
            raise ValueError(
                f"at least two objectives with a positive weight each are needed; found {len(parts)} of weights "
                f"{weights}"
            )
        self.parts, self.weights = PartList(parts), weights
        self.reads: frozenset[str] = frozenset().union(*(part.reads for part in parts))

    def bind(self, context: Context) -> None:
        """Bind the parts."""
        for part in self.parts:
            bind(part, context)

    def forward(self, batch: Sequences) -> dict[str, Tensor]:
        """The terms of all parts, by the name of their class and their own."""
        terms: dict[str, Tensor] = {}
        for part, weight in zip(self.parts, self.weights, strict=True):
            found, name = part(batch), type(part).__name__
            named = {name: found} if isinstance(found, Tensor) else {f"{name}.{key}": one for key, one in found.items()}
            for key, value in named.items():
                terms[key] = terms.get(key, 0) + weight * value
        return terms

    def figures(self, batch: Sequences) -> dict[str, float]:
        """What the parts count."""
        told: dict[str, float] = {}
        for part in self.parts:
            told |= part.figures(batch) if hasattr(part, "figures") else {}
        return told
