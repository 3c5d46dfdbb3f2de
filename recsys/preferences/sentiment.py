"""Whether a preference says what is wanted or what is not, and the rule that turns the one into the other.

The released code classes preferences with ``siebert/sentiment-roberta-large-english`` and turns negative ones round by
replacing "avoid" with "Find", and "exclude" and "no " with "Search for". Here a preference is negative if it begins
with one of these words, unless another callable says otherwise; words are replaced as whole words and the first of
them only, so that "no " inside "piano " stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

INSTEAD = {"avoid": "Find", "exclude": "Search for", "no": "Search for"}
_LEADING = re.compile(rf"^\W*(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)
_ANYWHERE = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)


class Sentiment(Protocol):
    """Classes texts: True for negative ones. ``name`` goes into the manifest."""

    def __call__(self, texts: Sequence[str], /) -> np.ndarray:
        """(n,) bool."""


def by_leading_word(texts: Sequence[str], /) -> np.ndarray:
    """(n,) bool: whether each text begins with avoid, no or exclude.

    >>> by_leading_word(["Avoid glitter", "Find a piano stool", "Nothing loud"]).tolist()
    [True, False, False]
    """
    return np.array([_LEADING.match(text) is not None for text in texts], dtype=bool)


def inverted(text: str) -> str:
    """The text with its first negative word turned round, or as it is.

    >>> inverted("Avoid piano covers, no exceptions"), inverted("Find a piano stool")
    ('Find piano covers, no exceptions', 'Find a piano stool')
    """
    return _ANYWHERE.sub(lambda found: INSTEAD[found[0].lower()], text, count=1)


def differs_from_released(text: str) -> bool:
    """Whether replacing the first-matched word everywhere, inside words too, gives another text than :func:`inverted`.

    >>> differs_from_released("Avoid piano covers"), differs_from_released("No piano covers")
    (False, True)
    """
    for word, to in (("avoid", "Find"), ("exclude", "Search for"), ("no ", "Search for ")):
        if word in text.lower():
            return re.sub(re.escape(word), to, text, flags=re.IGNORECASE) != inverted(text)
    return inverted(text) != text


def check_sentiment(sentiment: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """What ``sentiment`` says of ``texts``: (n,) bool.

    Raises:
        ValueError: its answer is not one truth value for each text.
    """
    found = np.asarray(sentiment(texts))
    if found.shape != (len(texts),) or found.dtype.kind not in "bi":
        raise ValueError(
            f"sentiment must give a truth value for each of {len(texts):,} texts (True: negative), found "
            f"{found.dtype} {found.shape}"
        )
    return found.astype(bool)
