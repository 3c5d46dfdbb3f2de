"""Events to a padded batch: one vectorised read for all rows.

Legend: B rows, L longest row.
"""

from __future__ import annotations

import numpy as np
import torch

from recsys.data.batch import Batch
from recsys.data.prepared import Prepared, spread
from recsys.errors import DataError

ALWAYS = frozenset({"rows", "users", "ids", "lengths", "targets"})
ON_DEMAND = ("times", "weights", "query_time", "events")


def gather(
    prepared: Prepared,
    rows: np.ndarray,
    users: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    asked: np.ndarray,
    needs: frozenset[str],
) -> Batch:
    """Events [start, stop) of each row, right-padded to the longest; a batch of nothing still has one column.

    All of ``rows, users, start, stop, asked`` are (B,); the time of event ``asked`` is the query's, 0 if -1, and
    with "events" among the needs the event itself comes along as ``extra["events"]`` (B,).
    """
    lengths = stop - start
    width = max(int(lengths.max(initial=0)), 1)
    owner, index = spread(start, stop)
    place = owner * width + (index - start[owner])

    def lay(values: np.ndarray, dtype: type) -> torch.Tensor:
        out: np.ndarray = np.zeros(len(lengths) * width, dtype=dtype)
        out[place] = values[index]
        return torch.from_numpy(out).view(len(lengths), width)

    query_time = None
    if "query_time" in needs and prepared.times is not None:
        query_time = torch.from_numpy(np.where(asked < 0, 0, prepared.times[np.maximum(asked, 0)]))
    return Batch(
        rows=torch.from_numpy(np.array(rows, dtype=np.int64)),
        users=torch.from_numpy(np.array(users, dtype=np.int64)),
        ids=lay(prepared.items, np.int64),
        lengths=torch.from_numpy(lengths.astype(np.int64)),
        times=lay(prepared.times, np.int64) if "times" in needs and prepared.times is not None else None,
        weights=lay(prepared.weights, np.float32) if "weights" in needs and prepared.weights is not None else None,
        query_time=query_time,
        extra={"events": torch.from_numpy(np.array(asked, dtype=np.int64))} if "events" in needs else {},
    )


def check_needs(prepared: Prepared, needs: frozenset[str]) -> None:
    """Raise if a batch of these data cannot carry the fields that ``needs`` names."""
    unknown = needs - ALWAYS - set(ON_DEMAND)
    if unknown:
        raise ValueError(f"needs names {sorted(unknown)}; a batch can carry {', '.join(ON_DEMAND)}")
    missing = needs - ALWAYS - available(prepared)
    if missing:
        raise DataError(
            f"a part needs {', '.join(sorted(missing))}, which these data do not have: name the column when you scan "
            "them (time=..., weight=...), or use a part that does without"
        )


def available(prepared: Prepared) -> frozenset[str]:
    """The optional batch fields that these data can give."""
    timed = () if prepared.times is None else ("times", "query_time")
    return frozenset(("events", *timed) if prepared.weights is None else ("events", *timed, "weights"))
