"""Identity of what a model was trained on: hashes of the events and of where training and validation end.

Two splits of one data set may have the same name, sizes and protocol and still train on other events (a learning curve,
a splitter of your own). A cut is decided by the events themselves, by the ids behind their rows and by where training
and validation end for each user.

Legend: U users.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys.data.prepared import Prepared
from recsys.ids.ranges import blocks, spread
from recsys.ids.vocabulary import Vocabulary


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
    def of(
        cls,
        prepared: Prepared,
        train_stop: np.ndarray,
        valid_stop: np.ndarray,
        items: Vocabulary | None,
        users: Vocabulary | None,
    ) -> Cut:
        """The cut of ``prepared`` at the ends of training and validation (U,); reads every event once."""
        catalogue, people = ("" if one is None else one.digest for one in (items, users))
        found = hashlib.blake2b(digest_size=16)
        found.update(f"{prepared.fingerprint} {catalogue} {people} ".encode())
        for stops in (train_stop, valid_stop):
            found.update(np.ascontiguousarray(stops, dtype=np.int64).data)
        newest = _newest(prepared, train_stop)
        return cls(prepared.fingerprint, catalogue, people, found.hexdigest(), newest, train_stop)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ends of training, as JSON."""
        return {name: getattr(self, name) for name in ("events", "catalogue", "users", "digest", "newest")}

    @classmethod
    def from_dict(cls, values: dict[str, Any], stops: np.ndarray | None = None) -> Cut:
        """The cut that :meth:`to_dict` described, with the ends of training if they were kept."""
        known = {name: values[name] for name in ("events", "catalogue", "users", "digest", "newest")}
        return cls(**known, stops=stops)


def _newest(prepared: Prepared, train_stop: np.ndarray) -> int | None:
    times, start = prepared.times, prepared.offsets[:-1]
    lengths = train_stop - start
    if times is None or not lengths.any():
        return None
    return max(
        int(times[spread(start[users], train_stop[users])[1]].max())
        for users in blocks(lengths)
        if lengths[users].any()
    )
