"""Splitters: leave-last, global time, or the parts as given.

Each splitter answers ``apply(prepared) -> (train_stop, valid_stop)``, (U,) int64 event indices, and
``protocol(prepared)``, the JSON that is printed with every number; "order" in it is what the order of events rests on.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from recsys.data.prepared import Prepared
from recsys.errors import DataError, LeakageError, printable
from recsys.readers.times import NANOSECONDS, moment, moments, shown


class Splitter(Protocol):
    """What :class:`LeaveLast`, :class:`GlobalTime` and :class:`Given` are, and what one of your own is.

    The audit looks at where the stops lie. Where training of some user goes on after another user's test begins, the
    cut was made per user: a note says how much of training that is. A splitter that promises one moment for all users
    says ``"global_time": True`` in its protocol, and such training is then a leak.
    """

    def apply(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        """Where training and where validation ends, (U,) int64 each: user u trains on events ``offsets[u]`` to
        ``train_stop[u]``, is validated on those to ``valid_stop[u]`` and tested on the rest."""
        ...

    def protocol(self, prepared: Prepared) -> dict[str, Any]:
        """JSON that is printed with every number: a ``name``, and what was decided."""
        ...


def require_splitter(splitter: Any) -> None:
    """Raise TypeError unless ``splitter`` is an object with ``apply`` and ``protocol``."""
    if isinstance(splitter, type):
        raise TypeError(f"split takes a splitter, found the class {splitter.__name__}: pass {splitter.__name__}()")
    if not all(callable(getattr(splitter, name, None)) for name in ("apply", "protocol")):
        raise TypeError(
            "split takes a splitter such as rs.LeaveLast() or rs.GlobalTime(), found "
            f"{printable(repr(splitter))}. Random splits are not offered, since training then holds the future; for a "
            "rule of your own pass an object with apply(prepared) and protocol(prepared)"
        )


class LeaveLast:
    """Each user's last ``test`` events are test, the ``valid`` before them validation, the rest training.

    Users left with fewer than ``min_train`` training events only train. Comparable with most published tables, but
    training knows the future of other users; prefer :class:`GlobalTime` for a decision about your own data.
    """

    def __init__(self, valid: int = 1, test: int = 1, min_train: int = 1) -> None:
        if valid < 0 or test < 1 or min_train < 0:
            raise ValueError(f"expected valid >= 0, test >= 1, min_train >= 0; found {valid}, {test}, {min_train}")
        self.valid, self.test, self.min_train = valid, test, min_train

    def apply(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        """(train_stop, valid_stop), (U,) int64 each.

        Raises:
            DataError: the data have no order, or no user is long enough.
        """
        if prepared.order == "none":
            raise DataError(
                "leave-last needs the order of each user's events, and these data have none (order = none): give a "
                "time column, or order='file' if the rows of the file are in order"
            )
        end = prepared.offsets[1:]
        long_enough = np.diff(prepared.offsets) >= self._least
        if not long_enough.any():
            longest = int(np.diff(prepared.offsets).max(initial=0))
            raise DataError(
                f"no user has the {self._least} events that leave-last with {self.min_train} training, {self.valid} "
                f"validation and {self.test} test events needs (the longest history has {longest}): filter less, or "
                "hold out less"
            )
        valid_stop = np.where(long_enough, end - self.test, end)
        return np.where(long_enough, valid_stop - self.valid, end), valid_stop

    def protocol(self, prepared: Prepared) -> dict[str, Any]:
        """Name, arguments, and how many users were too short to be held out."""
        short = int((np.diff(prepared.offsets) < self._least).sum())
        return {
            "name": "leave-last",
            "order": prepared.order,
            "valid": self.valid,
            "test": self.test,
            "min_train": self.min_train,
            "users_too_short": short,
        }

    @property
    def _least(self) -> int:
        return self.min_train + self.valid + self.test


class GlobalTime:
    """Everything before one moment is training, everything after another is test, validation lies between.

    ``valid`` and ``test`` say where each begins, as an ISO date or time (UTC unless it says otherwise), or what share
    of all events it gets. Events of the same time are never separated. Users new in the test period are kept: their
    history is empty.
    """

    def __init__(self, valid: str | float = 0.1, test: str | float = 0.1) -> None:
        for name, value in (("valid", valid), ("test", test)):
            if isinstance(value, str):
                moment(value)
            elif not (isinstance(value, (int, float)) and ((name == "valid" and value == 0) or 0 < value < 1)):
                raise ValueError(f"{name} must be a share of events between 0 and 1 or an ISO date, found {value!r}")
        self.valid, self.test = valid, test

    def apply(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        """(train_stop, valid_stop), (U,) int64 each.

        Raises:
            DataError: the data have no times, or a part would be empty.
        """
        times, scale = _sorted_moments(prepared)
        valid_cut, test_cut = self._cuts(times, scale)
        train_stop, valid_stop = (_stops(prepared, times < cut) for cut in (valid_cut, test_cut))
        train = int((train_stop - prepared.offsets[:-1]).sum())
        valid = int((valid_stop - train_stop).sum())
        sizes = {"training": train, "validation": valid, "test": prepared.num_events - train - valid}
        empty = [part for part, size in sizes.items() if size == 0 and not (part == "validation" and self.valid == 0)]
        if empty:
            ends = (_iso(int(end), scale) for end in (times.min(), times.max())) if len(times) else ()
            raise DataError(
                f"{' and '.join(empty)} would be empty with validation from {_iso(valid_cut, scale)} and test from "
                f"{_iso(test_cut, scale)}; the data span {' to '.join(ends) or 'no events'}: choose other moments or "
                "larger shares"
            )
        return train_stop, valid_stop

    def protocol(self, prepared: Prepared) -> dict[str, Any]:
        """Name, arguments and the two moments."""
        times, scale = _sorted_moments(prepared)
        valid_cut, test_cut = (_iso(cut, scale) for cut in self._cuts(times, scale))
        cuts = {"valid_from": valid_cut, "test_from": test_cut}
        return {"name": "global-time", "order": prepared.order, "valid": self.valid, "test": self.test, **cuts}

    def cuts(self, prepared: Prepared) -> tuple[int, int]:
        """(first millisecond of validation, first millisecond of test). Where times are finer than milliseconds, events
        are told apart by all their digits, as :meth:`protocol` shows them."""
        times, scale = _sorted_moments(prepared)
        valid_cut, test_cut = self._cuts(times, scale)
        return valid_cut // scale, test_cut // scale

    def _cuts(self, times: np.ndarray, scale: int) -> tuple[int, int]:
        """The cuts as ``times`` (E,) are: in parts of a millisecond, ``scale`` of which are one."""
        test_cut = _scaled(self.test, scale) if isinstance(self.test, str) else _quantile(times, 1 - self.test)
        if isinstance(self.valid, str):
            valid_cut = _scaled(self.valid, scale)
        else:
            tested = float((times >= test_cut).mean()) if len(times) else 0.0
            valid_cut = test_cut if self.valid == 0 else _quantile(times, 1 - self.valid - tested)
        if valid_cut > test_cut:
            began, after = _iso(valid_cut, scale), _iso(test_cut, scale)
            raise DataError(f"validation begins at {began}, after test at {after}: swap them")
        return valid_cut, test_cut


class Given:
    """The parts the data came with.

    ``global_time=False`` says that they were cut per user (as in leave-last), so that training may hold events later
    than another user's test; by default the audit refuses that as a leak.
    """

    def __init__(self, global_time: bool = True) -> None:
        self.global_time = global_time

    def apply(self, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
        """(train_stop, valid_stop), (U,) int64 each.

        Raises:
            DataError: the data came without parts, or without training or test events.
            LeakageError: a user's events of one part lie between those of another.
        """
        parts = prepared.parts
        if parts is None:
            raise DataError("these data did not come split: use LeaveLast or GlobalTime")
        mixed = (np.diff(parts) < 0) & ~prepared.user_boundaries()
        if mixed.any():
            at = int(np.flatnonzero(mixed)[0])
            user = int(np.searchsorted(prepared.offsets, at, side="right")) - 1
            raise LeakageError(
                f"{int(mixed.sum()):,} times a user's held-out event comes before an event the model may train on or "
                f"see (first: user row {user}): the given parts do not follow the order of time"
            )
        for part, name in ((0, "training"), (2, "test")):
            if not (parts == part).any():
                raise DataError(f"the given parts hold no {name} events (part {part})")
        return _stops(prepared, parts < 1), _stops(prepared, parts < 2)

    def protocol(self, prepared: Prepared) -> dict[str, Any]:
        """Name and arguments."""
        return {"name": "given", "order": prepared.order, "global_time": self.global_time}


def _stops(prepared: Prepared, before: np.ndarray) -> np.ndarray:
    """(U,) int64: where the leading run of events with ``before`` ends in each user's history."""
    running = np.zeros(len(before) + 1, dtype=np.int64)
    np.cumsum(before, out=running[1:])
    return prepared.offsets[:-1] + running[prepared.offsets[1:]] - running[prepared.offsets[:-1]]


