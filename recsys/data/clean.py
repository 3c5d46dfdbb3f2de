"""Cleaning steps over events and the report of what each one took away.

Legend: E events. A step is a mask or an index over the events of :class:`~recsys.data.events.Events`; none loops over
users. The order within one plan is: missing, duplicates, rating, k-core, history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recsys.data.events import Events
from recsys.errors import DataError

DUPLICATES = ("all", "first", "last")


@dataclass(frozen=True)
class Plan:
    """What to drop. The defaults drop only events without an id or, where times are read, without a time."""

    drop_missing: bool = True
    duplicates: str = "all"  # which event of a repeated (user, item) pair stays: "all", "first" or "last" in time
    min_rating: float | None = None
    min_user: int = 0  # events a user must have, after all other users and items were dropped (k-core)
    min_item: int = 0  # events an item must have, likewise
    max_history: int | None = None  # newest events kept of each user

    def __post_init__(self) -> None:
        if self.duplicates not in DUPLICATES:
            raise ValueError(f"duplicates must be one of {', '.join(DUPLICATES)}, found {self.duplicates!r}")
        for name, least in (("min_user", 0), ("min_item", 0), ("max_history", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, found {value!r}")


@dataclass(frozen=True)
class Step:
    """Rows, users and items before and after one step."""

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
    """What was read and what each step left; ``str()`` is a short aligned table."""

    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        rows = [("step", "events", "users", "items", "")]
        for step in self.steps:
            after = (f"{step.rows_out:,}", f"{step.users_out:,}", f"{step.items_out:,}")
            lost = step.rows_in - step.rows_out
            gone = f"-{lost:,} events" if lost else ""
            rows.append((step.name, *after, "; ".join(part for part in (gone, step.note) if part)))
        width = [max(len(row[at]) for row in rows) for at in range(4)]
        lines = [
            f"{row[0]:<{width[0]}}  {row[1]:>{width[1]}}  {row[2]:>{width[2]}}  {row[3]:>{width[3]}}  {row[4]}".rstrip()
            for row in rows
        ]
        return "\n".join(lines + self.notes)

    def add(self, name: str, before: tuple[int, int, int], after: tuple[int, int, int], note: str = "") -> None:
        """Append a step from its (rows, users, items) before and after."""
        self.steps.append(Step(name, *before, *after, note))

    def to_dict(self) -> dict[str, Any]:
        """Steps and notes as plain data."""
        return {"steps": [asdict(step) for step in self.steps], "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> CleaningReport:
        """The report that :meth:`to_dict` described."""
        return cls([Step(**step) for step in stored["steps"]], list(stored["notes"]))


def drop_missing(events: Events, allowed: bool, report: CleaningReport) -> Events:
    """Events that have a user, an item and, where times are read, a time.

    Raises:
        DataError: some have not, and dropping is not ``allowed``.
    """
    masks = {role: mask for role, mask in events.missing().items() if mask.any()}
    if not masks:
        return events
    counted = ", ".join(f"{int(mask.sum()):,} without {role}" for role, mask in masks.items())
    if not allowed:
        raise DataError(
            f"of {len(events):,} events {counted} (empty or null): .clean(drop_missing=True) drops and counts them"
        )
    keep = ~np.logical_or.reduce(list(masks.values()))
    if not keep.any():
        raise DataError(f"no event is left once missing values are dropped: {counted}. Are these the right columns?")
    return _step("missing", events, keep, report, counted)


def apply(plan: Plan, events: Events, report: CleaningReport) -> Events:
    """The events that the plan leaves; ``events`` are sorted by user and, if they have an order, oldest first.

    Raises:
        DataError: a step leaves nothing (the message says which, and what would leave something), or a rating
            threshold is asked for where no rating is read.
    """
    if plan.duplicates != "all":
        events = _step(f"duplicates, {plan.duplicates} kept", events, _one_per_pair(events, plan.duplicates), report)
    if plan.min_rating is not None:
        events = _by_rating(events, plan.min_rating, report)
    if plan.min_user > 1 or plan.min_item > 1:
        keep = core(events.user, events.item, plan.min_user, plan.min_item)
        if not keep.any():
            raise _empty_core(events, plan.min_user, plan.min_item)
        events = _step(f"core, users {plan.min_user}+, items {plan.min_item}+", events, keep, report)
    if plan.max_history is not None:
        events = _step(f"newest {plan.max_history} per user", events, newest(events.user, plan.max_history), report)
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


def _step(name: str, events: Events, keep: np.ndarray, report: CleaningReport, note: str = "") -> Events:
    left = events if keep.all() else events.take(keep)
    report.add(name, events.counts(), left.counts(), note)
    return left


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
    return _step(f"rating >= {least:g}", events, keep, report, f"{empty:,} without rating" if empty else "")


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
