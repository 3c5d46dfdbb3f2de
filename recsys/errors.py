"""The exceptions and the warning of the library; everything else is a ValueError or TypeError where it happens."""

from __future__ import annotations


class DataError(ValueError):
    """Input data cannot be used as it is; the message says what was expected, what was found and what to do."""


class LeakageError(DataError):
    """Training could see what evaluation asks for; no number computed from such a split means anything."""


class DataWarning(UserWarning):
    """Something was dropped, skipped or replaced; the message counts it."""
