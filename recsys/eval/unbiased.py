"""Evaluation without exposure bias: held-out clicks reweighted (IPS, SNIPS), or a test set shown uniformly at random.

With one target i_u per user, a per-user metric c_u and propensities p (Yang et al., RecSys 2018; Saito et al. 2020,
arXiv 1909.03601):

    IPS = 1/n sum_u c_u / p_u,     SNIPS = sum_u (c_u / p_u) / sum_u (1 / p_u),

SNIPS does not depend on the scale of p and lies within the range of the metric. It is only as good as p: propensities
from popularity are a proxy. The sums run over users; the code of Rel-MF divides within each user, where the propensity
of a single held-out click cancels and SNIPS is the plain metric.

Legend: n users, N items, R ratings of the uniform test set, K cut-off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys.errors import DataError
from recsys.eval.ranks import TOKEN_BYTES, parse_memory
from recsys.eval.report import Report, align, number
from recsys.eval.scoring import Scorer
from recsys.eval.significance import RESAMPLED_USERS, RESAMPLES, bootstrap_interval
from recsys.ids.ranges import padded_blocks
from recsys.randomness import numpy_generator
from recsys.recommenders.modes import evaluating
from recsys.weighting.propensity import effective_size

if TYPE_CHECKING:
    from recsys.data.split import HeldOut, Split
    from recsys.recommenders.base import Ranker

CUTS = (1, 3, 5)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% bootstrap interval over users."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True)
class UnbiasedReport:
    """Plain and reweighted means side by side: on biased clicks a debiased model may lose the first, win the rest."""

    plain: dict[str, Estimate]
    ips: dict[str, Estimate]
    snips: dict[str, Estimate]
    weights: np.ndarray  # (n,) of the users, in the order of the report
    users: int
    effective_users: float  # (sum w)^2 / sum w^2
    largest: float  # largest weight
    clipped: float  # share of the targets whose propensity is below the clip
    name: str

    def __str__(self) -> str:
        head = (
            f"{self.name}: {self.users:,} users, worth {self.effective_users:,.1f} after weighting; largest weight "
            f"{self.largest:,.1f}, {self.clipped:.1%} of the targets clipped"
        )
        rows = [["", "plain", "SNIPS", "IPS"]]
        rows += [[name, str(self.plain[name]), str(self.snips[name]), str(self.ips[name])] for name in self.plain]
        return f"{head}\n{align(rows)}\nmean over users [95% bootstrap interval]"


def unbiased(
    report: Report,
    part: HeldOut,
    propensities: Any,
    clip: float = 0.01,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
) -> UnbiasedReport:
    """IPS and SNIPS of the per-user metrics of ``report``, beside their plain means.

    Args:
        part: what was evaluated, which knows the targets.
        propensities: theta by item row of the part (N+1,), or a weighting that has learned it (``PopularityPropensity``
            after bind).
        clip: propensities below count as this.
        metrics: per-user columns of the report (default: all).

    A user with several targets has the mean of their weights; the estimators are exact for one target per user.

    Raises:
        ValueError: propensities outside of (0, 1], of another catalogue, or not one per item; an unknown metric.
        DataError: report and part do not belong together.
    """
    theta = _table(propensities, part.num_items)
    names = report.metrics if metrics is None else tuple(metrics)
    position = report.columns["position"]
    same = report.meta["users_total"] == len(part) and np.array_equal(part.users[position], report.columns["user"])
    known = {} if part.split is None else {"catalogue": part.split.items.digest, "user_ids": part.split.users.digest}
    same = same and all(report.meta.get(key, digest) == digest for key, digest in known.items())
    if not same or not len(position):
        raise DataError("the report has no users, or others than this part has: pass the part that was evaluated")
    owner, target = part.targets(position)
    count = np.bincount(owner, minlength=len(position))
    if not np.array_equal(count, report.columns["num_targets"]):
        raise DataError("the report ranked some of a user's targets only (candidates=): weigh a report of all items")
    inverse = 1 / np.maximum(theta[target], clip) if clip else 1 / theta[target]
    weights = np.bincount(owner, weights=inverse, minlength=len(position)) / np.maximum(count, 1)
    values = np.stack([report.per_user(name) for name in names], axis=1) if names else np.zeros((len(position), 0))
    weighted = values * weights[:, None]
    return UnbiasedReport(
        plain=_estimates(names, values.mean(0), bootstrap_interval(values, seed=seed)),
        ips=_estimates(names, weighted.mean(0), bootstrap_interval(weighted, seed=seed)),
        snips=_estimates(names, weighted.sum(0) / weights.sum(), ratio_interval(weighted, weights, seed=seed)),
        weights=weights,
        users=len(position),
        effective_users=effective_size(weights, 1.0),
        largest=float(weights.max()),
        clipped=float((theta[target] < clip).mean()),
        name=report.name,
    )


def ratio_interval(values: np.ndarray, weights: np.ndarray, level: float = 0.95, seed: int = 0) -> np.ndarray:
    """(M, 2): percentile bootstrap interval of ``values`` (n, M) summed over users, divided by the sum of ``weights``.

    Users are drawn together with their weights. Beyond ``RESAMPLED_USERS`` users the ratio is linearised first.
    """
    users, total = len(values), weights.sum()
    if users > RESAMPLED_USERS:
        ratio = values.sum(0) / total
        influence = ratio + (values - ratio * weights[:, None]) * (users / total)
        return bootstrap_interval(influence, level, seed)
    generator = numpy_generator(seed, "bootstrap", "ratio")
    drawn = np.stack([np.bincount(generator.integers(0, users, users), minlength=users) for _ in range(RESAMPLES)])
    ratios = (drawn @ values) / (drawn @ weights)[:, None]
    return np.quantile(ratios, ((1 - level) / 2, (1 + level) / 2), axis=0).T


@dataclass(frozen=True)
class UniformReport:
    """Metrics on a uniform test set: one row per user that has ratings."""

    columns: dict[str, np.ndarray]  # metric, such as "dcg_old@5" -> (n,) per user
    user: np.ndarray  # (n,) user rows
    rated: np.ndarray  # (n,) items ranked
    skipped: dict[str, int]  # ratings left out, by reason
    name: str
    seed: int = 0

    @property
    def users(self) -> int:
        """How many users were ranked for."""
        return len(self.user)

    def mean(self, metric: str) -> float:
        """The mean over users."""
        return float(self.columns[metric].mean())

    def estimates(self) -> dict[str, Estimate]:
        """Every metric with its interval."""
        values = np.stack(list(self.columns.values()), axis=1)
        return _estimates(self.columns, values.mean(0), bootstrap_interval(values, seed=self.seed))

    def __str__(self) -> str:
        head = f"{self.name} on a uniform test set: {self.users:,} users, {int(self.rated.sum()):,} rated items"
        head += "".join(f"; {count:,} ratings left out ({reason})" for reason, count in self.skipped.items() if count)
        rows = [[name, str(found)] for name, found in self.estimates().items()]
        return f"{head}\n{align(rows)}\nmean over users [95% bootstrap interval]"


def evaluate_uniform(
    model: Ranker,
    split: Split,
    users: Sequence[Any],
    items: Sequence[Any],
    ratings: Sequence[float],
    threshold: float = 4.0,
    k: Sequence[int] = CUTS,
    floor: float = 0.001,
    rare: int | None = None,
    memory: str | int = "512MB",
    name: str | None = None,
    seed: int = 0,
) -> UniformReport:
    """How ``model`` ranks the items that each user was asked to rate, given the user's training events.

    Metrics "average over all" of the paper's code (usaito/unbiased-implicit-rec-real), with relevance g = floor +
    (1 - floor) label: ``dcg_old@K`` = g_1 + sum_{r=2..K} g_r / log2 r, not normalised (ranks 1 and 2 weigh the same);
    ``recall_all@K`` = sum_{r<=K} g_r / sum g; ``map_all@K`` = sum_{r<=K, label=1} (1/r) sum_{s<=r} g_s, not divided by
    the number of positives. Ties count with the expected value over their orders (the code favours later items).

    Args:
        users, items, ratings: (R,) raw ids and values, no pair twice; label 1 from ``threshold`` on.
        rare: rank only items with at most this many training events.
        memory: of the scores held at a time.

    Raises:
        ValueError: columns of different lengths, a cut-off below 1, a score that is NaN or +inf.
        DataError: no rating is of a known user and item, a pair occurs twice, or the model is over other items.
    """
    values = np.asarray(ratings, np.float64)
    if np.isnan(values).any():
        raise DataError(f"{int(np.isnan(values).sum()):,} ratings are NaN, neither liked nor disliked: leave them out")
    labels = values >= threshold
    if not len(users) == len(items) == len(labels) or not k or min(k) < 1 or not 0 <= floor < 1:
        raise ValueError(
            f"as many users as items and ratings, cut-offs >= 1 and 0 <= floor < 1 are needed; found {len(users)}, "
            f"{len(items)}, {len(labels)}, {list(k)} and {floor}"
        )
    user, item = split.users.rows(users), split.items.rows(items)
    unknown = (user < split.users.first) | (item < 1)
    frequent = np.zeros(len(user), bool)
    if rare is not None:
        frequent[~unknown] = split.train.item_counts()[item[~unknown]] > rare
    kept = ~unknown & ~frequent
    skipped = {"unknown user or item": int(unknown.sum()), "not rare": int(frequent.sum())}
    if not kept.any():
        raise DataError(f"no rating of {len(user):,} is left: {skipped}; are these ids of the split?")
    order = np.flatnonzero(kept)[np.argsort(user[kept], kind="stable")]
    if len(np.unique(user[order] * (split.num_items + 1) + item[order])) < len(order):
        raise DataError("a user has rated an item twice in the uniform test set: keep one of the ratings")
    rows, owner = np.unique(user[order], return_inverse=True)
    scores = _scores_of(model, split, rows, owner, item[order], memory)
    columns = ranked_metrics(owner, scores, labels[order], k, floor)
    rated = np.bincount(owner, minlength=len(rows))
    return UniformReport(columns, rows, rated, skipped, name or type(model).__name__, seed)


def ranked_metrics(
    owner: np.ndarray, scores: np.ndarray, labels: np.ndarray, k: Sequence[int] = CUTS, floor: float = 0.001
) -> dict[str, np.ndarray]:
    """The metrics of :func:`evaluate_uniform` from flat pairs (R,): user 0..n-1 ascending, score, label."""
    order = np.lexsort((-scores, owner))
    owner, scores, labels = owner[order], scores[order], labels[order].astype(np.float64)
    gain = floor + (1 - floor) * labels
    position = np.arange(len(owner))
    first = np.searchsorted(owner, owner)  # where the user begins
    rank = position - first + 1
    new = np.ones(len(owner), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (scores[1:] != scores[:-1])
    group = np.cumsum(new) - 1
    size = np.bincount(group)[group]
    start = np.flatnonzero(new)[group]  # where the tie group begins

    def within(values: np.ndarray) -> np.ndarray:
        return np.bincount(group, weights=values)[group]

    before = np.concatenate([[0.0], np.cumsum(gain)])
    above = before[start] - before[first]  # gains of better groups
    positives, gains, both = within(labels), within(gain), within(labels * gain)
    mates = (positives * gains - both) / np.maximum(size * (size - 1), 1)  # E[label_a gain_b], a and b two of a group
    reached = positives / size * above + both / size + (position - start) * mates  # E[label_r sum_{s<=r} gain_s]
    discount = 1 / np.maximum(np.log2(rank), 1.0)
    shown = scores > -np.inf  # -inf says never: such items are in no list
    found: dict[str, np.ndarray] = {}
    for cut in k:
        inside = (rank <= cut) & shown
        parts = {
            "dcg_old": gains / size * discount * inside,
            "recall_all": gains / size * inside,
            "map_all": reached / rank * inside,
        }
        found |= {f"{name}@{cut}": np.bincount(owner, weights=value) for name, value in parts.items()}
    total = np.bincount(owner, weights=gain)
    for cut in k:
        recall = found[f"recall_all@{cut}"]
        found[f"recall_all@{cut}"] = np.divide(recall, total, out=np.zeros_like(recall), where=total > 0)
    return found


def _scores_of(
    model: Any, split: Split, rows: np.ndarray, owner: np.ndarray, item: np.ndarray, memory: str | int
) -> np.ndarray:
    """(R,) scores of the items (R,) for the users ``rows[owner]``, from their training events."""
    training, scorer = split.train, Scorer(model, split)
    columns = item - 1 if scorer.rows is None else scorer.rows[item] - 1
    lengths = training.lengths[rows]
    lengths = lengths if model.max_length is None else np.minimum(lengths, model.max_length)
    scores = np.zeros(len(item))
    ends = np.searchsorted(owner, np.arange(len(rows) + 1))
    with evaluating(model), torch.inference_mode():
        for block in padded_blocks(lengths, parse_memory(memory), 4 * split.num_items, TOKEN_BYTES):
            batch = training.gather(rows[block], model.max_length, needs=scorer.needs)
            pairs = slice(ends[block.start], ends[block.stop])
            found = scorer.ask(batch).float().cpu().numpy()
            scores[pairs] = found[owner[pairs] - block.start, columns[pairs]]
    if not (scores < np.inf).all():
        raise ValueError("scores are NaN or infinite: ranks among them mean nothing; look for a diverged model")
    return scores


def _estimates(names: Iterable[str], means: np.ndarray, bounds: np.ndarray) -> dict[str, Estimate]:
    rows = zip(names, means, bounds, strict=True)
    return {name: Estimate(float(mean), float(low), float(high)) for name, mean, (low, high) in rows}


def _table(propensities: Any, num_items: int) -> np.ndarray:
    theta = getattr(propensities, "theta", propensities)
    theta = theta.detach().cpu().numpy() if isinstance(theta, torch.Tensor) else np.asarray(theta)
    theta = theta.astype(np.float64)
    if theta.shape != (num_items + 1,):
        raise ValueError(
            f"one propensity per item row is needed, shape ({num_items + 1},) with entry 0 unused; found "
            f"{theta.shape}: take the weighting of a trained model, or call bind() on yours with "
            "Context(split.num_items, training=split.train)"
        )
    if not ((theta[1:] > 0) & (theta[1:] <= 1)).all():
        raise ValueError("propensities must lie in (0, 1]: divide by the largest, and floor the rest")
    return theta
