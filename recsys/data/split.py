"""What may be learned from and what is held out: leave-last, global time, or a split that came with the data.

Legend: U users, E events, N items (rows 1..N), n held-out users, B users of a batch, L longest history of a batch.
A split is two numbers per user: of the events of user u, sorted oldest first, training ends at ``train_stop[u]`` and
validation at ``valid_stop[u]``; the rest is test. Nothing is copied, so the events may lie in a memory-mapped file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.data.batch import Batch
from recsys.data.cut import Cut
from recsys.data.findings import Audit
from recsys.data.gather import available, check_needs, gather
from recsys.data.prepared import Prepared
from recsys.data.splitters import Splitter
from recsys.errors import DataError
from recsys.features.column import Column
from recsys.features.features import Features, Texts
from recsys.ids.ranges import blocks, spread
from recsys.ids.vocabulary import Vocabulary
from recsys.storage.arrays import read_array, write_array
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import read_json, reading

if TYPE_CHECKING:
    from recsys.data.findings import Audit
    from recsys.ids.vocabulary import Vocabulary

KIND = "recsys.split"
FORMAT = 1
PREPARED = "prepared"  # the folder of the events, with a manifest of its own
CHECKED = 1 << 22  # events checked at a time


class TrainingEvents:
    """The training events of every user, and no way to the others: each access is checked against the user's range.

    ``start`` and ``stop`` (U,) are the event indices between which user u's training history lies. The raw arrays
    are private, because for a split that copies nothing they also hold the events that follow.
    """

    def __init__(
        self, prepared: Prepared, start: np.ndarray, stop: np.ndarray, user_features: Features | None = None
    ) -> None:
        self._prepared = prepared
        self.user_features = user_features
        self.start = _frozen(start)
        self.stop = _frozen(stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingEvents:
        return self  # nothing in it changes, and a copy of a part that looks things up in it need not hold the data

    @property
    def num_items(self) -> int:
        """Size of the catalogue, items that only occur in held-out events included."""
        return self._prepared.num_items

    @property
    def num_users(self) -> int:
        """Number of user rows, users without training events included."""
        return len(self.start)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(U,) int64: training events per user."""
        return _frozen(self.stop - self.start)

    @property
    def num_events(self) -> int:
        """Number of training events."""
        return int(self.lengths.sum())

    @property
    def fields(self) -> frozenset[str]:
        """The optional batch fields these data can give: "events", "times" and "query_time", "weights", and columns
        of events and users as "features.NAME" and "user_features.NAME"."""
        return available(self._prepared, self.user_features)

    def check_needs(self, needs: frozenset[str]) -> None:
        """Raise DataError if a batch of these data cannot carry the optional fields that ``needs`` names."""
        check_needs(self._prepared, needs, self.user_features)

    @property
    def kinds(self) -> dict[str, str]:
        """Name -> kind of the columns of events that these data have."""
        return {} if self._prepared.features is None else self._prepared.features.kinds

    def column(self, name: str, users: np.ndarray | slice = slice(None)) -> Column:
        """A column of the training events of some user rows, flat, as :meth:`events` lays them out.

        Raises:
            DataError: there is no such column.
        """
        features = self._prepared.features
        if features is None:
            raise DataError(f"these data keep no column {name!r} of events: scan them with event_columns=")
        return features[name].take(spread(self.start[users], self.stop[users])[1])

    def item_counts(self) -> np.ndarray:
        """(N+1,) int64: how often each item row occurs in training; entry 0 is 0."""
        return self._counts

    def history(self, user: int) -> np.ndarray:
        """(n,) int32: the training items of one user row, oldest first."""
        return _frozen(self._prepared.items[self.start[user] : self.stop[user]])

    def events(self, users: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Training events of some user rows, flat: (position within ``users``, item row, time or None), (n,) each."""
        owner, index = spread(self.start[users], self.stop[users])
        times = self._prepared.times
        return owner, self._prepared.items[index], None if times is None else times[index]

    def gather(
        self,
        users: np.ndarray,
        length: int | None = None,
        *,
        start: np.ndarray | None = None,
        stop: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        needs: frozenset[str] = frozenset(),
    ) -> Batch:
        """A batch of training events [start, stop) of ``users`` (B,): their whole histories unless given, and of
        these the last ``length``. Weights are carried whenever the data have them; ``query_time`` is the time of each
        row's last event, the last one predicted from the row, and ``events`` that event (-1: no events).

        Raises:
            IndexError: a range reaches outside its user's training events.
        """
        users = np.asarray(users, dtype=np.int64)
        first, end = self.start[users], self.stop[users]
        start = first if start is None else np.asarray(start, dtype=np.int64)
        stop = end if stop is None else np.asarray(stop, dtype=np.int64)
        outside = (start < first) | (stop > end) | (start > stop)
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            raise IndexError(
                f"events {start[at]}..{stop[at]} are not training events of user row {users[at]}, whose training "
                f"events are {first[at]}..{end[at]}"
            )
        start = start if length is None else np.maximum(start, stop - length)
        needs = needs | {"weights"} if self._prepared.weights is not None else needs
        asked = np.where(stop > start, stop - 1, -1)
        return gather(
            self._prepared, users if rows is None else rows, users, start, stop, asked, needs, self.user_features
        )

    @cached_property
    def _counts(self) -> np.ndarray:
        counts = np.zeros(self.num_items + 1, dtype=np.int64)
        for users in blocks(self.lengths):
            counts += np.bincount(self.events(users)[1], minlength=self.num_items + 1)
        return _frozen(counts)


@dataclass(frozen=True)
class HeldOut:
    """Users to be ranked for: what each has seen, and what is to be found.

    For ``users[i]`` the history is events [history_start[i], target_start[i]), the targets are
    [target_start[i], target_stop[i]). A user with an empty history is kept.
    """

    name: str  # "valid" or "test"
    users: np.ndarray  # (n,) int64 user rows
    history_start: np.ndarray  # (n,) int64
    target_start: np.ndarray  # (n,) int64
    target_stop: np.ndarray  # (n,) int64
    prepared: Prepared
    protocol: dict[str, Any]
    item_counts: np.ndarray  # (N+1,) int64 training popularity
    data_hash: str = ""
    split: Split | None = field(default=None, compare=False, repr=False)  # whose part this is: its ids and its cut
    requests: Features | None = None  # what comes with each request besides the history, one row per user of the part

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.prepared.num_items

    @property
    def history_lengths(self) -> np.ndarray:
        """(n,) int64: events each user has seen before the first target."""
        return self.target_start - self.history_start

    @property
    def query_time(self) -> np.ndarray | None:
        """(n,) int64: when each user is asked, the time of the first target; None without times."""
        return None if self.prepared.times is None else self.prepared.times[self.target_start]

    def subset(self, index: np.ndarray) -> HeldOut:
        """The same task for the users at ``index`` (positions, or a mask)."""
        names = ("users", "history_start", "target_start", "target_stop")
        requests = self.requests and self.requests.take(np.arange(len(self))[index])
        return replace(self, requests=requests, **{name: getattr(self, name)[index] for name in names})

    def batch(self, index: np.ndarray, max_length: int | None = None, needs: frozenset[str] = frozenset()) -> Batch:
        """The last ``max_length`` events of the histories of users ``index`` (B,), all events if None.

        Raises:
            DataError: ``needs`` names a field that these data do not have.
        """
        people = None if self.split is None else self.split.user_features
        check_needs(self.prepared, needs, people)
        index = np.asarray(index, dtype=np.int64)
        stop = self.target_start[index]
        start = self.history_start[index]
        start = start if max_length is None else np.maximum(start, stop - max_length)
        return gather(self.prepared, index, self.users[index], start, stop, stop, needs, people)

    def history(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The full histories of users ``index``, flat: (position within ``index``, item row), (pairs,) int64 each."""
        owner, events = spread(self.history_start[index], self.target_start[index])
        return owner, self.prepared.items[events].astype(np.int64)

    def targets(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct targets of users ``index``, flat: (position within ``index``, item row), (pairs,) int64 each."""
        owner, events = spread(self.target_start[index], self.target_stop[index])
        key = np.unique(owner * (self.num_items + 1) + self.prepared.items[events])
        return key // (self.num_items + 1), key % (self.num_items + 1)

    def seen_by(self, trained: Cut) -> int | None:
        """How many target events a model that learned from ``trained`` has seen; None if it cannot be told.

        It can be told where both are cut from the same events, and where all targets are later than all training
        events.
        """
        if self.split is None:
            return None
        own = self.split.cut
        same = (own.events, own.catalogue, own.users) == (trained.events, trained.catalogue, trained.users)
        if own.digest == trained.digest:
            return 0
        if same and trained.stops is not None:
            seen = np.minimum(self.target_stop, trained.stops[self.users]) - self.target_start
            return int(np.maximum(seen, 0).sum())
        times = self.prepared.times
        if times is not None and trained.newest is not None and len(self):
            _, targets = spread(self.target_start, self.target_stop)
            if int(times[targets].min()) > trained.newest:
                return 0
        return None

    def check(self) -> None:
        """Raise DataError unless every user's history and targets are events of that user, in this order, and every
        event is of an item of the catalogue: a damaged file or an own splitter may say otherwise."""
        _ = self._checked

    @cached_property
    def _checked(self) -> bool:
        if len(self.item_counts) != self.num_items + 1:
            raise DataError(
                f"the part {self.name!r} counts {len(self.item_counts) - 1:,} items, its events are over "
                f"{self.num_items:,}: split the data again"
            )
        users, offsets = np.asarray(self.users), self.prepared.offsets
        known = (users >= 0) & (users < self.prepared.num_users)
        user = np.where(known, users, 0)
        edges = (offsets[user], self.history_start, self.target_start, self.target_stop, offsets[user + 1])
        sound = known & np.logical_and.reduce([before <= after for before, after in pairwise(edges)])
        if not sound.all():
            at = int(np.flatnonzero(~sound)[0])
            found = f"{self.history_start[at]}..{self.target_start[at]}..{self.target_stop[at]}"
            own = f"{edges[0][at]}..{edges[-1][at]}" if known[at] else "none"
            raise DataError(
                f"the part {self.name!r} is damaged: events {found} are history and targets of user row {users[at]}, "
                f"whose events are {own} ({np.count_nonzero(~sound):,} such users): split the data again"
            )
        for start in range(0, self.prepared.num_events, CHECKED):
            items = self.prepared.items[start : start + CHECKED]
            if items.min() < 1 or items.max() > self.num_items:
                raise DataError(
                    f"the events of the part {self.name!r} are damaged: item rows lie in 1..{self.num_items}, found "
                    f"{items.min()}..{items.max()}: split the data again"
                )
        return True


@dataclass(frozen=True)
class Split:
    """Training, validation and test of one data set, with the vocabularies that give rows their raw ids."""

    prepared: Prepared
    train_stop: np.ndarray  # (U,) int64
    valid_stop: np.ndarray  # (U,) int64
    items: Vocabulary
    users: Vocabulary
    protocol: dict[str, Any]  # JSON: how the split was made; printed with every number
    data_hash: str = ""
    name: str = ""
    item_text: Mapping[str, np.ndarray] | None = None  # column -> object array aligned with item rows, entry 0 is ""
    audit: Audit | None = None
    item_features: Features | None = None  # typed columns by item row, row 0 for padding
    user_features: Features | None = None  # typed columns by user row
    requests: Mapping[str, Features] | None = None  # "valid", "test" -> what comes with each request of that part

    def __post_init__(self) -> None:
        sizes = {"item_features": self.num_items + 1, "user_features": self.num_users}
        for name, rows in sizes.items():
            features = getattr(self, name)
            if features is not None and features.rows != rows:
                raise DataError(f"{name} has {features.rows:,} rows, and {rows:,} are expected")
        if self.item_text is None and self.item_features is not None:
            object.__setattr__(self, "item_text", Texts(self.item_features))

    @classmethod
    def of(cls, prepared: Prepared, splitter: Splitter, items: Vocabulary, users: Vocabulary, **more: Any) -> Split:
        """Cut ``prepared`` with ``splitter``; ``more`` are the remaining fields of a split."""
        train_stop, valid_stop = splitter.apply(prepared)
        return cls(prepared, train_stop, valid_stop, items, users, splitter.protocol(prepared), **more)

    def __repr__(self) -> str:
        offsets = self.prepared.offsets
        edges = (offsets[:-1], self.train_stop, self.valid_stop, offsets[1:])
        train, valid, test = (int((stop - start).sum()) for start, stop in pairwise(edges))
        title = ", ".join(filter(None, (self.name, self.protocol.get("name"))))
        sizes = f"{self.num_users:,} users, {self.num_items:,} items"
        return f"Split({title}: {sizes}, {train:,} training, {valid:,} valid, {test:,} test events)"

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.prepared.num_items

    @property
    def num_users(self) -> int:
        """Number of user rows."""
        return self.prepared.num_users

    @cached_property
    def cut(self) -> Cut:
        """Which events train, for telling this split from others of the same data."""
        return Cut.of(self.prepared, self.train_stop, self.valid_stop, self.items, self.users)

    @cached_property
    def train(self) -> TrainingEvents:
        """The training events."""
        return TrainingEvents(self.prepared, self.prepared.offsets[:-1], self.train_stop, self.user_features)

    @cached_property
    def valid(self) -> HeldOut:
        """Users with validation events; their history is their training events."""
        return self._held_out("valid", self.train_stop, self.valid_stop)

    @cached_property
    def test(self) -> HeldOut:
        """Users with test events; their history is everything before, validation events included."""
        return self._held_out("test", self.valid_stop, self.prepared.offsets[1:])

    @property
    def texts_are_features(self) -> bool:
        """Whether ``item_text`` is ``item_features`` written out, and no table of its own."""
        return isinstance(self.item_text, Texts) and self.item_text.features is self.item_features

    def save(self, folder: str | Path) -> None:
        """Write the split to ``folder``, which is then all a training machine needs."""

        def fill(partial: Path) -> dict[str, Any]:
            self.prepared.save(partial / PREPARED)
            write_array(partial / "stops.npy", np.stack([self.train_stop, self.valid_stop]))
            self.items.save(partial, "items")
            self.users.save(partial, "users")
            for name in ("item_features", "user_features"):
                if getattr(self, name) is not None:
                    getattr(self, name).save(partial, name)
            for name, requests in (self.requests or {}).items():
                requests.save(partial, f"requests_{name}")
            if self.item_text is not None and not self.texts_are_features:
                columns = {name: [_text(value) for value in column] for name, column in self.item_text.items()}
                (partial / "item_text.json").write_text(json.dumps(columns), encoding="utf-8")
            audit = None if self.audit is None else self.audit.to_dict()
            return {"name": self.name, "data_hash": self.data_hash, "protocol": self.protocol, "audit": audit}

        write_folder(folder, KIND, FORMAT, fill, apart=(PREPARED,))

    @classmethod
    def load(cls, folder: str | Path, verify: bool = True) -> Split:
        """Open a saved split; the events stay on disk.

        Whether its parts fit together is always looked at.

        Args:
            verify: also compare every file with the hash written beside it, about a second for each gigabyte.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is of another version, or damaged.
        """
        from recsys.ids.vocabulary import Vocabulary

        folder, remedy = Path(folder), "delete it and split the data again"
        manifest = read_manifest(folder, KIND, FORMAT, verify, apart=(PREPARED,))
        prepared = Prepared.load(folder / PREPARED, verify)
        stops = read_array(folder / "stops.npy", remedy, kinds="i", ndim=2)
        items, users = Vocabulary.load(folder, "items"), Vocabulary.load(folder, "users")
        with reading(folder, remedy):
            if stops.shape != (2, prepared.num_users):
                raise ValueError(f"stops of shape {stops.shape} for {prepared.num_users:,} users")
            if (len(items), len(users)) != (prepared.num_items, prepared.num_users) or (items.first, users.first) != (
                1,
                0,
            ):
                raise ValueError("its parts differ in size")
            edges = np.stack([prepared.offsets[:-1], *stops, prepared.offsets[1:]])
            if (edges[1:] < edges[:-1]).any():
                raise ValueError("training and validation of a user end outside of the user's events")
            if not isinstance(manifest["protocol"], dict):
                raise TypeError(f"the protocol is {manifest['protocol']!r}")
            return cls(
                prepared, stops[0], stops[1], items, users,
                protocol=manifest["protocol"],
                data_hash=str(manifest["data_hash"]),
                name=str(manifest["name"]),
                item_text=_read_text(folder / "item_text.json", len(items)),
                audit=manifest["audit"] and Audit.from_dict(manifest["audit"]),
                item_features=Features.load(folder, "item_features", remedy),
                user_features=Features.load(folder, "user_features", remedy),
                requests={
                    name: found for name in ("valid", "test")
                    if (found := Features.load(folder, f"requests_{name}", remedy)) is not None
                } or None,
            )  # fmt: skip

    def _held_out(self, name: str, start: np.ndarray, stop: np.ndarray) -> HeldOut:
        users = np.flatnonzero(stop > start)
        requests = (self.requests or {}).get(name)
        if requests is not None and requests.rows != len(users):
            raise DataError(f"requests of the part {name!r} are {requests.rows:,}, and it has {len(users):,} users")
        return HeldOut(
            name=name,
            users=users,
            history_start=self.prepared.offsets[:-1][users],
            target_start=start[users],
            target_stop=stop[users],
            prepared=self.prepared,
            protocol=self.protocol,
            item_counts=self.train.item_counts(),
            data_hash=self.data_hash,
            split=self,
            requests=requests,
        )


def _text(value: Any) -> str | None:
    """A text as JSON has it; None, and NaN, stand for a missing one."""
    return None if value is None or value != value else str(value)


def _read_text(path: Path, num_items: int) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    columns = read_json(path, "delete the folder and split the data again")
    for name, column in columns.items():
        if not isinstance(column, list) or len(column) != num_items + 1:
            raise ValueError(f"{path.name} has other rows than the {num_items:,} items in {name!r}")
        if any(one is not None and not isinstance(one, str) for one in column):
            raise ValueError(f"{path.name} holds what is no text in {name!r}")
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def _frozen(array: np.ndarray) -> np.ndarray:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
