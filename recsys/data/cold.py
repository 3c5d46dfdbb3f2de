"""A split for cold items: some items are taken out of training altogether, and are the targets.

Legend: U users, E events, N items (rows 1..N).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from recsys.data.audit import audit
from recsys.data.findings import Audit, Finding
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.errors import DataError
from recsys.randomness import numpy_generator


def cold_items(split: Split, share: float = 0.05, count: int | None = None, seed: int = 0, users: float = 1.0) -> Split:
    """The data of ``split``, split again so that no training event, no validation event and no history has a cold item.

    Cold items are drawn evenly from those that occur. A user's test target is the first event with a cold item that
    has a warm one before it; the history is the warm events before that. The rest of the user's events are left out,
    so nobody trains on what comes behind an own target. The last warm event that is kept is validation, as in
    leave-last, if one is left to train on. Users without a target keep all their warm events. Like leave-last it
    lets training know the future of other users. Item and user rows and raw ids stay what they are; rank with
    ``evaluate(model, split.test, candidates="cold")``.

    Long histories meet a cold item early, so that testing everybody leaves little to train on; test a share of the
    ``users`` then. The line that this adds to the audit says what is left out, and how many items are unseen that were
    not drawn.

    Args:
        split: any split; of it only the events, the ids and the texts are used.
        share: of the items that occur, how many are cold.
        count: that many items, instead of a share.
        seed: decides which.
        users: the share of users who may be tested, drawn by ``seed``; the others only lose their cold events.

    Raises:
        ValueError: ``share`` is not between 0 and 1, ``count`` leaves no warm item, or ``users`` is not in 0..1.
        DataError: the events have no order, or no user has a cold item after a warm one.
    """
    prepared = split.prepared
    if prepared.order == "none":
        raise DataError("a user's first event with a cold item needs an order, and these data have none (order = none)")
    if not 0 < users <= 1:
        raise ValueError(f"users must be a share above 0 and up to 1, found {users}")
    chosen = _draw(prepared, share, count, seed)
    asked = numpy_generator(seed, "cold users").random(prepared.num_users) < users
    kept, tested = _kept(prepared, chosen, asked)
    if not tested.any():
        raise DataError(
            f"no user has one of the {int(chosen.sum()):,} cold items after a warm one: hold out more items, or draw "
            "others with another seed"
        )
    ends = np.zeros(prepared.num_events + 1, np.int64)
    np.cumsum(kept, out=ends[1:])
    offsets = ends[prepared.offsets]
    cut = _taken(prepared, kept, offsets)
    valid_stop = offsets[1:] - tested
    train_stop = valid_stop - (valid_stop - offsets[:-1] >= 2)
    protocol: dict[str, Any] = {
        "name": "cold-items",
        "order": prepared.order,
        "items": int(chosen.sum()),
        "users": users,
        "seed": seed,
        "of": split.protocol.get("name", "unnamed split"),
        "global_time": False,
    }
    made = replace(split, prepared=cut, train_stop=train_stop, valid_stop=valid_stop, protocol=protocol, audit=None)
    found = audit(made)
    return replace(made, audit=Audit(found.title, (*found.findings, _finding(split, made, chosen))))


def _draw(prepared: Prepared, share: float, count: int | None, seed: int) -> np.ndarray:
    """(N+1,) bool: the cold items."""
    occurring = np.flatnonzero(np.bincount(prepared.items, minlength=prepared.num_items + 1))
    if count is None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, both excluded, found {share}")
        count = max(round(share * len(occurring)), 1)
    if not 1 <= count < len(occurring):
        raise ValueError(f"between 1 and {len(occurring) - 1:,} of {len(occurring):,} items can be cold, found {count}")
    chosen = np.zeros(prepared.num_items + 1, bool)
    chosen[numpy_generator(seed, "cold items").choice(occurring, count, replace=False)] = True
    return chosen


def _kept(prepared: Prepared, cold: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E,) bool: the events that stay; (U,) bool: the users with a target, which is their last event that stays.

    Only users who are ``asked`` (U,) get a target.
    """
    start, lengths = prepared.offsets[:-1], np.diff(prepared.offsets)
    is_cold = cold[prepared.items]
    warm_before = _count_before(~is_cold, start, lengths)
    target = is_cold & (warm_before > 0) & np.repeat(asked, lengths)
    targets_before = _count_before(target, start, lengths)
    target &= targets_before == 0
    kept = (~is_cold & (targets_before == 0)) | target
    tested = np.zeros(prepared.num_users, bool)
    tested[np.repeat(np.arange(prepared.num_users), lengths)[target]] = True
    return kept, tested


def _count_before(flag: np.ndarray, start: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(E,): how many events of the same user before each one have ``flag`` (E,)."""
    running = np.zeros(len(flag) + 1, np.int64)
    np.cumsum(flag, out=running[1:])
    counts: np.ndarray = running[:-1] - np.repeat(running[start], lengths)
    return counts


def _taken(prepared: Prepared, kept: np.ndarray, offsets: np.ndarray) -> Prepared:
    optional = {name: getattr(prepared, name) for name in ("times", "weights", "nanoseconds")}
    chosen = {name: None if array is None else np.asarray(array)[kept] for name, array in optional.items()}
    features = None if prepared.features is None else prepared.features.take(np.flatnonzero(kept))
    items = np.asarray(prepared.items)[kept]
    return Prepared(items, offsets, prepared.num_items, order=prepared.order, features=features, **chosen)


def _finding(before: Split, split: Split, cold: np.ndarray) -> Finding:
    """What the cold split cost, as a line of the audit."""
    tested, left = len(split.test), before.prepared.num_events - split.prepared.num_events
    unseen = int(((split.train.item_counts() == 0) & ~cold)[1:].sum())
    targets = np.unique(split.prepared.items[split.test.target_start])
    text = (
        f"{int(cold.sum()):,} items are held out of training; {tested:,} users are tested on {len(targets):,} of them; "
        f"{left:,} events that are cold or come behind a test target are left out; {unseen:,} further items are unseen "
        "in training"
    )
    numbers: dict[str, float] = {
        "items": int(cold.sum()),
        "users": tested,
        "targets": len(targets),
        "events": left,
        "unseen": unseen,
    }
    return Finding("held-out items", "note" if unseen > cold.sum() else "ok", text, numbers)
