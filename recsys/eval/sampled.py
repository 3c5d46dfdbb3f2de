"""SAMPLED metrics, an extra for comparing with old tables: each target against a few random items, by user cohorts.

They are no estimate of the ranking over the catalogue and can reverse the order of two models (Krichene & Rendle, KDD
2020); the evaluator of this library is :func:`recsys.eval.evaluate.evaluate`. The protocol is that of UniRec's code:
100 uniform negatives that the user is not known to have had, five cohorts of users, NDCG, HR and MRR (0 beyond k). What
we do differently: mean and standard deviation are two numbers (the code prints their sum), no batch is dropped, the
negatives of a user are distinct (the code draws with replacement), ties count with the expected value over their
orders (the code orders them by index), and a target that repeats the history is a miss unless another rule is chosen.

Legend: S seeds (cohorts), b users of a batch, N items, K negatives, M most targets of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from recsys.eval.choice import choose
from recsys.eval.evaluate import warn_of_repeats
from recsys.eval.leakage import check_leakage
from recsys.eval.metrics.ranked import Ranked
from recsys.eval.ranks import TOKEN_BYTES, parse_memory
from recsys.eval.report import EXCLUDE
from recsys.eval.scoring import scorer_of
from recsys.ids.ranges import padded_blocks
from recsys.randomness import derive_seed, numpy_generator
from recsys.recommenders.modes import evaluating

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.recommenders.base import Ranker

SEEDS = (1013, 2791, 4357, 6199, 7907)
METRICS = ("ndcg", "hr", "mrr")
BYTES_PER_ITEM = 48  # of one user: the score, the keys that negatives are drawn by, and their order


@dataclass(frozen=True)
class SampledReport:
    """Metrics of each cohort. ``str`` of it says that they are sampled."""

    cohorts: dict[str, np.ndarray]  # metric, such as "ndcg@10" -> (S,) mean over the cohort's users
    users: int  # of each cohort
    negatives: int
    seeds: tuple[int, ...]
    part: str
    repeated: int = 0  # targets of all cohorts' users that repeat the history
    missed: bool = False  # whether these are misses

    def mean(self, metric: str) -> float:
        """The mean over the cohorts."""
        return float(self.cohorts[metric].mean())

    def std(self, metric: str) -> float:
        """The standard deviation between cohorts (S - 1 in the denominator; 0 for a single one)."""
        return float(self.cohorts[metric].std(ddof=1)) if len(self.seeds) > 1 else 0.0

    def __str__(self) -> str:
        head = (
            f"SAMPLED metrics on {self.part}: each target against {self.negatives} random items, {len(self.seeds)} "
            f"cohorts of {self.users:,} users; not comparable with metrics over the whole catalogue"
        )
        if self.repeated:
            head += f"; {self.repeated:,} targets repeat the history{', counted as misses' if self.missed else ''}"
        rows = [f"{name:<10} mean {self.mean(name):.4f}   std {self.std(name):.4f}" for name in self.cohorts]
        return "\n".join([head, *rows])


def evaluate_sampled(
    model: Ranker,
    part: HeldOut,
    negatives: int = 100,
    seeds: Sequence[int] = SEEDS,
    users: int | None = None,
    k: int = 10,
    exclude_known: bool = True,
    memory: str | int = "512MB",
    exclude: str | None = None,
    leakage: str = "raise",
) -> SampledReport:
    """How ``model`` ranks each target among ``negatives`` random items; see the top of this file before using it.

    Args:
        seeds: one cohort each; a seed decides its users and the negatives of each user, whatever the model.
        users: of a cohort, drawn without replacement (default: all of the part).
        exclude_known: draw no item that the user had or has as a target; else only the targets are left out.
        memory, leakage: see :func:`recsys.eval.evaluate.evaluate`.
        exclude: what becomes of a target that repeats the history: with "history" it is a miss, as in ``evaluate``;
            with "history-except-targets", the rule of published tables, and "none" it is ranked like any other. By
            default "history" where known items are not drawn, else "none".

    Raises:
        ValueError: a bad argument, a user to whom fewer items are unknown than ``negatives``, a score NaN or +inf.
        DataError: the part has no users, is damaged or is over other items than the model.
        LeakageError: the model was trained on targets of the part.
    """
    rule = exclude or ("history" if exclude_known else "none")
    if rule not in EXCLUDE or (rule != "none" and not exclude_known):
        raise ValueError(
            f"exclude is one of {', '.join(map(repr, EXCLUDE))}, and 'none' where known items are drawn; found "
            f"{exclude!r} with exclude_known={exclude_known}"
        )
    scorer = scorer_of(model, part)
    check_leakage(model, part, leakage)
    if negatives < 1 or not seeds or (users is not None and not 1 <= users <= len(part)):
        raise ValueError(
            f"negatives >= 1, at least one seed and 1 <= users <= {len(part)} are needed, found {negatives}, "
            f"{list(seeds)} and {users}"
        )
    choice = choose(METRICS, k, scorer.num_items)
    member = np.zeros((len(seeds), len(part)), dtype=bool)
    for row, seed in enumerate(seeds):
        member[row, numpy_generator(seed, "cohort").choice(len(part), users or len(part), replace=False)] = True
    values = np.zeros((len(choice.metrics), *member.shape))
    index = np.flatnonzero(member.any(0))
    lengths, budget = scorer.lengths(index), parse_memory(memory)
    blocks = padded_blocks(lengths, budget, BYTES_PER_ITEM * scorer.num_items, TOKEN_BYTES)
    repeated, targets = 0, len(part.targets(index)[0])
    with evaluating(model), torch.inference_mode():
        for block in blocks:
            scores = scorer(index[block]).float().cpu().numpy()
            scores = scores if scorer.rows is None else scores[:, scorer.rows[1:] - 1]
            repeated += int(_repeated(part, index[block]).sum())
            for row, seed in enumerate(seeds):
                mine = member[row, index[block]]
                asked = index[block][mine]
                ranked = _rank(scores[mine], part, asked, negatives, seed, exclude_known, rule == "history")
                for column, (_, metric, cut) in enumerate(choice.metrics):
                    values[column, row, asked] = metric(ranked, cut)
    means = {name: values[c].sum(1) / member.sum(1) for c, (name, _, _) in enumerate(choice.metrics)}
    if rule == "history":
        warn_of_repeats(repeated, targets, stacklevel=3)
    cohort = int(member[0].sum())
    return SampledReport(means, cohort, negatives, tuple(seeds), part.name, repeated, rule == "history")


def _rank(
    scores: np.ndarray, part: HeldOut, index: np.ndarray, negatives: int, seed: int, exclude_known: bool, missed: bool
) -> Ranked:
    """Where the targets of the users at ``index`` land among themselves and ``negatives`` drawn items.

    Targets that repeat the history are not reached if they are to be ``missed``, nor are those scored -inf.
    """
    if not (scores < np.inf).all():
        raise ValueError("scores are NaN or infinite: ranks among them mean nothing; look for a diverged model")
    owner, target = part.targets(index)
    known = [(owner, target), part.history(index)] if exclude_known else [(owner, target)]
    drawn = draw_negatives(part.users[index], known, scores.shape[1], negatives, seed)
    own = scores[owner, target - 1]
    reached = own > -np.inf
    if missed:
        reached &= ~_repeated(part, index)
    count = np.bincount(owner, minlength=len(index))
    rivals = np.full((len(index), negatives + int(count.max(initial=0))), -np.inf)
    rivals[:, :negatives] = np.take_along_axis(scores, drawn - 1, axis=1)
    column = negatives + np.arange(len(owner)) - np.searchsorted(owner, owner)
    rivals[owner, column] = np.where(reached, own, -np.inf)
    above = (rivals[owner] > own[:, None]).sum(1)
    size = (rivals[owner] == own[:, None]).sum(1)
    return Ranked.from_pairs(owner, above, size, (rivals > -np.inf).sum(1), reached)


def _repeated(part: HeldOut, index: np.ndarray) -> np.ndarray:
    """(P,) bool: which targets of the users at ``index`` repeat their history."""
    (owner, target), (user, item), width = part.targets(index), part.history(index), part.num_items + 1
    return np.isin(owner * width + target, user * width + item)


def draw_negatives(
    users: np.ndarray, known: Sequence[tuple[np.ndarray, np.ndarray]], num_items: int, count: int, seed: int
) -> np.ndarray:
    """(b, count) distinct item rows per user row (b,), uniform over those not among the ``known`` (position, item).

    A user's items are decided by the seed and the user row alone, not by the batch.

    Raises:
        ValueError: fewer than ``count`` items are left to a user.
    """
    items = np.arange(1, num_items + 1, dtype=np.uint64)
    keys = _hash(users[:, None].astype(np.uint64) * np.uint64(num_items + 1) + items, seed)
    for owner, item in known:
        keys[owner, item - 1] = np.iinfo(np.uint64).max
    left = (keys < np.iinfo(np.uint64).max).sum(1)
    if (left < count).any():
        worst = int(left.argmin())
        raise ValueError(
            f"{count} negatives are wanted, and user row {int(users[worst])} has only {int(left[worst])} of "
            f"{num_items} items that are not known: lower negatives"
        )
    return np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1) + 1


def _hash(values: np.ndarray, seed: int) -> np.ndarray:
    """Random-looking uint64 for uint64 values, as splitmix64 mixes them."""
    x = values + np.uint64(derive_seed(seed, "negatives"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
