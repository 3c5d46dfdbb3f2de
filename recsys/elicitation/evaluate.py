"""How good are lists after 0, 5, 10 and 20 questions? An offline protocol for askers, one report each.

Users are split 80/10/10. Model, pool, askers and readers learn from the first part only; the second is there for
choosing weights (``part="valid"``); the third is asked. Each of them has an answer half A and a target half H of what
they rated: a question about an item is answered by A, and "unknown" if it is not there. Candidates are all items
outside A, the same for every asker and every number of questions, so that asking about an item does not by itself take
it out of the way; targets are the liked items of H. Users without any are left out, and counted.

What this cannot tell: an item of H is "unknown" when asked about, and so is a film that was seen and not rated, so real
people answer more; people rate what they chose, so likes are over-represented; a random half lets the future answer.

Legend: B users, N items (columns 0..N-1), Q items of the pool, K cut-off.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.elicitation.elicitor import ASKERS, READERS, Elicitor, learned
from recsys.elicitation.groups import Groups
from recsys.elicitation.opinions import DISLIKE, LIKE, UNASKED, Opinions
from recsys.errors import DataError, DataWarning, closest
from recsys.eval.report import Report
from recsys.progress import Progress
from recsys.randomness import numpy_generator
from recsys.ranking.ties import best

BUDGETS = (0, 5, 10, 20)
SHARES = (0.8, 0.1, 0.1)
CUT = 10
ALL = "all"  # an asker that is given every answer


@dataclass(frozen=True)
class Conversations:
    """Users of one part who are asked: what they would answer, and what they should find."""

    training: Opinions
    answers: Opinions  # the answer half
    targets: np.ndarray  # (B, N) bool
    users: np.ndarray  # (B,) user rows of the data
    left_out: int  # users without a target
    protocol: dict[str, Any]

    @cached_property
    def fingerprint(self) -> int:
        """Of users, candidates and targets."""
        read = (self.users, self.answers.owner, self.answers.items, np.packbits(self.targets))
        found = hashlib.blake2b(b"".join(np.ascontiguousarray(one).tobytes() for one in read), digest_size=8)
        return int.from_bytes(found.digest(), "little") >> 1


@dataclass(frozen=True)
class Elicited:
    """What one asker with one reader came to."""

    asker: str
    reader: str
    reports: dict[int, Report]  # number of questions -> a report for ``compare``
    answered: dict[int, float]  # number of questions -> mean number that were not "unknown"
    likes: dict[int, float]  # number of questions -> mean number of likes found
    milliseconds: float  # of a question to one user, asked together with all others

    def worst(self, questions: int, share: float = 0.1) -> float:
        """Mean NDCG of the worst tenth of the users."""
        values = np.sort(self.reports[questions].per_user(f"ndcg@{CUT}"))
        return float(values[: max(1, int(share * len(values)))].mean())


def evaluate_elicitation(
    split: Split,
    model: Callable[[Split], Any],
    askers: Sequence[str] = ("liked", "random"),
    readers: Sequence[str] | Mapping[str, float] = ("blend",),
    budgets: Sequence[int] = BUDGETS,
    pool: int = 500,
    rating: str | None = None,
    liked: float = 4.0,
    halves: str = "random",
    part: str = "test",
    groups: int = 64,
    seed: int = 7,
    progress: bool = True,
) -> list[Elicited]:
    """Ask the users of a part of ``split``'s users, all of whose events are taken, whatever ``split`` trains on.

    Args:
        model: makes a fitted model from a split that trains on the likes of training users, such as
            ``lambda split: recsys.fit(recsys.EASE(), split).model``.
        askers: names, see :func:`recsys.elicit`; "all" gives every answer of A at once, the ceiling.
        readers: "history", "blend" and "groups"; or with a weight, as {"blend": 0.1, "history": 0.0}.
        budgets: numbers of questions.
        rating, liked, pool, groups, seed: as :func:`recsys.elicit` has them. The seed also splits users and halves.
        halves: "random", or "time": the older half answers.
        part: "test", or "valid" for choosing a weight.

    Raises:
        ValueError: no such asker, reader, part or way of halving.
        DataError: no user of the part has a target.
    """
    for name in askers:
        if name not in (*ASKERS, ALL):
            raise ValueError(f"there is no asker {name!r}; {closest(name, (*ASKERS, ALL))}")
    weights = dict(readers) if isinstance(readers, Mapping) else dict.fromkeys(readers, None)
    for name in weights:
        if name not in READERS:
            raise ValueError(f"there is no reader {name!r}; {closest(name, READERS)}")
    if any(one < 0 for one in budgets) or not budgets:
        raise ValueError(f"expected numbers of questions such as {BUDGETS}, found {tuple(budgets)}")
    asked = conversations(split, rating, liked, halves, part, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no user has validation", DataWarning)  # they are other users here
        fitted = model(likes_of(asked.training, split))
    mixture = Groups.fit(asked.training, None, groups, seed=seed, progress=progress) if "groups" in weights else None
    found = []
    for name in askers:
        for reader, weight in weights.items():
            more = {} if weight is None else {"weight": float(weight)}
            own = "liked" if name == ALL else name
            one = learned(fitted, asked.training, own, pool, reader, groups=groups, seed=seed, mixture=mixture, **more)
            found.append(_ceiling(one, asked, sorted(budgets)) if name == ALL else _run(one, asked, budgets, progress))
    return found


def conversations(split: Split, rating: str | None, liked: float, halves: str, part: str, seed: int) -> Conversations:
    """The users of a part with their halves, and the opinions of the training users."""
    if part not in ("valid", "test") or halves not in ("random", "time"):
        raise ValueError(f"expected part valid or test, and halves random or time; found {part!r} and {halves!r}")
    everyone = Opinions.of(split, rating, liked, "all")
    order = numpy_generator(seed, "users").permutation(everyone.num_users)
    ends = (np.cumsum(SHARES[:2]) * len(order)).round().astype(int)
    training, valid, test = (np.sort(one) for one in np.split(order, ends))
    users = valid if part == "valid" else test
    theirs = everyone.of_users(users)
    begins = np.searchsorted(theirs.owner, np.arange(len(users) + 1))
    place = np.arange(len(theirs.owner)) - begins[theirs.owner]
    if halves == "random":
        key = numpy_generator(seed, "halves", part).random(len(theirs.owner))
        shuffled = np.lexsort((key, theirs.owner))
        place[shuffled] = np.arange(len(shuffled)) - begins[theirs.owner[shuffled]]
    answers = place < ((begins[1:] - begins[:-1] + 1) // 2)[theirs.owner]
    wanted = ~answers & theirs.liked
    targets = np.zeros((len(users), theirs.num_items), bool)
    targets[theirs.owner[wanted], theirs.items[wanted]] = True
    kept = np.flatnonzero(targets.any(1))
    if not len(kept):
        raise DataError(f"none of the {len(users):,} users of the part {part!r} has a liked item to be found")
    protocol = {"name": "elicitation", "users": SHARES, "seed": seed, "halves": halves, "liked": liked, "part": part}
    return Conversations(
        everyone.of_users(training), theirs.where(answers).of_users(kept), targets[kept], users[kept],
        len(users) - len(kept), protocol,
    )  # fmt: skip


def likes_of(training: Opinions, split: Split) -> Split:
    """A split that trains on the likes of ``training``, has nothing else, and the catalogue of ``split``."""
    liked = training.where(training.liked)
    offsets = np.searchsorted(liked.owner, np.arange(training.num_users + 1)).astype(np.int64)
    prepared = Prepared((liked.items + 1).astype(np.int32), offsets, split.num_items, order=split.prepared.order)
    users = type(split.users)([str(one) for one in range(training.num_users)], split.users.first)
    return replace(
        split, prepared=prepared, train_stop=offsets[1:], valid_stop=offsets[1:], users=users, user_features=None,
        requests=None, protocol={"name": "likes of training users"},
    )  # fmt: skip


def _run(one: Elicitor, asked: Conversations, budgets: Sequence[int], progress: bool) -> Elicited:
    """Ask everybody at once, one question after the other."""
    truth, users = asked.answers.answers(one.pool), np.arange(len(asked.users))
    said = np.full(truth.shape, UNASKED, np.int8)
    likes: list[list[int]] = [[] for _ in users]
    seconds, reports, answered, found = 0.0, {}, {}, {}
    with Progress(max(budgets), f"{one.asker_name} with {one.reader_name}", "questions", enabled=progress) as bar:
        for count in range(min(max(budgets), len(one.pool)) + 1):
            if count in budgets:
                reports[count] = _report(one, asked, said, [np.array(liked, np.int64) for liked in likes], count)
                answered[count] = float(((said == LIKE) | (said == DISLIKE)).sum(1).mean())
                found[count] = float((said == LIKE).sum(1).mean())
            if count == min(max(budgets), len(one.pool)):
                break
            began = time.perf_counter()
            gains = np.where(said == UNASKED, one.asker.gains(said), -np.inf)
            chosen = gains.argmax(1)
            seconds += time.perf_counter() - began
            said[users, chosen] = truth[users, chosen]
            for user in np.flatnonzero(truth[users, chosen] == LIKE).tolist():
                likes[user].append(int(one.pool[chosen[user]]))
            bar.advance(1)
    each = 1000 * seconds / max(len(users) * max(max(budgets), 1), 1)
    return Elicited(one.asker_name, one.reader_name, reports, answered, found, each)


def _ceiling(one: Elicitor, asked: Conversations, budgets: Sequence[int]) -> Elicited:
    """What all answers together are worth, however few are asked for."""
    given = asked.answers
    begins = np.searchsorted(given.owner, np.arange(given.num_users + 1))
    likes = [given.items[a:b][given.liked[a:b]] for a, b in pairwise(begins.tolist())]
    report = _report(one, asked, given.answers(one.pool), likes, -1)
    answered, liked = len(given.owner) / given.num_users, int(given.liked.sum()) / given.num_users
    reports = dict.fromkeys(budgets, report)
    return Elicited(ALL, one.reader_name, reports, dict.fromkeys(budgets, answered), dict.fromkeys(budgets, liked), 0.0)


def _report(
    one: Elicitor, asked: Conversations, said: np.ndarray, likes: Sequence[np.ndarray], questions: int
) -> Report:
    scores = torch.from_numpy(np.array(one.reader.scores(likes, said), np.float32))
    hidden = np.zeros(scores.shape, bool)
    hidden[asked.answers.owner, asked.answers.items] = True
    candidates = (~hidden).sum(1)
    scores[torch.from_numpy(hidden)] = -torch.inf
    cut = min(CUT, scores.shape[1])
    hits = np.take_along_axis(asked.targets, best(scores, cut)[1].numpy(), 1)
    number = asked.targets.sum(1)
    discount = 1.0 / np.log2(np.arange(2, cut + 2))
    ideal = np.concatenate([[0.0], discount.cumsum()])[np.minimum(number, cut)]
    zeros = np.zeros(len(number), np.int64)
    columns = {
        "position": np.arange(len(number)), "user": asked.users, "num_targets": number, "candidates": candidates,
        "history_length": np.array([len(liked) for liked in likes]),
        "target_popularity": asked.targets @ asked.training.counts[0] / number,
        **{f"{kind}_targets": zeros for kind in ("cold", "repeated", "unreachable", "tied")},
        f"ndcg@{CUT}": (hits * discount).sum(1) / ideal, f"recall@{CUT}": hits.sum(1) / number,
    }  # fmt: skip
    asking = f"{questions} questions" if questions >= 0 else "all answers"
    meta = {
        "model": f"{one.asker_name}, {one.reader_name}, {asking}", "part": asked.protocol["part"],
        "protocol": asked.protocol, "exclude": "history", "metrics": [f"ndcg@{CUT}", f"recall@{CUT}"],
        "num_items": scores.shape[1], "data_hash": asked.training.data_hash, "shares": [[0, 1]],
        "users_total": len(number) + asked.left_out, "users_without_targets": asked.left_out,
        "popularity_thresholds": np.quantile(columns["target_popularity"], (1 / 3, 2 / 3)).tolist(),
        "fingerprint": asked.fingerprint,
    }  # fmt: skip
    return Report.make(meta, columns, {}, ())
