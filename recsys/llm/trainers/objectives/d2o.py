"""Distributional dispreference optimization (D2O): what was rejected against what the model itself would say.

With D_n = log pi(y_n | x) - log pi_ref(y_n | x), for each prompt x with rejected completions and K samples of its own,

    L = -mean_x log sigmoid(beta mean_{n in SELF(x)} D_n - alpha mean_{n in NEGATIVE(x)} D_n)

so that dislikes alone teach, without a completion known to be good. Source: "Negating negatives: alignment with human
negative samples via distributional dispreference optimization" (arXiv 2403.03419, equations 3 and 4, both references
the initial model).

What we do differently: several rejected completions of a prompt are averaged in the same bracket, and a sample that is
one of them to the token is left out, since it would be pushed up and down at once; small catalogues have many. SELF
samples have to come from the reference, once: drawn from the moving policy they make another method. They are
popular items, so popular items are strengthened; sampling at a temperature above 1 weakens that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import Pairs, group_means, group_sums, pairs
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean


class D2O(nn.Module):
    """NEGATIVE sequences become less probable than the SELF sequences of their group; the paper has 11 of these each.

    Sequences count by weight within their group, and a group by the mean weight of its NEGATIVE sequences.

    Args:
        alpha: how much the rejected count.
        beta: how much the model's own samples count.

    Use when: there are only dislikes ("not interested", hidden, returned).
    Prefer instead: DPO or AFT where a liked completion of the same prompt is known.

    Raises:
        ValueError: a number out of range.
    """

    reads: frozenset[str] = frozenset({"reference", "tokens"})

    def __init__(self, alpha: float = 0.1, beta: float = 0.1) -> None:
        super().__init__()
        if not alpha > 0 or not beta > 0:
            raise ValueError(f"alpha > 0 and beta > 0 are needed, found {alpha} and {beta}")
        self.alpha, self.beta = alpha, beta

    def forward(self, batch: Sequences) -> Tensor:
        """The scalar loss; 0 if every sample of the batch was left out, which :meth:`figures` count.

        Raises:
            ValueError: a role is missing, no group has both, or there is no reference or no token to compare.
        """
        found = pairs(batch, Role.SELF, Role.NEGATIVE, "D2O")
        own, disliked = found.better.unique(), found.worse.unique()
        own = own[~torch.isin(own, _repeats(batch, found))]
        group = _groups(batch, found)
        gains, weights = batch.gains, batch.weights

        def means(rows: Tensor) -> Tensor:
            return group_means(gains[rows], weights[rows], group[rows], found.count)

        bracket = self.beta * means(own) - self.alpha * means(disliked)  # (G,)
        counts, sampled = (torch.bincount(group[rows], minlength=found.count) for rows in (disliked, own))
        weighing = group_sums(weights[disliked], group[disliked], found.count) / counts.clamp(min=1) * (sampled > 0)
        return weighted_mean(-F.logsigmoid(bracket), weighing)

    def figures(self, batch: Sequences) -> dict[str, float]:
        """How many of the model's own samples were left out because they are what was rejected."""
        found = pairs(batch, Role.SELF, Role.NEGATIVE, "D2O")
        return {
            "samples that were rejected": float(len(_repeats(batch, found))),
            "samples that were rejected of": float(len(found.better.unique())),
        }


def _groups(batch: Sequences, found: Pairs) -> Tensor:
    """(N,) the number of each row's group, for the rows that are in pairs."""
    group = torch.zeros(len(batch), dtype=torch.int64, device=found.group.device)
    group[found.better] = found.group
    group[found.worse] = found.group
    return group


def _repeats(batch: Sequences, found: Pairs) -> Tensor:
    """(K,) rows of the samples that equal, token by token, a rejected completion of their group."""
    if batch.tokens is None:
        raise ValueError("D2O leaves out samples that are what was rejected, and the batch has no tokens to compare")
    tokens = batch.tokens.masked_fill(~batch.mask, -1)
    return found.better[(tokens[found.better] == tokens[found.worse]).all(1)].unique()
