"""Not interested: a trained recommender learns from items that people hid, without showing them to it as choices.

Run: ``recsys fit sasrec --out runs/sasrec``, then ``recsys fit dislikes --base runs/sasrec``. ``--file FILE``
(Parquet with the columns ``user`` and ``item``) names what was hidden. Without it hiding is simulated: ``--share`` of
the users hide ``--each`` of the ten items that the model would recommend to them next, drawn by the seed, but none that
they take later (people do not hide what they then take; a deny list profits from that alike, so compare with one).

``--by d2o`` (arXiv 2403.03419) needs dislikes alone, ``--by aft`` (arXiv 2309.02144) ranks what was taken last above
them, ``--by npo`` (arXiv 2404.05868) makes them improbable, without anything in return. Experimental.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
from _tuned import Tuned, offered

import recsys as rs
from recsys.data.split import Split
from recsys.errors import DataError
from recsys.llm.trainers.drafts import Judged
from recsys.llm.trainers.judgements import Judgements, Together
from recsys.llm.trainers.objectives.aft import AFT
from recsys.llm.trainers.objectives.combined import Combined
from recsys.llm.trainers.objectives.d2o import D2O
from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.objectives.retain import Retain
from recsys.llm.trainers.sequences import Role

TOP = 10  # of which items are hidden, where that is simulated


def run(
    by: Literal["aft", "d2o", "npo"] = "aft",
    file: str = "",
    share: float = 0.5,
    each: int = 2,
    samples: int = 4,
    temperature: float = 2.0,
    alpha: float = 0.5,
    beta: float = 0.1,
    constraint: Literal["detached", "boundary", "none"] = "boundary",
    margin: float = 2.0,
    keep: float = 10.0,
    knobs: Tuned = Tuned(epochs=20, batch_size=64, learning_rate=1e-3, frozen_items=True),
) -> rs.Run:
    """A trained model, and what people hid from it.

    Args:
        by: the objective.
        file: file of users and the items that they hid; else both are drawn.
        share: share of the users who hide something, drawn.
        each: items that each of them hides, drawn.
        samples: items of the model's own that D2O sets against the hidden ones.
        temperature: of their sampling.
        alpha: how much the hidden items count (D2O).
        beta: how much the model's own samples count (D2O), or how far the policy may go (NPO).
        constraint: what keeps hidden items from probability zero (AFT).
        margin: how far below what was taken they come to rest, in nats (AFT with a boundary).
        keep: weight of the divergence from the model of before, behind other training events.
    """
    model, split = knobs.model(), knobs.split()
    users, items = read(file, split) if file else simulated(model, split, share, each, knobs.seed)
    role = int(Role.FORGET if by == "npo" else Role.NEGATIVE)
    stops, roles = split.train.stop[users], np.full(len(users), role)
    if by == "aft":  # behind all but the last event, which stands against what was hidden
        kept = split.train.lengths[users] > 1
        users, items = users[kept], items[kept]
        distinct = np.unique(users)
        last = split.train.stop[distinct] - 1
        taken = split.train.gather(distinct, 1, stop=last + 1).ids[:, 0].numpy()
        stops = np.concatenate([split.train.stop[users] - 1, last])
        roles = np.repeat([int(Role.NEGATIVE), int(Role.POSITIVE)], [len(users), len(distinct)])
        users, items = np.concatenate([users, distinct]), np.concatenate([items, taken])
    more: dict[str, Any] = {
        "max_length": model.max_length or 200, "batch_size": knobs.batch_size or 64, "seed": knobs.seed,
        "needs": model.needs,
    }  # fmt: skip
    data: Any = Judgements(split.train, users, stops, items, roles, **more)
    objective: Any = {"d2o": D2O(alpha, beta), "aft": AFT(constraint, margin), "npo": NPO(beta, retain=0.0)}[by]
    if keep:
        everybody = np.arange(split.num_users)
        data = Together([data, Judgements.of_users(split.train, everybody, Role.RETAIN, **more)])
        objective = Combined([objective, Retain(divergence=keep)])
    examples = Judged(samples if by == "d2o" else 0, temperature)
    return knobs.tuned(model, split, examples, objective, data, f"dislikes by {by}")


def simulated(model: Any, split: Split, share: float, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Users and items (E,) rows: what the drawn users hide of the first ten recommended to them."""
    random = np.random.default_rng(seed)
    able = np.flatnonzero(split.train.lengths > 0)
    users = np.sort(random.choice(able, round(share * len(able)), replace=False))
    lists = offered(model, split, users, split.train.stop[users], TOP)
    later: list[set[int]] = [set() for _ in range(split.num_users)]
    for part in (split.valid, split.test):
        owners, targets = part.targets(np.arange(len(part)))
        for owner, item in zip(part.users[owners].tolist(), targets.tolist(), strict=True):
            later[owner].add(item)
    found = []
    for user, items in zip(users.tolist(), lists, strict=True):
        left = [item for item in items.tolist() if item and item not in later[user]]
        found += [(user, item) for item in random.permutation(left)[:each].tolist()]
    table = np.array(found, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def read(path: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Users and items (E,) rows of a file; unknown ones are counted and left out.

    Raises:
        DataError: a column is missing, or nothing is known.
    """
    table = pl.read_parquet(path)
    if missing := {"user", "item"} - set(table.columns):
        raise DataError(f"{path} has no column {', '.join(sorted(missing))}: user and item are needed")
    users, items = split.users.rows(table["user"].to_list()), split.items.rows(table["item"].to_list())
    known = (users >= 0) & (items > 0)
    if not known.any():
        raise DataError(f"none of the {len(known):,} rows of {path} names a user and an item of these data")
    if not known.all():
        print(f"left out {int((~known).sum()):,} of {len(known):,} rows of {path}: users or items that training lacks")
    return users[known], items[known]
