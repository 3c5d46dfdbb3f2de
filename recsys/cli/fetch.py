"""``recsys fetch``: a public data set by its card."""

from __future__ import annotations


def fetch(name: str = "ml-100k", /) -> None:
    """Download a public data set (or copy it from RECSYS_MIRROR), verify and cache it.

    Args:
        name: a data set that has a card, or the path of a card (.toml).
    """
    from recsys.cards.card import fetch as fetch_card

    print(fetch_card(name))
