"""Lists by reward: a trained recommender samples items, and is rewarded by what was taken next (experimental).

Run: ``recsys fit sasrec --out runs/sasrec``, then ``recsys fit varied --base runs/sasrec --credit nsr``. What each
sample gets of the reward is ``--credit``: grpo (group-relative, arXiv 2402.03300), psr, nsr or w-reinforce (hits,
misses, or misses and a tenth of hits, arXiv 2506.01347), ngrpo (arXiv 2509.18851). ``--reward prefix`` rewards shared
first codes as well, for models that generate codes. After each epoch it is told in what share of the groups no sample
differed from the others, which is where nothing is learned.
"""

from __future__ import annotations

from typing import Any, Literal

from _tuned import Tuned

import recsys as rs
from recsys.llm.trainers.credit.groups import GroupRelative
from recsys.llm.trainers.credit.ngrpo import NGRPO
from recsys.llm.trainers.credit.reinforce import nsr, psr, w_reinforce
from recsys.llm.trainers.drafts import Rollouts
from recsys.llm.trainers.objectives.policy import PolicyGradient

CREDIT: dict[str, Any] = {"grpo": GroupRelative, "psr": psr, "nsr": nsr, "w-reinforce": w_reinforce, "ngrpo": NGRPO}


def run(
    credit: Literal["grpo", "psr", "nsr", "w-reinforce", "ngrpo"] = "grpo",
    samples: int = 16,
    temperature: float = 1.0,
    reward: Literal["hit", "prefix"] = "hit",
    kl: float = 0.01,
    entropy: float = 0.0,
    knobs: Tuned = Tuned(batch_size=128, learning_rate=3e-4, frozen_items=True),
) -> rs.Run:
    """A trained model, and rewards for what it samples.

    Args:
        credit: what a sample gets of the rewards of its group.
        samples: items sampled behind a position of each training row.
        temperature: of the sampling.
        reward: the item that was taken, or the share of its codes that are right from the first on.
        kl: weight of the divergence from the model of before.
        entropy: weight of the mean entropy.
    """
    model, split = knobs.model(), knobs.split()
    objective = PolicyGradient(CREDIT[credit](), kl=kl, entropy=entropy)
    return knobs.tuned(model, split, Rollouts(samples, temperature, reward), objective, name=f"rewards by {credit}")
