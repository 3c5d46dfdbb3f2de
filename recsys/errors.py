"""The exceptions and the warning of the library, and how messages show text of others (ids, titles, file names).

Everything else that is raised is a ValueError or TypeError where it happens.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping

JOINERS = "\u200c\u200d"  # invisible, and part of ordinary words and emoji


class DataError(ValueError):
    """Input data cannot be used as it is; the message says what was expected, what was found and what to do."""


class UnknownItemError(DataError, KeyError):
    """An item that was asked about is not in the catalogue or index."""

    __str__ = DataError.__str__  # not KeyError's, which quotes the message


class LeakageError(DataError):
    """Training could see what evaluation asks for; no number computed from such a split means anything."""


class DataWarning(UserWarning):
    """Something was dropped, skipped or replaced; the message counts it."""


def printable(text: object, limit: int | None = 80, lines: bool = False) -> str:
    """``text`` with control, direction and line-breaking characters escaped, cut in the middle if it is longer.

    Args:
        limit: most characters; None keeps all of them.
        lines: line ends and tabs stay, for text of several lines.

    >>> printable("a" + chr(27) + "[2J" + chr(0x202E)), printable("x" * 100, limit=9)
    ('a\\\\x1b[2J\\\\u202e', 'xxx...xxx')
    """
    whole = str(text)
    if limit is not None and len(whole) > limit:
        tail = max((limit - 3) // 2, 0)
        whole = f"{whole[: limit - 3 - tail]}...{whole[len(whole) - tail :]}"
    if whole.isascii() and whole.isprintable():
        return whole
    kept = JOINERS + "\n\t" * lines
    return "".join(_escaped(one) if _hidden(one) and one not in kept else one for one in whole)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def not_fitted(model: object) -> ValueError:
    """The error of a model that is used before it has learned anything."""
    return ValueError(f"{type(model).__name__} is not fitted: call fit(model, split), or load a run")


def closest(name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """A hint for an error message: the known name nearest to ``name``, or all of them.

    Args:
        elsewhere: known names by what other libraries call them, in lower case.
    """
    names = sorted(known)
    meant = (elsewhere or {}).get(name.lower())
    near = [meant] if meant in names else difflib.get_close_matches(name, names, n=len(names) or 1)
    near.sort(key=lambda one: (-difflib.SequenceMatcher(None, one, name).ratio(), abs(len(one) - len(name))))
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