def _sorted_moments(prepared: Prepared) -> tuple[np.ndarray, int]:
    """(E,) int64 times at full precision, and how many of their units are a millisecond."""
    if prepared.times is None:
        raise DataError("a split by global time needs times: name the time column, or use LeaveLast")
    times, scale = moments(prepared.times, prepared.nanoseconds)
    backwards = (np.diff(times) < 0) & ~prepared.user_boundaries()
    if backwards.any():
        raise DataError(
            f"{int(backwards.sum()):,} events are older than the one before them in their user's history (order = "
            f"{prepared.order}): a split by global time needs each history sorted by time"
        )
    return times, scale


def _quantile(times: np.ndarray, share: float) -> int:
    """The time of the event that has ``share`` of all events before it."""
    if len(times) == 0:
        raise DataError("there are no events to split")
    at = min(max(int(np.floor(len(times) * share + 1e-9)), 0), len(times) - 1)
    return int(np.partition(times, at)[at])


def _scaled(text: str, scale: int) -> int:
    """An ISO date in parts of a millisecond, rounded up: what is earlier than the date is earlier than the number."""
    milliseconds, nanoseconds = moment(text)
    return milliseconds * scale - (-nanoseconds * scale // NANOSECONDS)


def _iso(time: int, scale: int) -> str:
    return shown(time // scale, time % scale * (NANOSECONDS // scale))
