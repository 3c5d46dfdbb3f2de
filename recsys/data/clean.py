"""Cleaning of events, operation by operation, and the report of what each one took away.

Legend: E events. An operation is a mask or an index over the events of :class:`~recsys.readers.events.Events`; none
loops over users. The order within one plan is: missing, duplicates, rating, longest users, k-core, history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recsys.data.repeats import kept_text, repeated_rows
from recsys.errors import DataError
from recsys.readers.events import Events, counted_missing, refuse_missing
from recsys.readers.times import moment, moments

DUPLICATES = ("all", "exact", "first", "last")


@dataclass(frozen=True)
class Plan:
    """What to drop. The defaults drop only events without an id or, where times are read, without a time."""

    drop_missing: bool = True
    duplicates: str | Sequence[str] = "all"  # what goes of repeated events: one or several of DUPLICATES, in turn
    min_rating: float | None = None
    min_user: int = 0  # events a user must have, after all other users and items were dropped (k-core)
    min_item: int = 0  # events an item must have, in the same core
    max_history: int | None = None  # newest events kept of each user
    max_user: int | None = None  # events of a user above which all of them are dropped (a bot)
    missing_times: Sequence[float | str] = ()  # times that stand for none, as in the source or as ISO text

    def __post_init__(self) -> None:
        wrong = [name for name in self.rules if name not in DUPLICATES]
        if wrong or not self.rules:
            raise ValueError(f"duplicates must be one or some of {', '.join(DUPLICATES)}, found {self.duplicates!r}")
        for name, least in (("min_user", 0), ("min_item", 0), ("max_history", 1), ("max_user", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, found {value!r}")
        if self.max_user is not None and self.max_user < self.min_user:
            raise ValueError(
                f"no user has at least min_user={self.min_user} and at most max_user={self.max_user} events"
            )
        if isinstance(self.missing_times, str) or not isinstance(self.missing_times, Sequence):
            raise ValueError(f"missing_times must be a list of times, such as (0, -1), found {self.missing_times!r}")
        for value in self.missing_times:
            moment(value)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON, later ones where they are used only, so that a plan without them keeps its hash."""
        return {
            name: value for name, value in asdict(self).items() if value or name not in ("max_user", "missing_times")
        }

    @property
    def rules(self) -> tuple[str, ...]:
        """The choices of ``duplicates``, in turn."""
        return (self.duplicates,) if isinstance(self.duplicates, str) else tuple(self.duplicates)


@dataclass(frozen=True)
class Operation:
    """Rows, users and items before and after one operation."""

    name: str
    rows_in: int
    users_in: int
    items_in: int
    rows_out: int
    users_out: int
    items_out: int
    note: str = ""


