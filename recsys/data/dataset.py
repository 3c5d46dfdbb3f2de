"""From raw files to prepared arrays: scan, clean, prepare, split.

A :class:`Dataset` is a description; nothing is read before :meth:`Dataset.prepare` (or :meth:`Dataset.split`), which
reads the files once, cleans, sorts, and keeps the result in a cache folder if one is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recsys.data.clean import CleaningReport, Plan, apply, drop_missing, note_repeats
from recsys.data.prepared import Prepared
from recsys.errors import DataError, DataWarning
from recsys.features.features import Features, Texts
from recsys.features.tables import ItemFile, align_features, read_items, read_users
from recsys.features.typed import features_of, notes_of
from recsys.ids.vocabulary import Vocabulary
from recsys.progress import saying
from recsys.readers.events import TIES, Events, compress, take_ids
from recsys.readers.formats import TextOptions
from recsys.readers.log import Source
from recsys.readers.times import DAY
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import reading

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.data.splitters import Splitter

KIND = "recsys.dataset"
FORMAT = 2  # of a folder in the cache
_HASHED = 1  # of what the hash of data is taken; another number parts runs and reports from all earlier ones
ORDERS = ("time", "day", "file", "none")


class Loaded(NamedTuple):
    """A prepared data set: arrays, the ids behind their rows, columns of items and users, and what cleaning did."""

    prepared: Prepared
    items: Vocabulary
    users: Vocabulary
    item_text: Mapping[str, np.ndarray] | None  # the columns of items written out
    report: CleaningReport
    item_features: Features | None = None  # by item row, row 0 for padding
    user_features: Features | None = None  # by user row


@dataclass(frozen=True)
class Dataset:
    """Interactions on disk, with what is to be done to them. Made by :meth:`scan`; every verb returns a new one."""

    source: Source
    name: str
    order: str | None = None
    ties: str = "file"
    item_file: ItemFile | None = None
    expected: Mapping[str, int] | None = None
    plans: tuple[Plan, ...] = ()
    user_file: ItemFile | None = None
    _memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def scan(
        cls,
        path: Any = None,
        *,
        user: str | int | None = None,
        item: str | int | None = None,
        time: str | int | None = None,
        rating: str | int | None = None,
        weight: str | int | None = None,
        format: str = "auto",
        separator: str | None = None,
        header: bool = True,
        quote: str | None = '"',
        ids: str = "auto",
        time_unit: str | None = None,
        time_format: str | None = None,
        order: str | None = None,
        ties: str = "file",
        splits: Mapping[str, Any] | None = None,
        items: Any = None,
        users: Any = None,
        event_columns: Mapping[str, str] | None = None,
        list_separator: str | None = None,
        name: str | None = None,
        expected: Mapping[str, int] | None = None,
    ) -> Dataset:
        """A data set in CSV, Parquet, NDJSON, MovieLens, RecBole, pair or sequence files, or in tables in memory; only
        paths are checked now. Ids and names of columns are read without the blanks around them.

        Args:
            path: a file, a glob, or several; read in this order. ``.gz`` is looked through. Or a frame of Polars (lazy
                or not) or pandas, or any table with the Arrow interface.
            user: column name, or position from 0. Default: ``user``, or what the format calls it; so for ``item``.
            time: epoch numbers, dates or strings. Default: none, the rows are in order (MovieLens and atomic files:
                their time column).
            rating: read only for ``clean(min_rating=)``.
            weight: kept as the weight of each event.
            format: ``csv``, ``parquet``, ``ndjson``, ``movielens``, ``atomic``, ``pairs`` (a line per ``user item``),
                ``sequences`` (a line per ``user item item ...``), ``json-sequences`` ({user: [items]}), or ``auto``,
                by extension.
            separator: of a text table; found and verified by default.
            header: whether a text table has one; without, columns are given by position.
            quote: character around fields of a text table, ``""`` for none.
            ids: text ids are ints if all of a column are plain integers, else strings; ``"int"`` or ``"str"`` insist.
            time_unit: ``s``, ``ms``, ``us``, ``ns``, ``minutes``, ``hours`` or ``days``; default: by magnitude.
            time_format: strptime codes of time strings that are not ISO. All digits of a time count in sorting.
            order: what the order of a user's events rests on: ``time``, ``day`` (as ``time``, arbitrary within a day),
                ``file`` (as the rows come) or ``none``. Default: by the time column, without one ``file``.
            ties: events of one user at the same time stay in ``file`` order, or go by a ``hash`` of user and item.
            splits: instead of ``path``, one path or frame per part ``train``, ``valid``, ``test`` of data that come
                split.
            items: item table, a path, a frame or :func:`~recsys.features.tables.read_items`.
            users: likewise a table of users, or :func:`~recsys.features.tables.read_users`.
            event_columns: further columns that are kept with the events, each with its kind: ``category``, ``number``
                or ``list`` (several categories), such as ``{"device": "category", "dwell": "number"}``.
            list_separator: between the values of a list that is written as text; "|" by default.
            name: shown with every number; default: the file's.
            expected: users, items and events the files should hold; the audit compares.

        Raises:
            DataError: a file is missing.
            ValueError: an argument is none of its choices.
        """
        if order is not None and order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, found {order!r}")
        if ties not in TIES:
            raise ValueError(f"ties must be one of {', '.join(TIES)}, found {ties!r}")
        given = {"user": user, "item": item, "time": time, "rating": rating, "weight": weight}
        source = Source.find(
            path,
            splits,
            columns={role: column for role, column in given.items() if column is not None},
            format=format,
            text=TextOptions(separator, header, quote),
            ids=ids,
            time_unit=time_unit,
            time_format=time_format,
            features=dict(event_columns or {}),
            list_separator=list_separator,
        )
        item_file = items if items is None or isinstance(items, ItemFile) else read_items(items)
        if name is None:
            first = source.files[0]
            stem = first.name.removesuffix(".gz")
            folder = first.absolute().parent.name if splits and isinstance(first, Path) else ""
            name = folder or stem.rpartition(".")[0] or stem
        user_file = users if users is None or isinstance(users, ItemFile) else read_users(users)
        for given_as, file, owner in (("items", item_file, "item"), ("users", user_file, "user")):
            if file is not None and file.owner != owner:
                raise ValueError(f"{given_as}= got a table of {file.owner}s: make it with read_{given_as}")
        return cls(source, name, order, ties, item_file, expected, user_file=user_file)

    def __repr__(self) -> str:
        files = ", ".join(path.name for path in self.source.files[:3])
        more = len(self.source.files) - 3
        files += f" and {more} more" if more > 0 else ""
        columns = "".join(f", {role}={column!r}" for role, column in self.source.columns.items())
        tables = (("items", self.item_file), ("users", self.user_file))
        items = "".join(f", {what}={file.path.name!r}" for what, file in tables if file)
        cleaned = f", cleaned {len(self.plans)} x" if len(self.plans) > 1 else ", cleaned" if self.plans else ""
        return f"Dataset({self.name}: {files}{columns}{items}{cleaned})"

    def clean(
        self,
        drop_missing: bool = True,
        duplicates: str | Sequence[str] = "all",
        min_rating: float | None = None,
        min_user: int = 0,
        min_item: int = 0,
        max_history: int | None = None,
        max_user: int | None = None,
        missing_times: Sequence[float | str] = (),
    ) -> Dataset:
        """The data set with cleaning to be done: missing, duplicates, rating, longest users, k-core, history.

        Args:
            drop_missing: drop (and count) events with an empty user, item or time; otherwise they are an error.
            duplicates: of a repeated (user, item) keep ``"first"``, ``"last"`` (in time) or ``"all"``. ``"exact"``
                drops rows that were logged twice, with the same user, item and time (all digits), and keeps genuine
                repeats; rating and weight may differ, the first row stays. Without times such a row comes right after
                the other (where rows have no order, anywhere). Of data that come split the row of the latest part
                stays. A list does several in turn, and counts each.
            min_rating: drop events rated lower, or not at all.
            min_user: events that each user must have; with ``min_item`` an iterative k-core.
            min_item: events that each item must have.
            max_history: keep so many of each user's newest events.
            max_user: drop users with more events than that, such as bots, whole.
            missing_times: times that stand for "not known", such as ``(0, -1)`` in the unit of the source (of dates: in
                seconds), or ISO text: these events count as missing. Such times are only told of by default.

        Raises:
            ValueError: an argument is none of its choices.
        """
        once = duplicates if isinstance(duplicates, str) else tuple(duplicates)
        plan = Plan(drop_missing, once, min_rating, min_user, min_item, max_history, max_user, missing_times)
        return replace(self, plans=(*self.plans, plan), _memory={})

    @property
    def report(self) -> CleaningReport:
        """Rows, users and items in and out of each operation; reads the data if that has not happened yet."""
        return self.prepare().report

    @property
    def data_hash(self) -> str:
        """Hash of the files' bytes (of frames: of the columns that are read) and of all that is done to them.

        Kinds of columns, the table of users and further columns of events do not change it: the events are the same,
        and models with and without features can be compared.
        """
        if "hash" not in self._memory:
            items = self.item_file
            with saying(f"hashing {self.source.files[0].name}", enabled=_speaks()):
                hashes = self.source.hashes(), None if items is None else [items.hashes(), items.describe()]
            key = {
                "format": _HASHED,
                "files": hashes[0],
                "source": self.source.describe(),
                "items": hashes[1],
                "order": [self.order, self.ties],
                "plans": [plan.describe() for plan in self.plans],
            }
            text = json.dumps(key, sort_keys=True, default=str)
            self._memory["hash"] = hashlib.sha256(text.encode()).hexdigest()
        return str(self._memory["hash"])

    @property
    def _folder_name(self) -> str:
        """What the folder in the cache is called: by ``data_hash``, and by what else comes out of it again."""
        tables = [one for one in (self.item_file, self.user_file) if one is not None]
        typed = [[one.owner, one.kinds, one.list_separator] for one in tables if one.kinds or one.list_separator]
        users = self.user_file
        people = None if users is None else [users.hashes(), users.describe()]
        if not typed and people is None and not self.source.features:
            return self.data_hash[:24]
        key = json.dumps([self.data_hash, typed, people, self.source.feature_hashes()], sort_keys=True, default=str)
        return hashlib.sha256(key.encode()).hexdigest()[:24]

    def prepare(self, cache: str | Path | None = None) -> Loaded:
        """Read, clean and sort, or open what an earlier call with the same files and settings left in ``cache``.

        Args:
            cache: folder for prepared arrays, one subfolder per data and settings, memory-mapped when opened. None
                keeps the arrays in memory only.

        Raises:
            DataError: the files cannot be used as they are; the message says what to do.
        """
        folder = None if cache is None else Path(cache).absolute() / self._folder_name
        if "loaded" not in self._memory or folder not in (None, self._memory["folder"]):
            self._memory["loaded"] = self._build() if folder is None else self._cached(folder)
            self._memory["folder"] = folder
        loaded: Loaded = self._memory["loaded"]
        return loaded

    def split(self, splitter: Splitter | None = None, audit: bool = True, cache: str | Path | None = None) -> Split:
        """Training, validation and test; prints what cleaning did and the audit.

        Args:
            splitter: ``LeaveLast()``, ``Given()`` or ``GlobalTime()``, the default.
            audit: check for leaks, ties and cold users and items, and print the findings.
            cache: as for :meth:`prepare`.

        Raises:
            TypeError: ``splitter`` is not a splitter, such as the name of one.
            LeakageError: training could see what is to be predicted.
            DataError: the data lack what the splitter needs.
        """
        from recsys.data.audit import audit as find_leaks
        from recsys.data.split import Split
        from recsys.data.splitters import GlobalTime, require_splitter

        splitter = GlobalTime(0.1, 0.1) if splitter is None else splitter
        require_splitter(splitter)
        loaded = self.prepare(cache)
        with saying(f"splitting {self.name}", enabled=_speaks()):
            train_stop, valid_stop = splitter.apply(loaded.prepared)
            protocol = splitter.protocol(loaded.prepared)
        split = Split(
            prepared=loaded.prepared,
            train_stop=train_stop,
            valid_stop=valid_stop,
            items=loaded.items,
            users=loaded.users,
            protocol=protocol,
            data_hash=self.data_hash,
            name=self.name,
            item_text=loaded.item_text,
            audit=None,
            item_features=loaded.item_features,
            user_features=loaded.user_features,
        )
        if not audit:
            return split
        if _speaks():
            print(loaded.report)
        read = loaded.report.steps[0]
        counts = {"users": read.users_out, "items": read.items_out, "interactions": read.rows_out}
        expected = {"interactions" if key == "events" else key: value for key, value in (self.expected or {}).items()}
        with saying(f"auditing the split of {self.name}", enabled=_speaks()):
            found = find_leaks(split, expected or None, counts)
        if _speaks():
            print(found)
        return replace(split, audit=found)

    def _build(self) -> Loaded:
        files = self.source.files
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        with saying(f"reading {files[0].name}{more}", enabled=_speaks()) as now:
            return self._read(now)

    def _read(self, now: Callable[[str], None]) -> Loaded:
        allowed = any(plan.drop_missing for plan in self.plans)
        unset = [value for plan in self.plans for value in plan.missing_times]
        events, remarks = self.source.read(allowed, unset)
        report = CleaningReport()
        now(f"cleaning and sorting {len(events):,} events")
        report.add("read", events.counts(), events.counts())
        events = drop_missing(events, allowed, report)
        order, noted = self._order(events)
        events = events.sorted(by_time=order in ("time", "day"), ties=self.ties)
        note_repeats(self.plans, events, order, report)
        for plan in self.plans:
            events = apply(plan, events, report, order)
        report.notes = remarks + noted + report.notes
        now(f"laying out {len(events):,} events")
        features = self._event_features(events)
        if features is not None:
            report.notes += notes_of(features, "event", {})
        prepared, items, users = _finish(events, order, features)
        found: list[Features | None] = []
        for file, rows in ((self.item_file, items), (self.user_file, users)):
            found.append(None)
            if file is not None:
                now(f"reading the {file.owner} table {file.path.name}")
                found[-1], missing = align_features(file, rows)
                report.notes += missing
        return _loaded(prepared, items, users, report, *found)

    def _event_features(self, events: Events) -> Features | None:
        """The further columns of the events that are left, in their order."""
        if events.columns is None or events.row is None:
            return None
        kept = events.columns[events.row]
        where = self.source.files[0].name
        return features_of(kept, self.source.features, where, self.source.list_separator)

    def _order(self, events: Events) -> tuple[str, list[str]]:
        if events.time is None:
            return self.order or "file", []
        days = events.nanoseconds is None and not np.any(events.time % DAY)
        if self.order is None:
            return ("day", ["all times are whole days: the order within a day is arbitrary"]) if days else ("time", [])
        if self.order == "time" and days and len(events) > 1:
            return "time", ["order='time', but all times are whole days: ties are frequent, order='day' says so"]
        return self.order, []

    def _cached(self, folder: Path) -> Loaded:
        if folder.exists():
            try:
                return _load(folder, self.item_file is not None)
            except (DataError, OSError) as error:
                warnings.warn(
                    f"the cached data cannot be used and are prepared again: {error}", DataWarning, stacklevel=3
                )
                shutil.rmtree(folder, ignore_errors=True)
        loaded = self._build()
        mine = folder.with_name(f"{folder.name}.{os.getpid()}")  # so that processes preparing the same do not meet
        try:
            with saying(f"writing the prepared data to {folder}", enabled=_speaks()):
                write_folder(mine, KIND, FORMAT, lambda partial: _save(loaded, partial))
            with suppress(OSError):  # another process was faster: its folder holds the same
                os.replace(mine, folder)
            shutil.rmtree(mine, ignore_errors=True)
            return _load(folder)
        except (DataError, OSError) as error:
            shutil.rmtree(mine, ignore_errors=True)
            warnings.warn(
                f"the prepared data stay in memory, the cache was not written: {error}", DataWarning, stacklevel=3
            )
            return loaded


def _loaded(
    prepared: Prepared,
    items: Vocabulary,
    users: Vocabulary,
    report: CleaningReport,
    item_features: Features | None,
    user_features: Features | None,
) -> Loaded:
    text = None if item_features is None else Texts(item_features)
    return Loaded(prepared, items, users, text, report, item_features, user_features)


def _finish(events: Events, order: str, features: Features | None = None) -> tuple[Prepared, Vocabulary, Vocabulary]:
    users, user_rows = compress(events.user, len(events.user_ids))
    items, item_rows = compress(events.item, len(events.item_ids))
    offsets = np.zeros(len(users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user_rows, minlength=len(users)), out=offsets[1:])
    prepared = Prepared(
        items=item_rows + np.int32(1),
        offsets=offsets,
        num_items=len(items),
        times=events.time,
        weights=events.weight,
        parts=events.part,
        order=order,
        nanoseconds=events.nanoseconds,
        features=features,
    )
    item_ids = Vocabulary(take_ids(events.item_ids, items), first=1)
    return prepared, item_ids, Vocabulary(take_ids(events.user_ids, users), first=0)


def _speaks() -> bool:
    """Of several training processes one speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _save(loaded: Loaded, folder: Path) -> dict[str, Any]:
    loaded.prepared.save(folder / "prepared")
    loaded.items.save(folder, "items")
    loaded.users.save(folder, "users")
    for name, features in (("item-features", loaded.item_features), ("user-features", loaded.user_features)):
        if features is not None:
            features.save(folder, name)
    return {"item_text": list(loaded.item_features or ()), "report": loaded.report.to_dict()}


def _load(folder: Path, typed: bool = False) -> Loaded:
    """What :func:`_save` wrote; ``typed``: with columns of items, which caches of earlier versions lack."""
    manifest = read_manifest(folder, KIND, FORMAT)  # the raw files were hashed too, and are larger
    remedy = "prepare the data again"
    with reading(folder, remedy):
        item_features = Features.load(folder, "item-features", remedy)
        if typed and item_features is None:
            raise DataError("an earlier version prepared them, without the kinds of the columns of items")
        return _loaded(
            Prepared.load(folder / "prepared"),
            Vocabulary.load(folder, "items"),
            Vocabulary.load(folder, "users"),
            CleaningReport.from_dict(manifest["report"]),
            item_features,
            Features.load(folder, "user-features", remedy),
        )
