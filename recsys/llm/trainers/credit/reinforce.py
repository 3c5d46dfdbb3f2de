"""Credit without comparison: hits are worth one number, misses another (PSR, NSR, W-REINFORCE).

    A = positive   where the sample is a hit
    A = -negative  where it is a miss

PSR learns from hits alone (1, 0), NSR from misses alone (0, 1), W-REINFORCE from both, with hits at a tenth (0.1, 1).
Learning from hits gathers the probability on what was hit; learning from misses takes it from what was sampled and
gives it to everything else in proportion to what that had, so that lists stay varied. It evens nothing out: of two good
items the one that was likelier before gains more.

**An item that was sampled and not chosen is unlabelled, not wrong.** Misses are honest where the user saw the item:
give the others weight 0, or a weight by their exposure. And a policy that knows little has nothing to give the
probability back to: train it by imitation first, and set the ``ceiling`` of ``PolicyGradient``.

What differs from the published code: there samples without credit are left out before the mean is taken; here they
count in it, so that the losses of PSR and NSR sum to that of REINFORCE and a batch of few hits moves little. There
rewards that are neither 0 nor 1 fall out unseen; here they are an error, or compared with ``threshold``.

Reference: "The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning" (arXiv 2506.01347), and its code
TianHongZXY/RLVR-Decomposed. Legend: N sequences, T tokens of the longest.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.llm.trainers.credit.groups import over_tokens, reward_of
from recsys.llm.trainers.sequences import Sequences


class Reinforce(nn.Module):
    """Credit ``positive`` for a hit and ``-negative`` for a miss, without a baseline; see :func:`psr`, :func:`nsr`,
    :func:`w_reinforce`.

    Args:
        positive, negative: how far a hit is pulled up, and a miss pushed down.
        threshold: a reward from here on is a hit; None: rewards are 1 (hits) or 0.

    Raises:
        ValueError: a number below 0, or both 0.
    """

    reads = frozenset({"reward"})

    def __init__(self, positive: float = 1.0, negative: float = 1.0, threshold: float | None = None) -> None:
        super().__init__()
        if not (min(positive, negative) >= 0 and max(positive, negative) > 0):
            raise ValueError(f"positive and negative are at least 0, one of them more; found {positive}, {negative}")
        self.positive, self.negative, self.threshold = positive, negative, threshold

    def forward(self, batch: Sequences) -> Tensor:
        """(N, T) advantages, 0 where the mask is False.

        Raises:
            ValueError: there are no rewards, or without a ``threshold`` other ones than 0 and 1.
        """
        hit = self.hits(batch)
        values = batch.log_probs.new_tensor([-self.negative, self.positive])
        return over_tokens(values[hit.long()], batch)

    def hits(self, batch: Sequences) -> Tensor:
        """(N,) bool: which samples are hits; errors as of calling."""
        rewards = reward_of(batch, type(self).__name__)
        if self.threshold is not None:
            return rewards >= self.threshold
        graded = rewards[(rewards != 0) & (rewards != 1)]
        if len(graded):
            raise ValueError(
                f"rewards are 1 for a hit and 0 for a miss; found {len(graded)} others of {len(rewards)}, as "
                f"{float(graded[0]):g}: say by threshold=... from which reward on a sample is a hit"
            )
        return rewards == 1

    def figures(self, batch: Sequences) -> dict[str, float]:
        """Hits among the samples that count: without any, PSR learns nothing from the batch."""
        counted = batch.weights > 0
        return {"hits": float((self.hits(batch) & counted).sum()), "hits of": float(counted.sum())}


def psr(threshold: float | None = None) -> Reinforce:
    """Hits alone: improves the first item, narrows the list."""
    return Reinforce(1.0, 0.0, threshold)


def nsr(threshold: float | None = None) -> Reinforce:
    """Misses alone: what is pushed down goes to everything else, so that the list stays varied."""
    return Reinforce(0.0, 1.0, threshold)


def w_reinforce(positive: float = 0.1, threshold: float | None = None) -> Reinforce:
    """Misses, and hits by a small weight, the published 0.1: the first item improves and the list stays varied."""
    return Reinforce(positive, 1.0, threshold)
