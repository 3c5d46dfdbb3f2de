"""Whether two catalogues hold the same items, by their ids, never by their number.

Legend: N items (rows 1..N, 0 is padding).
"""

from __future__ import annotations

import numpy as np

from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary

_SHOWN = 3  # ids of each side in an error


def row_map(known: Vocabulary, given: Vocabulary, names: tuple[str, str], remedy: str) -> np.ndarray | None:
    """(N+1,) int64: the row in ``known`` of each row of ``given`` (row 0 stays 0); None where all rows agree.

    Args:
        names: what the two sides are called in an error, such as ("the model", "the held-out part").
        remedy: what to do where they hold other items.

    Raises:
        DataError: an id of one side is not among those of the other.

    >>> first, other = (Vocabulary(np.array(ids, object), 1) for ids in (["a", "b"], ["b", "a"]))
    >>> row_map(first, other, ("one", "the other"), "").tolist()
    [0, 2, 1]
    """
    if known is given or known.digest == given.digest:
        return None
    rows = known.rows(given.ids) if known.kind == given.kind else np.full(len(given), -1, np.int64)
    if len(known) != len(given) or (rows < 1).any():
        foreign = given.ids[rows < 1]
        own = np.ones(len(known), bool)
        own[rows[rows > 0] - known.first] = False
        raise DataError(
            f"{names[0]} and {names[1]} hold other items: {names[0]} {_told(known.ids[own], known)}, {names[1]} "
            f"{_told(foreign, given)}; {remedy}"
        )
    return np.concatenate([np.zeros(1, np.int64), rows])


def _told(alone: np.ndarray, vocabulary: Vocabulary) -> str:
    """How many ids one side holds and how many of them alone, with a sample."""
    sample = ", ".join(repr(one) for one in alone[:_SHOWN].tolist())
    count = f"{len(vocabulary):,} items"
    return f"{count}, {len(alone):,} of them alone" + (f" (such as {sample})" if len(alone) else "")
