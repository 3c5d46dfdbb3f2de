"""Histories of raw ids, as callers give them, and the batches that models read.

Legend: B histories, L longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.data.batch import FEATURES, USER_FEATURES, Batch
from recsys.ids.ranges import spread
from recsys.ids.vocabulary import Vocabulary
from recsys.recommenders.times import moments

if TYPE_CHECKING:
    from recsys.data.split import HeldOut


@dataclass(frozen=True)
class History:
    """One user's raw item ids, oldest first, with what else a model may read.

    ``times`` (one per item) and ``query_time`` are numbers since 1970, dates or ISO text. The unit of numbers is
    ``time_unit`` ("s", "ms", "us", "ns"); if that is None it is found by magnitude, over all histories of a call.
    ``features`` are those that a model with ``FeatureInputs`` reads, such as ``{"device": ["tv", "phone"]}``. It
    reads as the list of its items does: ``len``, ``for``, ``history[-1]``.
    """

    items: Sequence[Any]
    times: Sequence[Any] | np.ndarray | None = None
    user: Any = None
    query_time: Any = None
    time_unit: str | None = None
    features: Mapping[str, Any] | None = None  # column of events -> a value per item; column of users -> one value

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __getitem__(self, at: int | slice) -> Any:
        return self.items[at]


def as_histories(histories: Sequence[Any]) -> list[History]:
    """Each as a :class:`History`.

    Raises:
        TypeError: one is an id or nothing, where a list of ids is expected.
    """
    if isinstance(histories, (str, bytes)) or not hasattr(histories, "__iter__"):
        raise TypeError(f"a history is a list of raw ids, and a list of them is expected; found {histories!r}")
    found = [one if isinstance(one, History) else History(one) for one in histories]
    for one in found:
        if isinstance(one.items, (str, bytes)) or not hasattr(one.items, "__len__"):
            raise TypeError(
                f"a history is a list of raw ids, oldest first, and {one.items!r} is not one: pass a list of "
                'histories, such as [["50", "172"]] for one user'
            )
    return found


def histories_of(part: HeldOut, index: np.ndarray) -> list[History]:
    """The whole raw histories of the users at ``index`` (n,) of a held-out part, with their times and features where it
    has any.

    Raises:
        ValueError: the part has no raw ids.
    """
    if part.split is None:
        raise ValueError(
            f"the part {part.name!r} has no raw ids, which histories are made of: take split.valid or split.test"
        )
    _, events = spread(part.history_start[index], part.target_start[index])
    ends = np.cumsum(part.history_lengths[index])[:-1]
    items = np.split(part.split.items.raw(part.prepared.items[events]), ends)
    times, asked = part.prepared.times, part.query_time
    moments: list[Any] = [None] * len(items) if times is None else np.split(np.asarray(times[events], np.int64), ends)
    users = part.split.users.raw(part.users[index]).tolist()
    features = _features_of(part, index, events, np.concatenate([[0], part.history_lengths[index].cumsum()]))
    return [
        History(own.tolist(), when, user, None if asked is None else int(asked[at]), "ms", told)
        for own, when, user, at, told in zip(items, moments, users, index.tolist(), features, strict=True)
    ]


def _features_of(
    part: HeldOut, index: np.ndarray, events: np.ndarray, ends: np.ndarray
) -> Sequence[dict[str, Any] | None]:
    """The raw features of each history, whose events are ``events`` (n,) cut at ``ends``; texts are left out."""
    of_users = None if part.split is None else part.split.user_features
    if part.prepared.features is None and of_users is None and part.requests is None:
        return [None] * len(index)
    found: list[dict[str, Any]] = [{} for _ in index]
    for name, column in (part.prepared.features or {}).items():
        values = column.take(events).plain()
        for one, (start, stop) in zip(found, pairwise(ends.tolist()), strict=True):
            one[name] = values[start:stop]
    for name, column in (part.requests or {}).items():
        for one, value in zip(found, column.take(index).plain(), strict=True):
            one[name] = value
    for name, column in (of_users or {}).items():
        if column.kind != "text":
            for one, value in zip(found, column.take(part.users[index]).plain(), strict=True):
                one[name] = value
    return found


def in_milliseconds(histories: Sequence[History]) -> list[History]:
    """The same histories with times and query times as int64 milliseconds.

    Raises:
        ValueError: a time cannot be read, or numbers without a unit mix units.
    """
    at = [i for i, one in enumerate(histories) if one.times is not None]
    asked = [i for i, one in enumerate(histories) if one.query_time is not None]
    lists = [*(histories[i].times for i in at), *([histories[i].query_time] for i in asked)]
    read = moments(lists, [histories[i].time_unit for i in (*at, *asked)])
    found = [replace(one, time_unit="ms") for one in histories]
    for i, times in zip(at, read, strict=False):
        found[i] = replace(found[i], times=times)
    for i, times in zip(asked, read[len(at) :], strict=True):
        found[i] = replace(found[i], query_time=int(times[0]))
    return found


def collate(
    histories: Sequence[History],
    vocabulary: Vocabulary,
    max_length: int | None,
    needs: frozenset[str] = frozenset(),
    device: torch.device | str = "cpu",
) -> tuple[Batch, np.ndarray]:
    """A batch of raw histories (their last ``max_length`` known items) and the number of unknown items of each.

    Times are taken for milliseconds here; :func:`in_milliseconds` makes them so. Features are taken for codes and
    numbers, as :func:`recsys.recommenders.features.coded` makes them.

    Raises:
        ValueError: ``times`` are needed and a history does not have one per item.
    """
    counts = np.asarray([len(one.items) for one in histories], np.int64)
    rows = vocabulary.rows(list(chain.from_iterable(one.items for one in histories)))
    user = np.repeat(np.arange(len(histories)), counts)
    known = rows > 0
    lengths = np.bincount(user[known], minlength=len(histories))
    batch = Batch(
        rows=torch.arange(len(histories), device=device),
        users=torch.full((len(histories),), -1, device=device),
        ids=_padded(rows[known], lengths, max_length, device),
        lengths=torch.as_tensor(np.minimum(lengths, max_length or lengths.max(initial=0)), device=device),
    )
    if "times" in needs:
        times = _times(histories, counts)[known]
        batch = batch.replace(times=_padded(times, lengths, max_length, device))
    if "query_time" in needs:
        if any(one.query_time is None for one in histories):
            raise ValueError("this model reads query_time: pass History(items, times, query_time=...) for every user")
        batch = batch.replace(query_time=torch.tensor([one.query_time for one in histories], device=device))
    for name in (need.removeprefix(FEATURES) for need in needs if need.startswith(FEATURES)):
        values = np.concatenate([(one.features or {})[name] for one in histories])[known]
        batch.features[name] = _padded(values, lengths, max_length, device)
    for name in (need.removeprefix(USER_FEATURES) for need in needs if need.startswith(USER_FEATURES)):
        told = np.stack([(one.features or {})[name] for one in histories])
        batch.user_features[name] = torch.as_tensor(told, device=device)
    return batch, counts - lengths


def _times(histories: Sequence[History], counts: np.ndarray) -> np.ndarray:
    for one, count in zip(histories, counts, strict=True):
        if len(_own_times(one)) != count:
            raise ValueError(
                f"this model reads times: pass History(items, times) with one time (milliseconds) per item; "
                f"found {None if one.times is None else len(one.times)} times for {count} items"
            )
    times = np.asarray(list(chain.from_iterable(_own_times(one) for one in histories)))
    if times.dtype.kind not in "iuf" or not np.isfinite(times).all():
        wrong = next(one for one in times.tolist() if not (isinstance(one, (int, float)) and np.isfinite(one)))
        raise ValueError(f"times are whole numbers, milliseconds since 1970, and one is {wrong!r}")
    return times.astype(np.int64)


def _own_times(history: History) -> Sequence[Any] | np.ndarray:
    return () if history.times is None else history.times


def is_ready(history: History) -> bool:
    """Whether its times are int64 milliseconds already."""
    return (
        history.time_unit == "ms"
        and (history.times is None or (isinstance(history.times, np.ndarray) and history.times.dtype == np.int64))
        and (history.query_time is None or type(history.query_time) is int)
    )


def _padded(values: np.ndarray, lengths: np.ndarray, max_length: int | None, device: torch.device | str) -> Tensor:
    """Ragged values to (B, L), the last ``max_length`` of each row."""
    kept = np.minimum(lengths, max_length or lengths.max(initial=0))
    ends = np.cumsum(lengths)
    width = max(int(kept.max(initial=0)), 1)
    column = np.arange(width)
    index = (ends - kept)[:, None] + column
    inside = column < kept[:, None]
    padded = np.zeros((*index.shape, *values.shape[1:]), values.dtype)
    padded[inside] = values[index[inside]]
    return torch.as_tensor(padded, device=device)
