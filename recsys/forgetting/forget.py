"""``forget``: a trained recommender that no longer knows some users, or some items, without training it anew.

Their training events become improbable by negative preference optimization (:class:`recsys.llm.trainers.objectives.
npo.NPO`) while four times as many events of others stay what they are. The aim is what a model trained without them
would say of these events, which is not nothing: it would find many of their items probable all the same. How much less
that is can be told without training: the model finds the last training event of a user more probable than the next one,
which it never saw, and that difference is what training on an event is worth. After each epoch the events to be
forgotten are compared with that level and the quality for everybody else is measured on validation; training ends at
the level, and the weights that are kept are those at it, or nearest to it, among the epochs whose quality is within the
tolerance.

What it cannot do: nothing here proves that a trace is gone, as training anew does. Whoever holds the old model, the
data, or copies of either still has them.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from recsys.data.split import HeldOut, Split
from recsys.data.without import without_items, without_users
from recsys.errors import DataError, DataWarning, UnknownItemError
from recsys.forgetting.memory import auc, log_probs, quality, training_events
from recsys.forgetting.statement import statement
from recsys.generative.generator import Generator
from recsys.generative.policies import policy_of
from recsys.hooks import PartList
from recsys.llm.trainers.drafts import Judged
from recsys.llm.trainers.extrapolate import Extrapolation, largest_tolerated
from recsys.llm.trainers.judgements import Judgements, Together
from recsys.llm.trainers.objectives.npo import NPO
from recsys.llm.trainers.sequences import Role
from recsys.llm.trainers.tuning import Tuning
from recsys.randomness import numpy_generator
from recsys.train.callbacks import Epoch
from recsys.train.fit import fit
from recsys.train.settings import Stage

KEPT = 4  # events of others beside each that is to be forgotten
SAMPLE = 2000  # users that are ranked to measure the quality for the others


@dataclass(frozen=True)
class Forgotten:
    """What :func:`forget` gives: the new model, the data without what was forgotten, and what was measured."""

    model: Any
    split: Split  # without the users, or without the events of the items
    before: dict[str, float]
    after: dict[str, float]
    facts: dict[str, Any]
    epochs: list[dict[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return statement(self.facts, self.before, self.after)


def forget(
    model: Any,
    split: Split,
    users: Sequence[Any] | None = None,
    items: Sequence[Any] | None = None,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    beta: float = 0.1,
    retain: float = 0.0,
    kl: float = 100.0,
    extrapolate: float = 0.0,
    tolerance: float = 0.02,
    adapter: Any = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Forgotten:
    """A copy of ``model`` that no longer knows the raw ``users``, or the raw ``items``; the model stays as it is.

    Args:
        model: a trained ``Recommender`` or ``Generator`` of ordered codes.
        split: the data it was trained on.
        users: whose training events are to be forgotten.
        items: instead, items that are to be forgotten: nobody's history is to lead to them any more. They stay in the
            catalogue; deny them when recommending.
        epochs: over the events that are to be forgotten, at most.
        learning_rate: of Adam.
        beta: of NPO: how soon an event that has become improbable stops counting.
        retain, kl: weights of the terms of others' events: their likelihood, and their divergence from the model as
            it was. The divergence keeps more: a model that is trained on their likelihood again begins to learn them
            by heart. It reads the scores of all items; with a very large catalogue take a smaller ``batch_size``.
        extrapolate: go on along the change that was made, by at most this share of it, as far as the tolerance allows
            (UIPE); 0 does not.
        tolerance: the share of the others' NDCG@10 on validation that may be lost.
        adapter: trained instead of the parts themselves, such as ``LoRA(rank=8)``; folded in at the end.
        batch_size: events to be forgotten in a batch; four times as many of others are put beside them.
        seed: of the order, and of which events of others are read.

    Raises:
        TypeError: the model is of another kind: one that is counted is fitted again in no time.
        ValueError: both or neither of users and items are given, or a number is out of range.
        DataError: training never saw any of them, or nobody else is left.
    """
    if (users is None) == (items is None):
        raise ValueError("name either the users or the items that are to be forgotten")
    if epochs < 1 or not 0 <= tolerance < 1 or extrapolate < 0:
        raise ValueError(
            "epochs >= 1, tolerance from 0 to below 1 and extrapolate >= 0 are needed, found "
            f"{epochs}, {tolerance} and {extrapolate}"
        )
    policy_of(model)
    began = time.monotonic()
    rows, unknown = _rows(split, users, items)
    left = without_users(split, rows) if users is not None else without_items(split, rows)
    own = copy.deepcopy(model)
    whole = adapter is None and any(True for _ in own.items.parameters())  # frozen tables have none
    policy = policy_of(own, whole)
    lost = training_events(split, rows) if users is not None else _events_of_items(split, rows)
    if not len(lost):
        raise DataError(
            "training never predicted any event of what is to be forgotten (users with a single training event teach "
            "nothing): there is nothing to forget in the weights"
        )
    watch = Watch(own, policy, lost, left, tolerance, seed)
    before = watch.measure()
    source = _source(split, lost, rows, users is not None, own, batch_size, seed)
    tuning = Tuning(policy, Judged(), NPO(beta, retain=retain, kl=kl), adapter)
    others = list(own.auxiliaries)
    start = {name: value.clone() for name, value in own.tensors().items()}
    own.auxiliaries = PartList([*others, tuning])  # some answer requests as well (LIGER)
    tuning.attach()
    watch.keep()
    watch.progress = progress
    trained = _trained(own, whole)
    stage = Stage(epochs, losses=[own.loss_names[-1]], train=trained, data=source, name="forget", validate=False)
    fit(
        own, left, stages=[stage], init="keep", learning_rate=learning_rate, seed=seed, validate_every=0,
        callbacks=[watch], progress=progress, clip_norm=1.0,
    )  # fmt: skip
    watch.restore()
    tuning.merge()
    own.auxiliaries = PartList(others)
    share = _extrapolated(own, start, watch, extrapolate) if extrapolate and watch.chosen else 0.0
    own.cut = left.cut
    own.eval()
    seconds = time.monotonic() - began
    facts: dict[str, Any] = {
        "kind": "users" if users is not None else "items",
        "asked": len(rows) + unknown,
        "unknown": unknown,
        "forgotten": len(rows),
        "events": len(lost),
        "epochs": len(watch.seen),
        "chosen epoch": watch.chosen,
        "reached": watch.reached,
        "level": round(watch.level, 4),
        "extrapolated": share,
        "tolerance": tolerance,
        "seconds": round(seconds, 1),
    }
    return Forgotten(own, left, _whole(model, policy_of(model), split, left, lost, rows, before),
                     _whole(own, policy, split, left, lost, rows, watch.measure()), facts, watch.seen)  # fmt: skip


class Watch:
    """A callback that measures after each epoch, keeps the best weights, and stops where nothing more is to be done."""

    def __init__(self, model: Any, policy: Any, lost: HeldOut, left: Split, tolerance: float, seed: int) -> None:
        self.model, self.policy = model, policy
        self.lost = _some(lost, 4 * SAMPLE, seed)
        self.unseen = _some(left.valid if len(left.valid) else left.test, SAMPLE, seed)
        self.tolerance = tolerance
        self.progress = False
        self.seen: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.least, self.chosen, self.reached = float("inf"), 0, False
        self.begin: dict[str, float] = {}
        self.level = 0.0  # mean log-probability of what is to be forgotten at which it is

    def measure(self) -> dict[str, float]:
        """The attack on what is to be forgotten, and the quality for the others on validation."""
        members, others = (log_probs(self.model, self.policy, part) for part in (self.lost, self.unseen))
        found = {
            "attack": auc(members, others),
            "log-probability": float(members.mean()),
            "log-probability of unseen": float(others.mean()),
            "valid ndcg@10": quality(self.model, self.unseen),
        }
        if not self.begin:
            self.begin, self.level = found, found["log-probability"] - max(self._worth(), 0.0)
        return found

    def keep(self) -> None:
        """The weights as they are are the best so far."""
        found = self.model.tensors().items()
        self.best = {name: value.clone() for name, value in found if not name.endswith(".reference")}

    def restore(self) -> None:
        """Put the best weights back into the model."""
        self.model.load_tensors({**self.model.tensors(), **self.best})

    def _worth(self) -> float:
        """How much more probable the last training event of a user is than the next event, which was not trained on."""
        valid = self.unseen
        known = valid.target_start - valid.history_start > 1
        last = replace(valid, target_start=valid.target_start - 1, target_stop=valid.target_start).subset(known)
        found = [log_probs(self.model, self.policy, part).mean() for part in (last, valid.subset(known))]
        return float(found[0] - found[1]) if known.any() else 0.0

    def __call__(self, epoch: Epoch) -> bool:
        """Whether to stop."""
        found = self.measure()
        self.seen.append({"epoch": float(epoch.epoch), **found})
        kept = found["valid ndcg@10"] >= (1 - self.tolerance) * self.begin["valid ndcg@10"]
        apart = abs(found["log-probability"] - self.level)
        below = found["log-probability"] <= self.level
        if kept and (below or apart < self.least):
            self.least, self.chosen = apart, epoch.epoch
            self.keep()
        self.reached = self.reached or below
        if self.progress:
            told = f"log-probability {found['log-probability']:.3f} (goes to {self.level:.3f})"
            told += f", attack {found['attack']:.3f}"
            print(f"    forgotten: {told}, others' ndcg@10 {found['valid ndcg@10']:.4f}", file=sys.stderr, flush=True)
        return self.reached


def _rows(split: Split, users: Sequence[Any] | None, items: Sequence[Any] | None) -> tuple[np.ndarray, int]:
    """Rows of what is to be forgotten, each once, and how many of the ids are unknown or never trained."""
    asked = list(dict.fromkeys(users if users is not None else items or ()))
    if not asked:
        raise DataError("no id is given: there is nothing to forget")
    vocabulary, what = (split.users, "users") if users is not None else (split.items, "items")
    try:
        rows = vocabulary.rows(asked)
    except (UnknownItemError, TypeError) as error:
        raise DataError(f"the {what} to forget are not ids of these data: {error}") from error
    first = vocabulary.first
    counts = split.train.lengths if users is not None else split.train.item_counts()
    found = np.unique(rows[rows >= first])
    found = found[counts[found] > 0]
    if not len(found):
        raise DataError(
            f"training never saw any of the {len(asked):,} {what} to forget, such as {asked[:3]!r}: look at the type "
            "and spelling of the ids, and at the data that the model was trained on"
        )
    if lacking := len(asked) - len(found):
        note = f"{lacking:,} of {len(asked):,} {what} to forget are unknown, or were never trained on"
        warnings.warn(note, DataWarning, stacklevel=3)
    return found, len(asked) - len(found)


def _events_of_items(split: Split, items: np.ndarray) -> HeldOut:
    return training_events(split, np.arange(split.num_users), items)


def _source(
    split: Split, lost: HeldOut, rows: np.ndarray, people: bool, model: Any, batch_size: int, seed: int
) -> Together:
    """What is to be forgotten, with several times as much of what is to be kept in each batch."""
    more: dict[str, Any] = {"max_length": model.max_length, "batch_size": batch_size, "seed": seed}
    more["needs"] = model.train_needs
    items = np.asarray(split.prepared.items)[lost.target_start]
    forget = Judgements(
        split.train, lost.users, lost.target_start, items, np.full(len(items), int(Role.FORGET)), **more
    )
    others = np.setdiff1d(np.arange(split.num_users), rows) if people else np.arange(split.num_users)
    others = others[split.train.lengths[others] > 1]
    if not len(others):
        raise DataError("nobody else has two training events: there is nothing to keep the model by")
    random = numpy_generator(seed, "kept users")
    keep = random.choice(others, min(len(others), 20 * SAMPLE), replace=False)
    part = training_events(
        split, np.sort(keep), None if people else np.setdiff1d(np.arange(1, split.num_items + 1), rows)
    )
    part = _some(part, 400 * SAMPLE, seed)
    items = np.asarray(split.prepared.items)[part.target_start]
    more["batch_size"] = KEPT * batch_size
    retain = Judgements(
        split.train, part.users, part.target_start, items, np.full(len(items), int(Role.RETAIN)), **more
    )
    return Together([forget, retain])


def _some(part: HeldOut, most: int, seed: int) -> HeldOut:
    if len(part) <= most:
        return part
    return part.subset(np.sort(numpy_generator(seed, "some", part.name).choice(len(part), most, replace=False)))


def _trained(model: Any, whole: bool) -> list[str]:
    if isinstance(model, Generator):
        return ["encoder", "decoder"]
    return ["encoder", "items"] if whole else ["encoder"]


def _extrapolated(model: Any, start: dict[str, Tensor], watch: Watch, most: float) -> float:
    """Go on from the weights ``start`` beyond those of the model, as far as the others' quality allows; by how much."""

    def retained() -> float:
        return watch.measure()["valid ndcg@10"]

    floor, now = (1 - watch.tolerance) * watch.begin["valid ndcg@10"], retained()
    if not now > floor:
        return 0.0
    shares = [most * part / 4 for part in (1, 2, 3, 4)]
    return largest_tolerated(Extrapolation(model, start), retained, 1 - floor / now, shares).alpha


def _whole(
    model: Any, policy: Any, split: Split, left: Split, lost: HeldOut, rows: np.ndarray, known: dict[str, float]
) -> dict[str, float]:
    """All that the report tells of one model."""
    found = dict(known)
    found["own events ndcg@10"] = quality(model, lost, sample=SAMPLE)
    found["own events hr@10"] = quality(model, lost, "hr@10", SAMPLE)
    found["others' test ndcg@10"] = quality(model, left.test, sample=10 * SAMPLE)
    chosen = np.isin(split.test.users, rows)
    if len(rows) < split.num_users and chosen.any() and left.num_users < split.num_users:
        found["re-exposed ndcg@10"] = quality(model, split.test.subset(chosen))
    return found
