"""Which events a model learned from: what tells a run from another one, and training events from held-out ones.

Two splits of one data set may have the same name, sizes and protocol and still train on other events (a learning curve,
an own splitter). A cut is decided by the events themselves, by the ids behind their rows and by where training and
validation end for each user.

Legend: U users.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.data.prepared import blocks, spread

if TYPE_CHECKING:
    from recsys.data.split import HeldOut, Split


@dataclass(frozen=True)
class Cut:
    """Training and validation of one split, as hashes and, where they are at hand, the ends of training."""

    events: str  # of all events as they lie: user row, item row, time, weight
    catalogue: str  # of the raw item ids in row order
    users: str  # of the raw user ids in row order
    digest: str  # of all these and of where training and validation end
    newest: int | None = None  # time of the latest training event, milliseconds; None without times
    stops: np.ndarray | None = field(default=None, compare=False, repr=False)  # (U,) int64: ``split.train_stop``

    @classmethod
    def of(cls, split: Split) -> Cut:
        """The cut of a split; reads every event once."""
        names = (split.items, split.users)
        catalogue, users = ("" if one is None else one.digest for one in names)
        found = hashlib.blake2b(digest_size=16)
        found.update(f"{split.prepared.fingerprint} {catalogue} {users} ".encode())
        for stops in (split.train_stop, split.valid_stop):
            found.update(np.ascontiguousarray(stops, dtype=np.int64).data)
        return cls(split.prepared.fingerprint, catalogue, users, found.hexdigest(), _newest(split), split.train_stop)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ends of training, as JSON."""
        return {name: getattr(self, name) for name in ("events", "catalogue", "users", "digest", "newest")}

    @classmethod
    def from_dict(cls, values: dict[str, Any], stops: np.ndarray | None = None) -> Cut:
        """The cut that :meth:`to_dict` described, with the ends of training if they were kept."""
        known = {name: values[name] for name in ("events", "catalogue", "users", "digest", "newest")}
        return cls(**known, stops=stops)


def trained_targets(trained: Cut, part: HeldOut) -> int | None:
    """How many target events of ``part`` a model that learned from ``trained`` has seen; None if it cannot be told.

    It can be told where both are cut from the same events, and where all targets are later than all training events.
    """
    if part.split is None:
        return None
    own = part.split.cut
    same = (own.events, own.catalogue, own.users) == (trained.events, trained.catalogue, trained.users)
    if own.digest == trained.digest:
        return 0
    if same and trained.stops is not None:
        seen = np.minimum(part.target_stop, trained.stops[part.users]) - part.target_start
        return int(np.maximum(seen, 0).sum())
    times = part.prepared.times
    if times is not None and trained.newest is not None and len(part):
        _, targets = spread(part.target_start, part.target_stop)
        if int(times[targets].min()) > trained.newest:
            return 0
    return None


def _newest(split: Split) -> int | None:
    times, training = split.prepared.times, split.train
    if times is None or not training.num_events:
        return None
    return max(
        int(times[spread(training.start[users], training.stop[users])[1]].max())
        for users in blocks(training.lengths)
        if training.lengths[users].any()
    )
