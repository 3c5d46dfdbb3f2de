"""Times of histories as milliseconds, by the rule of files: numbers by their magnitude, dates and ISO text as they are.

Legend: B histories.
"""

from __future__ import annotations

import datetime
import re
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from recsys.errors import DataError, DataWarning
from recsys.readers.times import MILLISECONDS, detect_unit

UNITS = {unit: MILLISECONDS[unit] for unit in ("ns", "us", "ms", "s")}
FAR = 10 * 365 * 86_400_000  # milliseconds from the newest training event that make a time doubtful
_NUMBER = re.compile(r"[+-]?\d{5,}(\.\d*)?")
_NOT_A_TIME = np.iinfo(np.int64).min


def moments(lists: Sequence[Any], units: Sequence[str | None]) -> list[np.ndarray]:
    """Each list of times as int64 milliseconds since 1970.

    Times are numbers, ``datetime`` or ``numpy.datetime64`` values, or ISO text (UTC where no zone is given).
    ``units[i]`` is the unit of the numbers of list i; where it is None, it is told by the magnitude of all numbers
    without a unit together, as ``Dataset.scan`` does.

    Raises:
        ValueError: a time is missing or cannot be read, a unit is unknown, or numbers mix units.
    """
    wrong = next((unit for unit in units if unit is not None and unit not in UNITS), None)
    if wrong is not None:
        raise ValueError(f"time_unit is one of {', '.join(UNITS)}, or None to tell it by magnitude; found {wrong!r}")
    lengths = [len(one) for one in lists]
    owners = np.repeat(np.arange(len(lists)), lengths)
    values, told = _numbers(list(chain.from_iterable(lists)))
    given = np.array([unit is not None for unit in units], bool)[owners]
    for unit in dict.fromkeys(unit for unit in units if unit is not None):
        chosen = np.array([one == unit for one in units], bool)[owners] & ~told
        values = _scaled(values, chosen, unit)
    open_ = ~told & ~given
    if open_.any():
        values = _scaled(values, open_, detect_unit(values[open_].astype(np.float64)))
    return np.split(values.astype(np.int64), np.cumsum(lengths)[:-1]) if lengths else []


def warn_of_far_times(times: Sequence[np.ndarray], newest: int | None, stacklevel: int) -> None:
    """Warn where times lie decades from the ``newest`` training event, or some are 0 or less beside one of our days:
    they are in another unit, of other data, or stand for times that are not known."""
    if newest is None:
        return
    ends = np.array([(one.min(), one.max()) for one in times if len(one)], np.int64).reshape(-1, 2)
    missing = (ends[:, 0] <= 0) & (newest > FAR)
    far = (np.abs(ends[:, 1] - newest) > FAR) | missing
    if far.any():
        doubtful = ends[far][0, 0 if missing[far][0] else 1]
        found, known = (np.datetime64(int(one), "ms").astype("datetime64[D]") for one in (doubtful, newest))
        warnings.warn(
            f"{int(far.sum()):,} of {len(ends):,} histories have times years away from the training events, such as "
            f"{found} beside {known}: check their unit (History(..., time_unit=)), and leave out events whose times "
            "are not known",
            DataWarning,
            stacklevel=stacklevel + 1,
        )


def _numbers(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as they are and dates in milliseconds, and which are dates; int64 unless a number has a fraction."""
    array = np.asarray(values) if all(type(one) in (int, float) for one in values) else None
    if array is None or array.dtype.kind not in "iuf":
        read = [_moment(one) for one in values]
        array = np.array([one for one, _ in read])
        told = np.array([date for _, date in read], bool)
    else:
        told = np.zeros(len(values), bool)
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        sample = next(
            (one for one, number in zip(values, array.tolist()) if not np.isfinite(float(number))), values[:1]
        )
        raise _unreadable(sample)
    return (array.astype(np.int64) if array.dtype.kind in "iu" else array), told


def _moment(value: Any) -> tuple[int | float, bool]:
    """A time as a number, and whether it is in milliseconds already."""
    if isinstance(value, (bool, np.bool_)) or value is None:
        raise _unreadable(value)
    if isinstance(value, (int, float, np.integer, np.floating)):
        return value.item() if isinstance(value, np.generic) else value, False
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return float(text) if "." in text else int(text), False
        try:
            value = datetime.datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
        except ValueError:
            raise _unreadable(value) from None
    if isinstance(value, np.datetime64):
        found = int(value.astype("datetime64[ms]").astype(np.int64))
        if found == _NOT_A_TIME:
            raise _unreadable(value)
        return found, True
    if isinstance(value, datetime.date):
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        value = value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value
        since = value - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        return since // datetime.timedelta(milliseconds=1), True
    raise _unreadable(value)


def _unreadable(value: Any) -> DataError:
    return DataError(
        f"times are numbers (seconds, milliseconds ... since 1970), dates or ISO text, and one is {value!r}"
    )


def _scaled(values: np.ndarray, chosen: np.ndarray, unit: str) -> np.ndarray:
    times, over = UNITS[unit]
    if times == over:
        return values
    if values.dtype.kind == "f":
        return np.where(chosen, np.rint(values * (times / over)), values)
    return np.where(chosen, values * times // over, values)
