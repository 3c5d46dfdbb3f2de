"""What a recommender remembers of events: how probable it finds them, how it ranks them, and what an attacker learns.

An attacker who knows a history and its next item asks whether the model was trained on them: probable ones are guessed
to be. The area under that curve (AUC) is the chance that an event of training is found more probable than one that is
not, .5 where nothing is learned. Against another model that was trained without the events, the difference of the two
log-probabilities is what is compared instead (a likelihood-ratio attack).

Legend: E events, N items.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from recsys.data.split import HeldOut, Split
from recsys.eval.evaluate import evaluate
from recsys.ids.ranges import spread
from recsys.llm.trainers.drafts import Draft
from recsys.llm.trainers.sequences import Role
from recsys.protocols import Step
from recsys.recommenders.modes import evaluating

EVENTS = 256  # scored at a time


def training_events(split: Split, users: np.ndarray, items: np.ndarray | None = None) -> HeldOut:
    """The training events of ``users`` (rows) but their first, each with the history before it, as a part to rank.

    Args:
        items: only events of these item rows.
    """
    start, stop = split.train.start[users], split.train.stop[users]
    owner, event = spread(np.minimum(start + 1, stop), stop)
    if items is not None:
        chosen = np.isin(np.asarray(split.prepared.items)[event], items)
        owner, event = owner[chosen], event[chosen]
    people = np.asarray(users, np.int64)[owner]
    return replace(
        split.test,
        name="training",
        users=people,
        history_start=split.prepared.offsets[:-1][people],
        target_start=event,
        target_stop=event + 1,
        requests=None,
    )


def log_probs(model: Any, policy: Any, part: HeldOut) -> np.ndarray:
    """(E,) float64 log-probability of the first target of each row of a part, given its history; of items or codes."""
    found = []
    with evaluating(model), torch.no_grad():
        for first in range(0, len(part), EVENTS):
            index = np.arange(first, min(first + EVENTS, len(part)))
            histories = part.batch(index, model.max_length, model.needs).histories()
            rows = torch.from_numpy(np.asarray(part.prepared.items)[part.target_start[index]].astype(np.int64))
            step = Step(histories, items=model.items, encode=model.encode, query=model.targets.query)
            draft = Draft(histories, rows[:, None], torch.full((len(rows), 1), int(Role.TARGET)))
            found.append(policy(step, draft).log_probs.sum(1).double().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that one of ``members`` is above one of ``others``, ties by half; NaN where one of them is empty.

    >>> auc(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    if not len(members) or not len(others):
        return float("nan")
    ranks = rankdata(np.concatenate([members, others]))[: len(members)].sum()
    return float((ranks - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def quality(model: Any, part: HeldOut, metric: str = "ndcg@10", sample: int | None = None, seed: int = 0) -> float:
    """The mean of a metric over the users of a part."""
    if not len(part):
        return float("nan")
    report = evaluate(model, part, k=(10,), progress=False, leakage="allow", warn=False, sample=sample, seed=seed)
    return report.mean(metric)