@dataclass
class CleaningReport:
    """What was read and what each operation left; ``str()`` is a short aligned table."""

    steps: list[Operation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        rows = [("after", "events", "users", "items", "")]
        for one in self.steps:
            after = (f"{one.rows_out:,}", f"{one.users_out:,}", f"{one.items_out:,}")
            lost = one.rows_in - one.rows_out
            gone = f"-{lost:,} events" if lost else ""
            rows.append((one.name, *after, "; ".join(part for part in (gone, one.note) if part)))
        width = [max(len(row[at]) for row in rows) for at in range(4)]
        lines = [
            f"{row[0]:<{width[0]}}  {row[1]:>{width[1]}}  {row[2]:>{width[2]}}  {row[3]:>{width[3]}}  {row[4]}".rstrip()
            for row in rows
        ]
        return "\n".join(lines + self.notes)

    def add(self, name: str, before: tuple[int, int, int], after: tuple[int, int, int], note: str = "") -> None:
        """Append an operation from its (rows, users, items) before and after."""
        self.steps.append(Operation(name, *before, *after, note))

    def to_dict(self) -> dict[str, Any]:
        """Operations and notes as plain data."""
        return {"steps": [asdict(one) for one in self.steps], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> CleaningReport:
        """The report that :meth:`to_dict` described."""
        return cls([Operation(**one) for one in stored["steps"]], list(stored["notes"]))


def drop_missing(events: Events, allowed: bool, report: CleaningReport) -> Events:
    """Events that have a user, an item and, where times are read, a time.

    Raises:
        DataError: some have not, and dropping is not ``allowed``.
    """
    masks = {role: mask for role, mask in events.missing().items() if mask.any()}
    if not masks:
        return events
    counts = {role: int(mask.sum()) for role, mask in masks.items()}
    if not allowed:
        raise refuse_missing(counts, f"{len(events):,} events")
    keep = ~np.logical_or.reduce(list(masks.values()))
    counted = counted_missing(counts)
    if not keep.any():
        raise DataError(f"no event is left once missing values are dropped: {counted}. Are these the right columns?")
    return _keep("missing", events, keep, report, counted)


def note_repeats(plans: Sequence[Plan], events: Events, order: str, report: CleaningReport) -> None:
    """Count rows that say the same as another where no plan drops them; ``events`` are sorted by user."""
    if any(name != "all" for plan in plans for name in plan.rules):
        return
    count = len(_repeats(events, order)[0])
    if count:
        report.notes.append(kept_text(count, events.time is not None))


def apply(plan: Plan, events: Events, report: CleaningReport, order: str = "file") -> Events:
    """The events that the plan leaves; ``events`` are sorted by user and, if they have an order, oldest first.

    Raises:
        DataError: an operation leaves nothing (the message says which, and what would leave something), or a rating
            threshold is asked for where no rating is read.
    """
    for which in plan.rules:
        if which == "exact":
            events = _without_repeats(events, order, report)
        elif which != "all":
            events = _keep(f"duplicates, {which} kept", events, _one_per_pair(events, which), report)
    if plan.min_rating is not None:
        events = _by_rating(events, plan.min_rating, report)
    if plan.max_user is not None:
        events = _without_longest(events, plan.max_user, report)
    if plan.min_user > 1 or plan.min_item > 1:
        keep = core(events.user, events.item, plan.min_user, plan.min_item)
        if not keep.any():
            raise _empty_core(events, plan.min_user, plan.min_item)
        events = _keep(f"core, users {plan.min_user}+, items {plan.min_item}+", events, keep, report)
    if plan.max_history is not None:
        events = _keep(f"newest {plan.max_history} per user", events, newest(events.user, plan.max_history), report)
    return events


def core(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """The largest set of events in which every user has ``min_user`` and every item ``min_item`` of them: (E,) mask.

    Users and items are dropped in turn until nothing changes; each round counts all remaining events at once.

    >>> core(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 1)
    array([ True,  True, False])
    """
    left = np.arange(len(user))
    users, items = user, item
    while len(left):
        enough = np.bincount(users)[users] >= min_user
        enough &= np.bincount(items)[items] >= min_item
        if enough.all():
            break
        left, users, items = left[enough], users[enough], items[enough]
    keep = np.zeros(len(user), dtype=bool)
    keep[left] = True
    return keep


def newest(user: np.ndarray, count: int) -> np.ndarray:
    """The last ``count`` events of each user, events being grouped by user: (E,) mask.

    >>> newest(np.array([0, 0, 0, 1]), 2)
    array([False,  True,  True,  True])
    """
    ends = np.cumsum(np.bincount(user))  # event after the last one, by user code
    return np.arange(len(user)) >= ends[user] - count


def _keep(name: str, events: Events, keep: np.ndarray, report: CleaningReport, note: str = "") -> Events:
    left = events if keep.all() else events.take(keep)
    report.add(name, events.counts(), left.counts(), note)
    return left


def _repeats(events: Events, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows that say what an earlier one says, and that one; without times within one part of data that come split."""
    if events.time is not None:
        return repeated_rows(events.user, events.item, moments(events.time, events.nanoseconds)[0])
    owner = events.user.astype(np.int64) * 3 + (0 if events.part is None else events.part)
    return repeated_rows(owner, events.item, None, ordered=order != "none")


def _without_repeats(events: Events, order: str, report: CleaningReport) -> Events:
    """One of each group of equal rows: the first, and of data that come split the first of the latest part, so that
    what is tested stays and training loses it."""
    again, first = _repeats(events, order)
    gone = again
    if events.part is not None and len(again):
        rows = np.unique(np.concatenate([again, first]))
        group = np.searchsorted(rows, first)
        head = np.arange(len(rows))
        head[np.searchsorted(rows, again)] = group
        by_part = np.lexsort((rows, -events.part[rows].astype(np.int64), head))
        leads = np.ones(len(rows), dtype=bool)
        leads[1:] = head[by_part[1:]] != head[by_part[:-1]]
        gone = rows[by_part[~leads]]
    keep = np.ones(len(events), dtype=bool)
    keep[gone] = False
    notes = []
    for name in ("part", "rating", "weight"):
        values = getattr(events, name)
        if values is not None:
            differ = int((~np.isclose(values[again], values[first], rtol=0, atol=0, equal_nan=True)).sum())
            notes += [f"{differ:,} of them with another {name}"] if differ else []
    return _keep("duplicates, same time too", events, keep, report, "; ".join(notes))


def _without_longest(events: Events, most: int, report: CleaningReport) -> Events:
    counts = np.bincount(events.user)
    keep = counts[events.user] <= most
    if not keep.any():
        raise DataError(f"max_user={most} leaves no event: the shortest user has {counts[counts > 0].min():,} of them")
    bots = int((counts > most).sum())
    longest = f"{bots:,} users, the longest with {counts.max():,}" if bots else ""
    return _keep(f"users of {most:,} events at most", events, keep, report, longest)


def _pairs(events: Events) -> np.ndarray:
    return events.user.astype(np.int64) * len(events.item_ids) + events.item


def _one_per_pair(events: Events, which: str) -> np.ndarray:
    pairs = _pairs(events)
    if which == "last":
        pairs = pairs[::-1]
    _, index = np.unique(pairs, return_index=True)
    keep = np.zeros(len(pairs), dtype=bool)
    keep[index] = True
    return keep[::-1] if which == "last" else keep


def _by_rating(events: Events, least: float, report: CleaningReport) -> Events:
    if events.rating is None:
        raise DataError("min_rating needs ratings and none are read: pass rating='<column>' to Dataset.scan")
    keep = events.rating >= np.float32(least)
    empty = int(np.isnan(events.rating).sum())
    if not keep.any():
        known = events.rating[~np.isnan(events.rating)]
        highest = f"the highest is {known.max():g}" if len(known) else "no event has one"
        raise DataError(f"min_rating={least:g} leaves no event: {highest}")
    return _keep(f"rating >= {least:g}", events, keep, report, f"{empty:,} without rating" if empty else "")


def _empty_core(events: Events, min_user: int, min_item: int) -> DataError:
    low, high = 1, max(min_user, min_item)  # feasible, not feasible
    while high - low > 1:
        middle = (low + high) // 2
        if core(events.user, events.item, min(middle, min_user), min(middle, min_item)).any():
            low = middle
        else:
            high = middle
    rows, users, items = events.counts()
    return DataError(
        f"the core with min_user={min_user}, min_item={min_item} leaves nothing of {rows:,} events of {users:,} users "
        f"and {items:,} items; the largest that leaves something is about min_user={min(low, min_user)}, "
        f"min_item={min(low, min_item)}"
    )
