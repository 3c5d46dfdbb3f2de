"""Alignment fine-tuning (AFT): several good and bad completions of a prompt, ranked without driving the bad ones away.

The score s_n of a completion is its mean log-probability per token. With the POSITIVE p and NEGATIVE q of a group,

    L_group = log(1 + sum_p sum_q exp(s_q - s_p)),   L = mean over groups + supervised * mean of -s_p

What keeps negatives from minus infinity, where ranking by likelihood breaks, is the constraint:

    detached  s_q without gradient: only positives move
    boundary  + exp(F - s_q) in each pair, F = min_p s_p - 2 margin without gradient: the slope at s_q is that of
              exp(s_q - s_p) - exp(F - s_q), 0 at s_q = s_p - margin for the worst p, where negatives come to rest
    none      neither

Source: "Making large language models better reasoners with alignment" (arXiv 2309.02144), read in secondary sources;
the boundary form is a reconstruction. It also lifts negatives that are already far below the floor, a reason for
``detached`` as the default, beside having nothing to tune. While the supervised term still lifts positives fast, the
floor rises faster than negatives follow it. No reference is needed.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import Pairs, group_means, log_one_plus, numbered, pairs, rows_of_any
from recsys.llm.trainers.sequences import Role, Sequences, weighted_mean

Constraint = Literal["detached", "boundary", "none"]


class AFT(nn.Module):
    """POSITIVE sequences above all NEGATIVE ones of their group, which keep a floor.

    The mean is over groups that have both, so that prolific users do not dominate; groups of one side are counted. A
    pair counts by the product of its sequences' weights, relative to those of its group, and a group by the product of
    the mean weights on both sides.

    Args:
        constraint: what keeps negatives from minus infinity, see above.
        margin: how far below the worst positive negatives come to rest, in nats per token; for ``boundary``.
        supervised: weight of the mean over TARGET and POSITIVE sequences of their negative log-probability per token.

    Use when: a prompt has several completions on both sides (clicked, and shown but skipped), and no reference.
    Prefer instead: DPO for single pairs and a reference at hand.

    Raises:
        ValueError: an unknown constraint, or a number out of range.
    """

    reads: frozenset[str] = frozenset()

    def __init__(self, constraint: Constraint = "detached", margin: float = 0.15, supervised: float = 1.0) -> None:
        super().__init__()
        if constraint not in get_args(Constraint):
            raise ValueError(f"constraint is one of {', '.join(get_args(Constraint))}, found {constraint!r}")
        if not margin > 0 or not supervised >= 0:
            raise ValueError(f"margin > 0 and supervised >= 0 are needed, found {margin} and {supervised}")
        self.constraint: Constraint = constraint
        self.margin, self.supervised = margin, supervised

    def forward(self, batch: Sequences) -> dict[str, Tensor]:
        """The terms by name: alignment, and supervised times its weight where that is not 0.

        Raises:
            ValueError: a role is missing.
        """
        found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, "AFT", some=False)
        terms = {"alignment": self._alignment(batch, found)}
        if self.supervised:
            rows = rows_of_any(batch, (Role.TARGET, Role.POSITIVE), "AFT")
            terms["supervised"] = -self.supervised * weighted_mean(batch.means[rows], batch.weights[rows])
        return terms

    def _alignment(self, batch: Sequences, found: Pairs) -> Tensor:
        good, bad, group, count = batch.means[found.better], batch.means[found.worse], found.group, found.count
        # The mean weight of the pairs of a group is that of its positives times that of its negatives.
        weighing = group_means(found.weights, torch.ones_like(found.weights), group, count)  # (G,), 0: not in a pair
        relative = (found.weights / weighing[group]).log()  # (P,)
        terms = (bad.detach() if self.constraint == "detached" else bad) - good + relative
        if self.constraint == "boundary":
            least = good.new_full((count,), torch.inf).scatter_reduce(0, group, good.detach(), "amin")
            floor = least[group] - 2 * self.margin
            terms, group = torch.cat([terms, floor - bad + relative]), group.repeat(2)
        return weighted_mean(log_one_plus(terms, group, count), weighing)

    @torch.no_grad()
    def figures(self, batch: Sequences) -> dict[str, float]:
        """How many pairs are in order, and how many groups have one side only and teach nothing by comparison."""
        found = pairs(batch, Role.POSITIVE, Role.NEGATIVE, "AFT", some=False)
        sides = batch.has((Role.POSITIVE, Role.NEGATIVE))
        groups = numbered(batch.group[sides])[1]
        return {
            "pairs in order": float((batch.means[found.better] > batch.means[found.worse]).sum()),
            "pairs in order of": float(len(found.better)),
            "groups of one side": float(groups - len(found.group.unique())),
            "groups of one side of": float(groups),
        }
