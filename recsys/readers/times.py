"""Times at full precision: whole milliseconds, and the nanoseconds within each where the data have them.

Legend: E events. Models read milliseconds. What must know which of two events came first (sorting, splits by time, the
audit) compares :func:`moments`, one number per event.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from recsys.errors import DataError

MILLISECONDS = {  # one unit in milliseconds, as numerator and denominator
    "ns": (1, 1_000_000),
    "us": (1, 1_000),
    "ms": (1, 1),
    "s": (1_000, 1),
    "minutes": (60_000, 1),
    "hours": (3_600_000, 1),
    "days": (86_400_000, 1),
}
DAY = 86_400_000
NANOSECONDS = 1_000_000  # in a millisecond
YEAR = 31_557_600_000  # in milliseconds
_LAST_MILLISECOND = 253_402_300_800_000  # the year 10000
_LONGEST = (2**63 - 1) // NANOSECONDS - 1  # milliseconds since the epoch that still fit as nanoseconds: the year 2262
_UNSET = (
    0,
    -1,
    -1000,
    -60_000,
    -3_600_000,
    -86_400_000,
)  # 0 and -1 in any unit; -1 in finer ones is in millisecond -1 too


def split_units(whole: np.ndarray, rest: np.ndarray | None, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """(E,) int64 milliseconds and (E,) int32 nanoseconds within them of ``whole`` (int64) + ``rest`` (0..1) units.

    >>> milliseconds, nanoseconds = split_units(np.array([1500000]), np.array([0.000_123_4]), "s")
    >>> milliseconds.tolist(), nanoseconds.tolist()
    ([1500000000], [123400])
    """
    times, over = MILLISECONDS[unit]
    milliseconds, left = np.divmod(whole, over)
    milliseconds *= times
    nanoseconds = left * (NANOSECONDS // over)
    if rest is not None:
        nanoseconds += np.rint(rest * (times * (NANOSECONDS // over))).astype(np.int64)
        carried, nanoseconds = np.divmod(nanoseconds, NANOSECONDS)
        milliseconds += carried
    return milliseconds, nanoseconds.astype(np.int32)


def read_times(
    whole: np.ndarray, rest: np.ndarray | None, unit: str | None
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Milliseconds (E,) int64, nanoseconds within them (E,) int32 or None if all are 0, and the unit.

    Args:
        whole: (E,) int64, whole units.
        rest: (E,) float64, what is above them; None: nothing.
        unit: None tells it by magnitude.

    Raises:
        DataError: the numbers mix units or lie beyond the year 9999.
    """
    if not len(whole):
        return whole.astype(np.int64), None, unit or "ms"
    unit = unit or detect_unit(whole)
    times, over = MILLISECONDS[unit]
    if float(max(-float(whole.min()), float(whole.max()))) * times / over > _LAST_MILLISECOND:
        raise DataError(f"time {whole.max()} read in {unit!r} lies beyond the year 9999: pass another time_unit")
    milliseconds, nanoseconds = split_units(whole, rest, unit)
    return milliseconds, nanoseconds if nanoseconds.any() else None, unit


def detect_unit(values: np.ndarray) -> Literal["s", "ms", "us", "ns"]:
    """The unit in which epoch times of this magnitude fall into 1973..5138."""
    lowest, highest = float(values.min()), float(np.abs(values).max())
    unit = _unit_of(highest)
    if lowest > 1e8 and _unit_of(lowest) != unit:
        raise DataError(
            f"times mix units: {values.min()} looks like {_unit_of(lowest)!r}, {values.max()} like {unit!r}; "
            "bring them to one unit, or pass time_unit if this is one"
        )
    return unit


def _unit_of(value: float) -> Literal["s", "ms", "us", "ns"]:
    return "s" if value < 1e11 else "ms" if value < 1e14 else "us" if value < 1e17 else "ns"


