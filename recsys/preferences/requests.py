"""What a user says with a request, as a model reads it: the feature ``preference`` of a history.

``rs.History(items, features={"preference": "Find a red lipstick"})``, several texts as a list, none as None or "".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys.data.batch import USER_FEATURES
from recsys.errors import DataError, printable

PREFERENCE = "preference"
FIELD = f"{USER_FEATURES}{PREFERENCE}"


def texts_of(value: Any) -> list[str]:
    """A preference as a list of texts without blanks around them, empty where there is none.

    Raises:
        DataError: it is neither a text nor a list of texts.
    """
    if value is None or (isinstance(value, float) and value != value):
        return []
    values = value.tolist() if isinstance(value, np.ndarray) else value
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise DataError(
            f"a preference is a text, such as 'Find a red lipstick', or a list of texts; found "
            f"{printable(repr(value), 60)} ({type(value).__name__})"
        )
    return [text for one in values if (text := " ".join(one.split()))]


class RequestTexts:
    """The column by which the preferences of requests are read (see ``request_columns`` in :mod:`recsys.protocols`).

    ``read`` makes of n lists of texts an array (n, ...) of numbers.
    """

    kind = "number"  # taken as it is read
    categories = None

    def __init__(self, read: Callable[[Sequence[Sequence[str]]], np.ndarray]) -> None:
        self.read = read

    def encode(self, values: Sequence[Any]) -> tuple[Read, list[Any]]:
        """The values as numbers; nothing is unknown, as any text can be read.

        Raises:
            DataError: a value is neither a text nor a list of texts.
        """
        return Read(self.read([texts_of(value) for value in values])), []


class Read:
    """Numbers (n, ...) of n values."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows."""
        found: np.ndarray = self.values[rows]
        return found
