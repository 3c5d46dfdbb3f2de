"""Noisy clicks: pairs of a taken and a passed-over item, some of them the wrong way round (experimental).

Run: ``recsys fit sasrec --out runs/sasrec``, then ``recsys fit noisy --base runs/sasrec --by r3m --flipped 0.2``.
Each of the last ``--events`` training events of a user is set against another item (``--against``); in a share of the
pairs, drawn, the two are exchanged. ``--by dpo`` (arXiv 2305.18290, the loss of trl) believes all pairs, ``--by r3m``
distrusts those that contradict the others.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from _tuned import Tuned, offered, recent_events

import recsys as rs
from recsys.data.split import Split
from recsys.llm.trainers.drafts import Judged
from recsys.llm.trainers.judgements import Judgements
from recsys.llm.trainers.objectives.preference import DPO, R3M
from recsys.llm.trainers.sequences import Role

TOP = 50  # of which the item is drawn that was passed over


def run(
    by: Literal["dpo", "r3m"] = "r3m",
    flipped: float = 0.0,
    events: int = 5,
    against: Literal["random", "offered"] = "random",
    beta: float = 1.0,
    trust: float = 0.75,
    knobs: Tuned = Tuned(batch_size=64, learning_rate=1e-3, frozen_items=True),
) -> rs.Run:
    """A trained model, and pairs.

    Args:
        by: the objective.
        flipped: share of the pairs that are the wrong way round.
        events: events of each user, the last ones, that pairs are made of.
        against: the other item: any that the user has not taken in training, or one of the fifty that the model would
            have offered (which is mostly what the user would have liked as well).
        beta: how far the policy may go from the model of before; smaller is farther.
        trust: the hardest pull of a pair (R3M).
    """
    if not 0 <= flipped <= 1:
        raise ValueError(f"flipped is a share, found {flipped}")
    model, split = knobs.model(), knobs.split()
    random = np.random.default_rng(knobs.seed)
    users, stops, taken = recent_events(split, events)
    passed = other_items(split, users, random) if against == "random" else near(model, split, users, stops, random)
    kept = (passed > 0) & (passed != taken)
    users, stops, taken, passed = users[kept], stops[kept], taken[kept], passed[kept]
    wrong = random.random(len(taken)) < flipped
    print(f"{len(taken):,} pairs, {int(wrong.sum()):,} of them the wrong way round")
    better, worse = np.where(wrong, passed, taken), np.where(wrong, taken, passed)
    data = Judgements(
        split.train, np.tile(users, 2), np.tile(stops, 2), np.concatenate([better, worse]),
        np.repeat([int(Role.POSITIVE), int(Role.NEGATIVE)], len(users)), max_length=model.max_length or 200,
        batch_size=knobs.batch_size or 64, seed=knobs.seed, needs=model.needs,
    )  # fmt: skip
    objective: Any = DPO(beta) if by == "dpo" else R3M(beta, trust)
    return knobs.tuned(model, split, Judged(), objective, data, f"pairs by {by}")


def other_items(split: Split, users: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(E,) items drawn evenly; 0 where one of the user's own was drawn."""
    found = random.integers(1, split.num_items + 1, len(users))
    owners, items, _ = split.train.events(np.arange(split.num_users))
    width = split.num_items + 1
    found[np.isin(users * width + found, owners.astype(np.int64) * width + items)] = 0
    return found


def near(model: Any, split: Split, users: np.ndarray, stops: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(E,) items drawn of those that the model offers."""
    lists = offered(model, split, users, stops, TOP)
    return lists[np.arange(len(lists)), (random.random(lists.shape) * (lists > 0)).argmax(1)]
