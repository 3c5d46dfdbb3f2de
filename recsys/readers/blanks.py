"""Blanks around ids and column names, which would make two ids of one."""

from __future__ import annotations

BLANKS = (  # what Unicode calls white space, then three marks without width
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
    "\u200b\u2060\ufeff"
)


def stripped(text: str) -> str:
    """The text without the blanks around it.

    >>> stripped("\\xa0item ")
    'item'
    """
    return text.strip(BLANKS)
