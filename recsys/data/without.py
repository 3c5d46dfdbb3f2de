"""A split without some users or items: as if their events had never been in the data.

Legend: U users, E events, N items (rows 1..N).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recsys.data.audit import audit
from recsys.data.prepared import Prepared
from recsys.data.split import Split
from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary


def without_users(split: Split, users: np.ndarray) -> Split:
    """The split without the user rows ``users``: their events, ids, features and requests are gone.

    Items keep their rows, also those that nobody else took. Raises DataError where nobody is left.
    """
    kept = np.ones(split.num_users, bool)
    kept[np.asarray(users, np.int64)] = False
    if not kept.any():
        raise DataError(f"all {split.num_users:,} users are taken out: nobody is left")
    return _cut(split, np.repeat(kept, np.diff(split.prepared.offsets)), kept)


def without_items(split: Split, items: np.ndarray) -> Split:
    """The split without the events of the item rows ``items``, which stay in the catalogue.

    A user whose test or validation target was one of them has none of it any more.
    """
    gone = np.zeros(split.num_items + 1, bool)
    gone[np.asarray(items, np.int64)] = True
    return _cut(split, ~gone[np.asarray(split.prepared.items)], np.ones(split.num_users, bool))


def _cut(split: Split, kept: np.ndarray, people: np.ndarray) -> Split:
    """The split of the events that are ``kept`` (E,), with the user rows ``people`` (U,) bool."""
    prepared = split.prepared
    if not kept.any():
        raise DataError("no event is left")
    ends = np.append(0, np.cumsum(kept))
    chosen = np.flatnonzero(people)
    offsets = np.append(ends[prepared.offsets[:-1]][chosen], ends[-1])
    arrays = {name: getattr(prepared, name) for name in ("times", "weights", "parts", "nanoseconds")}
    cut = Prepared(
        np.asarray(prepared.items)[kept],
        offsets,
        prepared.num_items,
        order=prepared.order,
        features=None if prepared.features is None else prepared.features.take(np.flatnonzero(kept)),
        **{name: None if value is None else np.asarray(value)[kept] for name, value in arrays.items()},
    )
    stops = [ends[stop][chosen] for stop in (split.train_stop, split.valid_stop)]
    requests = {}
    for name, features in (split.requests or {}).items():
        part = split.valid if name == "valid" else split.test
        still = people[part.users] & (ends[part.target_stop] > ends[part.target_start])
        requests[name] = features.take(np.flatnonzero(still))
    made = replace(
        split,
        prepared=cut,
        train_stop=stops[0],
        valid_stop=stops[1],
        users=Vocabulary(split.users.ids[people], first=0),
        data_hash="",
        user_features=None if split.user_features is None else split.user_features.take(chosen),
        requests=requests or None,
        audit=None,
    )
    return made if split.audit is None else replace(made, audit=audit(made))
