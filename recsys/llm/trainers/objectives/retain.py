"""What is to stay as it is while something else is trained: the other half of forgetting, dislikes and rewards.

    L = likelihood * mean over RETAIN tokens of -log pi  +  divergence * mean over their positions of KL(pi_ref || pi)

The first is learning them by heart again, which a model that had done that before must be kept from; the second keeps
the whole distribution behind their prompts, and is 0 at the reference. Source: the retain terms of arXiv 2404.05868.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import rows_of
from recsys.llm.trainers.objectives.supervised import token_mean
from recsys.llm.trainers.sequences import Role, Sequences


class Retain(nn.Module):
    """RETAIN sequences keep their probability, or all that is said behind their prompts.

    Args:
        likelihood, divergence: weights of the two terms; a term of weight 0 is not computed and needs nothing.

    Use when: another objective in :class:`~recsys.llm.trainers.objectives.combined.Combined` moves the model away from
    what everybody else gets.

    Raises:
        ValueError: a weight is negative, or both are 0.
    """

    def __init__(self, likelihood: float = 0.0, divergence: float = 1.0) -> None:
        super().__init__()
        if not min(likelihood, divergence) >= 0 or not max(likelihood, divergence) > 0:
            raise ValueError(
                f"likelihood and divergence are at least 0, one of them more; found {likelihood}, {divergence}"
            )
        self.likelihood, self.divergence = likelihood, divergence
        self.reads: frozenset[str] = frozenset({"divergence"} if divergence else ())

    def forward(self, batch: Sequences) -> dict[str, Tensor]:
        """The terms by name, times their weights.

        Raises:
            ValueError: no sequence is to be retained, or there is no divergence to read.
        """
        return retained(batch, self.likelihood, self.divergence, "Retain")

    @torch.no_grad()
    def figures(self, batch: Sequences) -> dict[str, float]:
        """The mean divergence from the reference, if it is read."""
        if batch.divergence is None:
            return {}
        rows = rows_of(batch, Role.RETAIN, "Retain")
        mask = batch.mask[rows]
        return {
            "divergence of what stays": float(batch.divergence[rows][mask].sum()),
            "divergence of what stays of": float(mask.sum()),
        }


def retained(batch: Sequences, likelihood: float, divergence: float, asked: str) -> dict[str, Tensor]:
    """The terms of weights above 0, by name."""
    terms: dict[str, Tensor] = {}
    if likelihood:
        terms["retain"] = -likelihood * token_mean(batch.log_probs, batch, rows_of(batch, Role.RETAIN, asked))
    if divergence:
        if batch.divergence is None:
            raise ValueError(f"{asked} reads the divergence from the reference, and the batch has none")
        terms["kl"] = divergence * token_mean(batch.divergence, batch, rows_of(batch, Role.RETAIN, asked))
    return terms
