"""Supervised fine-tuning: completions become more probable.

    L = -sum_n w_n sum_t m_nt log pi_nt / sum_n w_n |m_n|

The mean is over tokens, as in trl's SFTTrainer, so a long completion counts more than a short one. Legend: N
sequences, T tokens of the longest, m (N, T) what counts, w (N,) weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.llm.trainers.objectives.groups import rows_of_any
from recsys.llm.trainers.sequences import Role, Sequences, summed, weighted_mean


class Supervised(nn.Module):
    """The mean negative log-likelihood of the tokens of TARGET and POSITIVE sequences.

    Use when: there are completions to be imitated; as the stage before any other objective.
    Prefer instead: a preference objective where it is also known what is unwanted.
    """

    reads: frozenset[str] = frozenset()

    def forward(self, batch: Sequences) -> Tensor:
        """The scalar loss.

        Raises:
            ValueError: the batch has no sequence of either role.
        """
        return -token_mean(batch.log_probs, batch, rows_of_any(batch, (Role.TARGET, Role.POSITIVE), "Supervised"))


def token_mean(values: Tensor, batch: Sequences, rows: Tensor) -> Tensor:
    """The mean of ``values`` (N, T) over the tokens of these rows (K,) that count, each by its sequence's weight."""
    mask = batch.mask[rows]
    lengths = mask.sum(1)
    return weighted_mean(summed(values[rows], mask) / lengths, lengths * batch.weights[rows])
