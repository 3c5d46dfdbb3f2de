"""The policy gradient over sequences: what was sampled is made more or less probable, by the credit it has earned.

    L = -(1/Z) sum_nt w_n m_nt min(rho_nt A_nt, clip(rho_nt, 1 - low, 1 + high) A_nt) + kl * KL - entropy * H
    rho = exp(log pi - log pi_old),  KL by e^d - d - 1 at what was sampled, d = log pi_ref - log pi

A (N, T) is the credit (:mod:`recsys.llm.trainers.credit`). Z counts the tokens (``"tokens"``), or each sequence has a
mean of its own (``"sequences"``), or is divided by the length of the longest (``"longest"``); trl 1.16 calls these dapo
or bnpo, grpo and dr_grpo, and on the same samples the losses agree (``tests/parity/test_trl_credit.py``; trl multiplies
the KL term by rho unless ``use_bias_correction_kl=False``, here it is as in DeepSeekMath). The KL term has the same Z;
H is the mean over tokens. Sampled once and used once, pi_old is pi itself: the value is then that of -A and the
gradient that of A log pi.

Samples of weight 0 are left out before the credit is worked out, so they are in no mean of their group. Above a log
ratio of 20 (rho 5e8) the exponential goes on as a straight line: nothing overflows, and the gradient stays.

References: DeepSeekMath (arXiv 2402.03300), PPO (arXiv 1707.06347), clipping up and down by two numbers as in DAPO
(arXiv 2503.14476). Legend: N sequences, T tokens of the longest, m what counts, w weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys.errors import closest
from recsys.llm.trainers.credit.groups import group_sums, numbered, reward_of, uneven
from recsys.llm.trainers.protocols import Credit
from recsys.llm.trainers.sequences import Role, Sequences, summed, weighted_mean
from recsys.objectives.policy_gradient import clipped_gain, divergence_estimate

MEANS = ("tokens", "sequences", "longest")
BOUND = 20.0  # of a log ratio, where the exponential goes on as a straight line


class PolicyGradient(nn.Module):
    """The clipped policy gradient of sampled sequences, those of the role TARGET, by any ``credit``.

    Use when there is a reward for what the policy itself generates. Train it by imitation first: where no sample is a
    hit there is nothing to learn from, and ``figures`` tells how often that was. Prefer D2O or AFT for lists of items
    that users liked and hid.

    Args:
        credit: what each token gets of the reward, as ``GroupRelative()``.
        low, high: how far a token's ratio to the sampling policy goes on counting, down and up.
        kl: weight of the divergence from the reference; 0 needs none.
        entropy: weight of the mean entropy, which is to be large; the batch has it with its gradient.
        ceiling: mean entropy in nats above which training stops with an error; None: it goes on. Set it with credit
            that is mostly negative: its entropy has no limit.
        normalise: "tokens", "sequences" or "longest", see above.

    Raises:
        ValueError: a number out of range, or another ``normalise``.
    """

    def __init__(
        self,
        credit: Credit,
        low: float = 0.2,
        high: float = 0.2,
        kl: float = 0.0,
        entropy: float = 0.0,
        ceiling: float | None = None,
        normalise: str = "tokens",
    ) -> None:
        super().__init__()
        if normalise not in MEANS:
            raise ValueError(
                f"normalise is one of {', '.join(MEANS)}, found {normalise!r}: {closest(normalise, MEANS)}"
            )
        if not 0 <= low <= 1 or min(high, kl, entropy) < 0 or (ceiling is not None and ceiling <= 0):
            raise ValueError(
                "low is from 0 to 1, high, kl and entropy are at least 0, and a ceiling is above 0; found "
                f"{low}, {high}, {kl}, {entropy} and {ceiling}"
            )
        self.credit, self.low, self.high, self.kl = credit, low, high, kl
        self.entropy, self.ceiling, self.normalise = entropy, ceiling, normalise
        asked = {"reference": kl, "entropy": entropy or ceiling, "entropy gradient": entropy}
        self.reads: frozenset[str] = credit.reads | {"reward"} | {name for name, wanted in asked.items() if wanted}

    def forward(self, batch: Sequences) -> Tensor:
        """The scalar loss; 0, with gradient 0, where all samples have weight 0.

        Raises:
            ValueError: there is no sample, something that ``reads`` names is missing, or the entropy is above the
                ceiling.
        """
        batch = _rewarded(batch)
        if not len(batch):
            return batch.log_probs.sum()
        self._check(batch)
        with torch.no_grad():
            advantages = self.credit(batch)
        log_probs, old = _at_tokens(batch, batch.log_probs), _at_tokens(batch, _old(batch))
        losses = -clipped_gain(log_probs, old, advantages, self.low, self.high, BOUND)
        if self.kl:
            losses = losses + self.kl * self._divergence(batch)
        lengths = batch.mask.sum(1)
        sums, weights = summed(losses, batch.mask), batch.weights
        if self.normalise == "longest":
            loss = weighted_mean(sums / lengths.max(), weights)
        else:
            loss = weighted_mean(sums / lengths, weights * lengths if self.normalise == "tokens" else weights)
        if self.entropy and batch.entropy is not None:
            uncertain = summed(batch.entropy, batch.mask) / lengths
            loss = loss - self.entropy * weighted_mean(uncertain, weights * lengths)
        if self.training and hasattr(self.credit, "observe"):
            self.credit.observe(batch)
        return loss

    def _divergence(self, batch: Sequences) -> Tensor:
        """(N, T) estimates of the divergence from the reference at each token."""
        if batch.reference is None:
            raise ValueError(f"kl={self.kl} compares with a reference, and the batch has none: give the policy one")
        return divergence_estimate(_at_tokens(batch, batch.log_probs), _at_tokens(batch, batch.reference), BOUND)

    def _check(self, batch: Sequences) -> None:
        """Refuse an entropy that is missing, has no gradient where it is trained, or is above the ceiling."""
        if not self.entropy and self.ceiling is None:
            return
        if batch.entropy is None:
            raise ValueError("entropy=... and ceiling=... read the entropy at each token, and the batch has none")
        if self.entropy and batch.log_probs.requires_grad and not batch.entropy.requires_grad:
            raise ValueError(
                f"entropy={self.entropy} trains the entropy, and that of the batch has no gradient: the policy must "
                'give it with one where "entropy gradient" is read, or let entropy be 0'
            )
        mean = float(summed(batch.entropy.detach(), batch.mask).sum() / batch.mask.sum())
        if self.training and self.ceiling is not None and mean > self.ceiling:
            raise ValueError(
                f"the mean entropy of a token is {mean:.3g} nats, above ceiling={self.ceiling:g}: what is taken from "
                "misses goes to everything alike. Train by imitation first, give hits more weight, lower the learning "
                "rate, or raise the ceiling"
            )

    @torch.no_grad()
    def figures(self, batch: Sequences) -> dict[str, float]:
        """Groups whose rewards are all equal, groups with no credit at all, tokens whose ratio is clipped, the entropy
        and the divergence where the batch has them, and what the credit tells.
        """
        batch = _rewarded(batch)
        credit = self.credit(batch)
        own, groups = numbered(batch.group)
        moved = group_sums(credit.abs().sum(1), own, groups) > 0
        apart = uneven(reward_of(batch, type(self).__name__), own, groups)
        ratio = _at_tokens(batch, batch.log_probs) - _at_tokens(batch, _old(batch))
        clipped = (ratio.exp() > 1 + self.high) & (credit > 0) | (ratio.exp() < 1 - self.low) & (credit < 0)
        tokens = float(batch.mask.sum())
        told = {
            "groups without signal": float((~moved).sum()),
            "groups without signal of": float(groups),
            "groups of equal rewards": float((~apart).sum()),
            "groups of equal rewards of": float(groups),
            "clipped tokens": float((clipped & batch.mask).sum()),
            "clipped tokens of": tokens,
        }
        if batch.entropy is not None:
            told |= {"entropy": float(summed(batch.entropy, batch.mask).sum()), "entropy of": tokens}
        if self.kl:
            told |= {"divergence": float(summed(self._divergence(batch), batch.mask).sum()), "divergence of": tokens}
        if hasattr(self.credit, "figures"):
            told |= self.credit.figures(batch)
        return told


def _rewarded(batch: Sequences) -> Sequences:
    """The sampled sequences of a weight above 0."""
    return batch[batch.of(Role.TARGET, asked="PolicyGradient") & (batch.weights > 0)]


def _old(batch: Sequences) -> Tensor:
    return batch.log_probs.detach() if batch.old is None else batch.old


def _at_tokens(batch: Sequences, values: Tensor) -> Tensor:
    """(N, T) values, 0 elsewhere: what stands there may be infinite, and its gradient no number."""
    return values.masked_fill(~batch.mask, 0)
