"""Text of others (ids, titles, names of files) as it may be shown: nothing in it moves the cursor or turns the line."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # invisible, and part of ordinary words and emoji


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
