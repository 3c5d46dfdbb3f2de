"""``evaluate``: rank the whole catalogue for every held-out user and report one number per user and metric.

Legend: n users of the part, N items, C candidates (all N, or those that are given).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recsys.errors import DataWarning
from recsys.eval.aggregates import Aggregate
from recsys.eval.candidates import choose_candidates, choose_denied
from recsys.eval.choice import choose
from recsys.eval.collect import Collector
from recsys.eval.exact import ExactRanking
from recsys.eval.leakage import check_leakage
from recsys.eval.list_only import Lister, ListRanking
from recsys.eval.metrics.ranked import Metric
from recsys.eval.ranks import Plan, parse_memory
from recsys.eval.report import EXCLUDE, Report
from recsys.eval.scoring import Scorer, only_lists, require_part
from recsys.eval.scoring import device_of as device_of
from recsys.eval.segments import popularity_thresholds
from recsys.progress import Progress
from recsys.randomness import numpy_generator
from recsys.recommenders.modes import evaluating
from recsys.statistics.transitions import by_user

if TYPE_CHECKING:
    from recsys.data.split import HeldOut
    from recsys.ids.vocabulary import Vocabulary
    from recsys.recommenders.base import Recommends, Scores

CUTS = (1, 5, 10, 20)
MANY_MISSES = 0.01  # share of the targets that a rule makes misses, above which a warning says so


def evaluate(
    model: Recommends | Scores | Any,
    part: HeldOut,
    k: int | Sequence[int] | None = None,
    metrics: Iterable[str | Metric | Aggregate] | None = None,
    exclude: Literal["history", "none", "history-except-targets"] = "history",
    memory: str | int = "512MB",
    progress: bool = True,
    segments: Mapping[str, Sequence[Any]] | None = None,
    name: str | None = None,
    users: Vocabulary | None = None,
    rank: int = 0,
    world_size: int = 1,
    candidates: Any = "all",
    deny: Any = None,
    sample: int | None = None,
    seed: int = 0,
    leakage: Literal["raise", "warn", "allow"] = "raise",
    warn: bool = True,
    transitions: bool | Literal["kinds"] = True,
) -> Report:
    """A :class:`Report` of how ``model`` ranks the targets of ``part`` among all items.

    Ranks are exact: no candidate is sampled, and equally scored items count with the expected value over all their
    orders, so a constant scorer gets what guessing gives. What is ranked is what ``recommend`` can show with the same
    ``exclude`` and ``deny``: a target that it never shows, or that is scored -inf, is a miss. Model and part are
    matched by the raw ids of their items; where these stand in another order, rows are translated.

    A model that recommends and does not score all items (a bundle, one that generates lists, a class of your own) is
    asked for lists of K items, the largest cut-off: metrics to K are exact, ranks behind K are unknown, and the report
    says "list only, to K". Equal scores then count in the order of the list. Its lists are checked.

    Args:
        model: anything with ``score_safely(batch) -> (b, N)``, column j for item row j + 1 (see
            :class:`recsys.recommenders.base.Scores`), or with ``recommend(histories, k=, exclude=)`` (see
            :class:`recsys.recommenders.base.Recommends`), which takes ``allow`` and ``deny`` too if candidates or
            denied items are given here.
        part: ``split.valid`` or ``split.test``.
        k: cut-offs, none above the number of items (default: 1, 5, 10 and 20, as far as the catalogue goes). A user
            with fewer candidates than k has a shorter list, which precision still divides by k; the report counts
            these users.
        metrics: names ("ndcg", or "ndcg@10" with its own cut-off), or objects of your own; None for all.
        exclude: "history" takes what the user had out of the candidates: a target that repeats an item of the history
            is then a miss, which the report counts, with a warning above 1% of the targets. "none" leaves
            everything in. "history-except-targets" takes out the history but keeps a target that repeats it, as the
            tables of some papers do; no list that ``recommend`` gives has such a number.
        memory: what scoring and ranking may hold at a time, besides the model; it decides the users per batch.
        segments: further segments: name -> one label per user of the part.
        name: what the report calls the model; by default its class.
        users: the vocabulary of users, to keep their raw ids in the report; by default that of the part's split.
        rank, world_size: evaluate ``users[rank::world_size]``; put the shares together with :meth:`Report.merge`,
            which gives what one process gives, as far as the scores of a user do not depend on the rest of a batch.
        candidates: what is ranked: "all" items, the "cold" ones that training never saw, raw item ids, or a mask
            (N+1,) bool by item row of the part. Targets that are not candidates are left out, and so are users without
            any other; a warning counts both. Coverage and Gini then are over the candidates, and the protocol of the
            report names them and what guessing gives.
            Or raw item ids for each user, such as impressions or published negatives: one list per user in the order
            of the part, a mapping from raw user ids, or a table (Polars, pandas) with the columns ``user`` and
            ``item``. A user's targets are ranked beside them; the report counts those that had to be added. Users
            with an empty list are left out and counted. ``exclude`` applies to whatever the candidates are: pass
            exclude="none" if repeated items were shown.
        deny: raw item ids that are never shown, for all users or as one list per user, in the forms of
            ``candidates``. A denied target is a miss.
        sample: rank a random sample of N users of the part, drawn by ``seed``; the report says so.
        leakage: what happens if the model learned from targets of the part: "raise" a LeakageError, "warn", or
            "allow". Where that is not known, the first two warn.
        warn: whether to warn of users that are left out and of many repeated targets, which the report counts.
        transitions: the segments "memorised" (training has the user's newest item and the target in a row), "composed"
            (of what it has), "neither" and "cold target"; "kinds" also says how composed, False leaves them out.

    Raises:
        TypeError: ``model`` neither scores nor recommends, or without the arguments that are needed.
        ValueError: a bad argument, a score that is NaN or +inf, scores of the wrong shape; a list that holds an item
            twice or one that may not be shown, is too long, or whose scores rise; a metric without cut-off, of lists.
        DataError: the part has no users, is damaged or is over other items than the model; no candidate, an unknown
            one, or no target among them; a list with an item that the part does not know.
        LeakageError: the model was trained on targets of the part.
    """
    if exclude not in EXCLUDE:
        raise ValueError(f"exclude is one of {', '.join(map(repr, EXCLUDE))}; found {exclude!r}")
    if transitions not in (True, False, "kinds"):
        raise ValueError(f"transitions is True, False or 'kinds'; found {transitions!r}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1; found rank={rank} with world_size={world_size}")
    require_part(part)
    scorer = Lister(model, part) if only_lists(model) else Scorer(model, part)
    check_leakage(model, part, leakage)
    asked = _asked(len(part), sample, seed)
    denied, denied_lists = choose_denied(deny, scorer)
    ranked = choose_candidates(candidates, denied, scorer, asked)
    choice = choose(metrics, [cut for cut in CUTS if cut <= ranked.longest] or 1 if k is None else k, len(ranked))
    own = {title: _labels(title, labels, len(part)) for title, labels in (segments or {}).items()}
    share = asked[rank::world_size]
    lengths = scorer.lengths(share)
    ranking: ExactRanking | ListRanking
    if isinstance(scorer, Lister):
        choice.require_cuts(type(model).__name__)
        ranking = ListRanking(scorer, ranked, parse_memory(memory), choice.depth, exclude, denied_lists)
    else:
        plan = Plan.fit(memory, scorer.num_items, int(lengths.max(initial=0)), scorer.device)
        ranking = ExactRanking(scorer, ranked, plan, choice.list_length)
    run = Collector(ranking, part, choice, exclude, denied_lists)
    _rank(run, share, lengths, Progress(len(share), f"evaluate {part.name}", "users", enabled=progress and rank == 0))
    columns = run.columns()
    users = users or getattr(part.split, "users", None)
    if users is not None:
        columns["user_id"] = np.asarray(users.raw(columns["user"]))
    columns |= _transitions(part, run, columns["position"], transitions)
    columns |= {f"segment:{title}": labels[columns["position"]] for title, labels in own.items()}
    meta: dict[str, Any] = {"model": name or type(model).__name__, "exclude": exclude, "shares": [[rank, world_size]]}
    if len(asked) < len(part):
        meta["sample"] = {"users": len(asked), "seed": seed}
    report = Report.make(meta | _facts(model, part, run), columns, run.exposure(), choice.aggregates)
    if warn:
        _tell(report, len(share))
    return report


def _rank(run: Collector, share: np.ndarray, lengths: np.ndarray, bar: Progress) -> None:
    """Rank the users at ``share`` (n,) of the part, whose histories have ``lengths`` (n,) items."""
    with evaluating(run.ranking.scorer.model), run.ranking.mode(), bar:
        for alike in (lengths > 0, lengths == 0):  # apart, for a mixed batch would hold its scores twice
            index = share[alike]
            for chosen in run.ranking.batches(lengths[alike]):
                run.add(index[chosen])
                bar.advance(chosen.stop - chosen.start)


def _transitions(part: HeldOut, run: Collector, index: np.ndarray, wanted: bool | str) -> dict[str, np.ndarray]:
    """The column of transitions of the users at ``index`` (n,), if wanted and if the part knows its training events."""
    found = by_user(part, index, *run.targets(index), kinds=wanted == "kinds") if wanted else None
    return {} if found is None else {"transition": found}


def _facts(model: Any, part: HeldOut, run: Collector) -> dict[str, Any]:
    """What was ranked for whom, for telling reports apart that do not measure the same thing."""
    split, cut, lists = part.split, getattr(model, "cut", None), run.denied
    protocol = part.protocol | run.candidates.protocol()
    facts = {
        "users_total": len(part),
        "users_without_targets": run.without_targets,
        "fingerprint": run.fingerprint,
        "metrics": [column for column, _, _ in run.choice.metrics],
        "part": part.name,
        "protocol": protocol,
        "data_hash": part.data_hash,
        "num_items": run.num_items,
        "popularity_thresholds": list(popularity_thresholds(part.item_counts)),
        **run.candidates.facts(),
    }
    if run.ranking.depth is not None:
        facts["list_only"] = run.ranking.depth
    if split is not None:
        facts |= {"catalogue": split.items.digest, "user_ids": split.users.digest}
    if cut is not None:
        facts["trained_on"] = cut.digest
    if lists is not None:
        protocol["denied"] = f"a list per user, {lists.lengths.mean():,.1f} items each"
        facts["ranked"] = facts.get("ranked", "") + lists.digest
    return facts


def _tell(report: Report, users: int) -> None:
    """Warn of users that are left out, and of many targets that are misses by a rule."""
    meta = report.meta
    if meta["users_without_targets"]:
        outside = meta.get("targets_outside")
        where = f" among the candidates ({outside:,} targets are not candidates)" if outside is not None else ""
        what = "no candidates or no target" if "targets_added" in meta else f"no target{where}"
        note = f"{meta['users_without_targets']:,} of {users:,} users have {what} and are left out"
        warnings.warn(note, DataWarning, stacklevel=3)
    if meta["exclude"] == "history":
        warn_of_repeats(meta["repeated_targets"], meta["targets"], stacklevel=4)


def warn_of_repeats(repeated: int, targets: int, stacklevel: int) -> None:
    """Say that many targets are misses because they repeat a history that is left out."""
    if repeated > MANY_MISSES * targets:
        warnings.warn(
            f"{repeated:,} of {targets:,} targets ({repeated / targets:.1%}) repeat the user's history, which no list "
            "shows again, so they are misses: pass exclude='none' (to fit, evaluate and recommend) if repeats are "
            "wanted; exclude='history-except-targets' ranks them, for papers that do",
            DataWarning,
            stacklevel=stacklevel,
        )


def _asked(users: int, sample: int | None, seed: int) -> np.ndarray:
    """(n,) positions of the users that are ranked, ascending."""
    if sample is None:
        return np.arange(users)
    if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or sample < 1:
        raise ValueError(f"sample is a number of users from 1 up, or None for all; found {sample!r}")
    if sample >= users:
        return np.arange(users)
    return np.sort(numpy_generator(seed, "sampled users").choice(users, int(sample), replace=False))


def _labels(title: str, labels: Sequence[Any], users: int) -> np.ndarray:
    found = np.asarray(labels).astype(str)
    if found.shape != (users,):
        raise ValueError(f"segment {title!r} needs one label per user of the part, ({users},); found {found.shape}")
    return found
