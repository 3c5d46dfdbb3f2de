"""The exceptions and the warning of the library; everything else is a ValueError or TypeError where it happens."""

from __future__ import annotations


class DataError(ValueError):
    """Input data cannot be used as it is; the message says what was expected, what was found and what to do."""


class UnknownItemError(DataError, KeyError):
    """An item that was asked about is not in the catalogue or index."""

    __str__ = DataError.__str__  # not KeyError's, which quotes the message


class LeakageError(DataError):
    """Training could see what evaluation asks for; no number computed from such a split means anything."""


class DataWarning(UserWarning):
    """Something was dropped, skipped or replaced; the message counts it."""