def moments(milliseconds: np.ndarray, nanoseconds: np.ndarray | None) -> tuple[np.ndarray, int]:
    """One int64 per event that is equal, earlier or later as the full times are, and how many of it are a millisecond.

    Times with nanoseconds that leave the years 1677 to 2262 are compared by microseconds.
    """
    if nanoseconds is None:
        return milliseconds, 1
    within = len(milliseconds) == 0 or max(-int(milliseconds.min()), int(milliseconds.max())) <= _LONGEST
    scale = 1000 if not within or not np.any(nanoseconds % 1000) else NANOSECONDS
    return milliseconds * scale + nanoseconds // (NANOSECONDS // scale), scale


def moment(value: Any, unit: str = "ms") -> tuple[int, int]:
    """(milliseconds, nanoseconds within) of an ISO date or time (UTC unless it says otherwise) or a number in ``unit``.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ValueError(f"expected a number or an ISO date, found {value!r}")
        whole = int(np.floor(value))
        parts = split_units(np.array([whole]), np.array([float(value - whole)]), unit)
        return int(parts[0][0]), int(parts[1][0])
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise ValueError(f"expected an ISO date such as 2015-03-31 or 2015-03-31T12:00, found {value!r}") from error
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    past = found - datetime(1970, 1, 1, tzinfo=UTC)
    finer = re.search(r"[.,]\d{6}(\d{1,3})", value)
    nanoseconds = past.microseconds % 1000 * 1000 + (int(finer[1].ljust(3, "0")) if finer else 0)
    return (past.days * 86_400 + past.seconds) * 1000 + past.microseconds // 1000, nanoseconds


def shown(milliseconds: int, nanoseconds: int = 0) -> str:
    """A time as ISO text, with as many digits as it has."""
    text = str(np.datetime64(int(milliseconds), "ms"))
    return text if not nanoseconds else text + f"{int(nanoseconds):06d}".rstrip("0").ljust(3, "0")


def unset(milliseconds: np.ndarray) -> dict[int, int]:
    """Times that look like "not known", with how many events have them: 0 and -1 more than a year from all others, and
    an earliest or latest time, of several events, that lies further from all others than these do from each other.

    >>> unset(np.array([0, 1_500_000_000_000, 1_500_000_060_000]))
    {0: 1}
    """
    if not len(milliseconds):
        return {}
    found: dict[int, int] = {}
    left = milliseconds
    if int(left.min()) <= 0:
        real = left[~np.isin(left, _UNSET)]
        counts = {value: int((left == value).sum()) for value in _UNSET}
        found = {value: count for value, count in counts.items() if count and _distance(real, value) > YEAR}
        left = real if found else left
    for latest in (True, False, True):  # the second may uncover the first
        low, high = int(left.min()), int(left.max())
        value = high if latest else low
        others = left != value
        count = len(left) - int(np.count_nonzero(others))
        if 1 < count < len(left):
            nearest = int(left.max(where=others, initial=low) if latest else left.min(where=others, initial=high))
            span, gap = (nearest - low, high - nearest) if latest else (high - nearest, nearest - low)
            if span and gap > max(YEAR, span):
                found[value], left = count, left[others]
    return found


def unset_text(found: dict[int, int]) -> str:
    """What a report says of :func:`unset` times, with advice."""
    counts = [f"{count:,} at {str(np.datetime64(value, 'ms'))[:19]}" for value, count in found.items()]
    return (
        f"times that look like placeholders, far from all others: {', '.join(counts)}; .clean(missing_times=[...]) "
        "drops them, given as in the source (such as 0 and -1) or as ISO text"
    )


def _distance(others: np.ndarray, value: int) -> int:
    """From ``value`` to the nearest of ``others``."""
    above, below = others[others > value], others[others < value]
    gaps = [int(above.min()) - value] if len(above) else []
    gaps += [value - int(below.max())] if len(below) else []
    return min(gaps, default=0)
