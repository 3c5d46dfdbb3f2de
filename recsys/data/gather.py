"""Events to a padded batch: one vectorised read for all rows.

Legend: B rows, L longest row.
"""

from __future__ import annotations

import numpy as np
import torch

from recsys.data.batch import FEATURES, USER_FEATURES, Batch
from recsys.data.prepared import Prepared
from recsys.errors import DataError
from recsys.features.column import Column
from recsys.features.features import Features
from recsys.ids.ranges import spread

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
    user_features: Features | None = None,
) -> Batch:
    """Events [start, stop) of each row, right-padded to the longest; a batch of nothing still has one column.

    All of ``rows, users, start, stop, asked`` are (B,); the time of event ``asked`` is the query's, 0 if -1, and
    with "events" among the needs the event itself comes along as ``events`` (B,), with "features.device" the
    column "device" of the events, with "user_features.age" the column "age" of the users.
    """
    lengths = stop - start
    width = max(int(lengths.max(initial=0)), 1)
    owner, index = spread(start, stop)
    place = owner * width + (index - start[owner])

    def lay(values: np.ndarray, dtype: type) -> torch.Tensor:
        out: np.ndarray = np.zeros(len(lengths) * width, dtype=dtype)
        out[place] = values[index]
        return torch.from_numpy(out).view(len(lengths), width)

    def lay_column(column: Column) -> torch.Tensor:
        found = _numbers(column, index)
        out = np.zeros((len(lengths) * width, *found.shape[1:]), found.dtype)
        out[place] = found
        return torch.from_numpy(out).view(len(lengths), width, *found.shape[1:])

    asked_for = () if prepared.features is None else prepared.features.items()
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
        events=torch.from_numpy(np.array(asked, dtype=np.int64)) if "events" in needs else None,
        features={name: lay_column(column) for name, column in asked_for if f"{FEATURES}{name}" in needs},
        user_features={
            name: torch.from_numpy(_numbers(column, np.asarray(users)))
            for name, column in (user_features or {}).items()
            if f"{USER_FEATURES}{name}" in needs
        },
    )


def _numbers(column: Column, rows: np.ndarray) -> np.ndarray:
    found = column.dense(rows)
    return found if column.kind == "number" else found.astype(np.int64)


def check_needs(prepared: Prepared, needs: frozenset[str], user_features: Features | None = None) -> None:
    """Raise if a batch of these data cannot carry the fields that ``needs`` names."""
    unknown = {name for name in needs - ALWAYS - set(ON_DEMAND) if not name.startswith((FEATURES, USER_FEATURES))}
    if unknown:
        raise ValueError(
            f"needs names {sorted(unknown)}; a batch can carry {', '.join(ON_DEMAND)}, and columns of events and "
            f"users as {FEATURES}NAME and {USER_FEATURES}NAME"
        )
    missing = needs - ALWAYS - available(prepared, user_features)
    columns = sorted(name.removeprefix(FEATURES) for name in missing if name.startswith(FEATURES))
    if columns:
        known = () if prepared.features is None else prepared.features
        raise DataError(
            f"a part reads the event columns {', '.join(columns)}, and these data keep {', '.join(known) or 'none'}: "
            f"name them when you scan the data, event_columns={{{columns[0]!r}: KIND}}, or use a part that does without"
        )
    columns = sorted(name.removeprefix(USER_FEATURES) for name in missing if name.startswith(USER_FEATURES))
    if columns:
        raise DataError(
            f"a part reads the columns {', '.join(columns)} of users, and these data have "
            f"{', '.join(user_features or ()) or 'none'}: give their table when you scan them, users=read_users(...), "
            "or use a part that does without"
        )
    if missing:
        raise DataError(
            f"a part needs {', '.join(sorted(missing))}, which these data do not have: name the column when you scan "
            "them (time=..., weight=...), or use a part that does without"
        )


def available(prepared: Prepared, user_features: Features | None = None) -> frozenset[str]:
    """The optional batch fields that these data can give."""
    timed = () if prepared.times is None else ("times", "query_time")
    weighted = () if prepared.weights is None else ("weights",)
    features = () if prepared.features is None else tuple(f"{FEATURES}{name}" for name in prepared.features)
    people = tuple(f"{USER_FEATURES}{name}" for name in user_features or ())
    return frozenset(("events", *timed, *weighted, *features, *people))
