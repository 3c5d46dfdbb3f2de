"""Mixed domains: one SASRec over two data sets, in shares that are set, or follow held-out losses (experimental).

Run: ``RECSYS_MIRROR=... recsys fit mixed --mix skill-it`` (``--mix proportional``, ``equal`` or ``dmt``). Films of
ml-100k and cosmetics of amazon-beauty are one catalogue and the users of both its customers, with raw ids such as
``ml-100k/50``, split leave-last. No item and no user is in both, so what domains share is the encoder alone: each can
gain from the other only through how histories are read, and loses where the other takes its capacity and updates. That
is what a mixture can decide, and the two differ in all that matters for it (few long histories, many short ones).

Every batch is of one domain and holds about the same number of events, so that a share of the batches is a share of the
events, and all ways of mixing make the same number of optimizer steps: as many as ``--epochs`` passes over all
data take. No epoch is chosen on validation; the last weights are kept.

``proportional`` draws domains by their number of batches, ``equal`` evenly; ``dmt`` (arXiv 2310.05492) trains on the
specialised domain first, then on the other with a sample of it (``--share 0``: with nothing of it);
``skill-it`` (arXiv 2307.14430) begins with proportional shares and changes them by the losses on validation events.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from _knobs import Knobs

import recsys as rs
from recsys.data.prepared import Prepared
from recsys.data.split import HeldOut, Split, TrainingEvents
from recsys.ids.vocabulary import Vocabulary
from recsys.llm.trainers.selectors.dmt import Rehearsed
from recsys.llm.trainers.selectors.held_out import HeldOutBatches
from recsys.llm.trainers.selectors.skill_it import SkillIt, held_out_losses
from recsys.storage.artifacts import artifacts_root
from recsys.storage.cache import cache_folder
from recsys.train.loader import TrainBatches

Domain = Literal["ml-100k", "amazon-beauty"]
DOMAINS: tuple[str, ...] = get_args(Domain)
KNOBS = Knobs(epochs=20, dropout=0.3, max_length=50, batch_size=32, learning_rate=1e-3)


def run(
    mix: Literal["proportional", "equal", "dmt", "skill-it"] = "proportional",
    special: Domain = "ml-100k",
    share: float = 1 / 256,
    eta: float = 0.5,
    window: int = 3,
    held: int = 1000,
    measured: str = "",
    knobs: Knobs = KNOBS,
) -> rs.Run:
    """SASRec with the full softmax over the joint catalogue.

    Args:
        mix: how batches of the two domains follow each other.
        special: the domain that is trained on first (DMT).
        share: of its rows that are trained on again among the other's (DMT).
        eta: how far losses move the shares (Skill-It).
        window: epochs whose losses count (Skill-It).
        held: users of each domain on whose validation events losses are measured, drawn.
        measured: folder where these losses are kept, so that a stopped run goes on (default: one in the cache).
        knobs: batch_size counts histories of max_length: a batch holds batch_size * max_length events at most.
    """
    split = joined({name: rs.load(name).split(rs.LeaveLast()) for name in DOMAINS})
    model = rs.Recommender(
        items=rs.IdItems(knobs.dim),
        encoder=rs.SASRec(knobs.dim, num_layers=2, num_heads=1, dropout=knobs.dropout, max_length=knobs.max_length),
        objective=rs.FullSoftmax(),
    )
    sources = {name: training_of(split, name, knobs) for name in DOMAINS}
    batches = {name: source.num_batches(0) for name, source in sources.items()}
    total = sum(batches.values())
    callbacks: list[Any] = []
    if mix == "dmt":
        [general] = [source for name, source in sources.items() if name != special]
        stages = [
            rs.Stage(knobs.epochs, data=sources[special], name="special"),
            # An epoch more than it takes, as batches of an epoch may be one or two fewer; max_steps ends it.
            rs.Stage(knobs.epochs + 1, data=Rehearsed(general, sources[special], share, knobs.seed), name="general"),
        ]
    else:
        parts = {name: part_of(split.valid, split, name) for name in DOMAINS}
        losses = held_out_losses(
            {
                name: HeldOutBatches(part, knobs.max_length or 50, 128, held, model.needs)
                for name, part in parts.items()
            },
            batches=-(-held // 128),
        )
        mixture = SkillIt(
            sources,
            losses,
            prior=None if mix == "equal" else [batches[name] for name in DOMAINS],
            eta=eta if mix == "skill-it" else 0.0,
            window=window,
            folder=measured or None,
            seed=knobs.seed,
        )
        mixture.folder = mixture.folder or kept_losses(mixture, knobs, held)
        stages, callbacks = [rs.Stage(knobs.epochs, data=mixture, name="mixture")], [mixture]
    training = knobs.training(stages=stages, callbacks=callbacks, validate_every=0, max_steps=knobs.epochs * total)
    return rs.Run(model, split, training, evaluate=knobs.evaluation(), name=f"mixed by {mix}")


def joined(splits: Mapping[str, Split]) -> Split:
    """One split of several that have nothing in common: users and items of all, raw ids prefixed by ``name/``.

    Events, their order and where training and validation end stay as they are; of other columns only times are kept.
    """
    parts = list(splits.values())
    events = [part.prepared for part in parts]
    items_before = np.cumsum([0, *(part.num_items for part in parts)])
    events_before = np.cumsum([0, *(one.num_events for one in events)])
    timed = all(one.times is not None for one in events)
    before = list(zip(parts, items_before[:-1], events_before[:-1], strict=True))
    prepared = Prepared(
        np.concatenate([part.prepared.items + np.int32(items) for part, items, _ in before]),
        np.append(0, np.concatenate([part.prepared.offsets[1:] + first for part, _, first in before])),
        int(items_before[-1]),
        times=np.concatenate([np.asarray(one.times) for one in events]) if timed else None,
        order=events[0].order if len({one.order for one in events}) == 1 else "file",
    )
    stops = [
        np.concatenate([getattr(part, name) + first for part, _, first in before])
        for name in ("train_stop", "valid_stop")
    ]
    users, items = (
        [f"{name}/{raw}" for name, part in splits.items() for raw in getattr(part, of).ids.tolist()]
        for of in ("users", "items")
    )
    protocol = {"name": "leave-last", "order": prepared.order, "domains": {n: p.protocol for n, p in splits.items()}}
    return Split(
        prepared,
        *stops,
        Vocabulary(items, first=1),
        Vocabulary(users, first=0),
        protocol,
        hashlib.sha256(json.dumps({name: part.data_hash for name, part in splits.items()}).encode()).hexdigest(),
        " + ".join(splits),
    )


def users_of(split: Split, domain: str) -> np.ndarray:
    """(U,) bool: the users of a domain."""
    return np.array([raw.startswith(f"{domain}/") for raw in split.users.ids.tolist()])


def items_of(split: Split, domain: str) -> np.ndarray:
    """(N + 1,) bool by item row: the catalogue of a domain."""
    return np.array([False, *(raw.startswith(f"{domain}/") for raw in split.items.ids.tolist())])


def part_of(part: HeldOut, split: Split, domain: str) -> HeldOut:
    """A held-out part, of the users of a domain."""
    return part.subset(users_of(split, domain)[part.users])


def training_of(split: Split, domain: str, knobs: Knobs) -> TrainBatches:
    """Batches of a domain's training events, all of about the same number of events."""
    own, training = users_of(split, domain), split.train
    events = TrainingEvents(split.prepared, training.start, np.where(own, training.stop, training.start))
    length = knobs.max_length or 50
    return TrainBatches(
        events,
        max_length=length,
        tokens=(knobs.batch_size or 32) * length,
        windows="sliding",
        seed=knobs.seed,
    )


def kept_losses(mixture: SkillIt, knobs: Knobs, held: int) -> Path:
    """Where a mixture's losses are kept unless a folder is named: by all that decides them."""
    told = json.dumps([mixture.identity(), repr(knobs), held], sort_keys=True)
    return artifacts_root(cache_folder()) / "mixtures" / hashlib.sha256(told.encode()).hexdigest()[:16]
