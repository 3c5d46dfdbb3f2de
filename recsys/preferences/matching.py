"""Which of a user's preferences goes with what the user chose next: the one whose vector is nearest to the target's.

    p* = argmax_p <phi(p), phi(title of the target)>     over the preferences of the last event of the history

Mender's stage B (arXiv 2412.08604; mender.md, section 4). **The target is looked at to choose the preference**, in
training, validation and test alike: the user is supposed to say what he now wants. Numbers that depend on it are no
numbers of ordinary sequential recommendation and are labelled so wherever they are shown.

Only preferences that are classed positive are matched. Where there is none, the negative ones are turned round by rule
(:mod:`recsys.preferences.sentiment`); where that gives none either, all are taken. How often that happens is counted.

Legend: P texts, E events, N items (rows 1..N), C preferences of an event, H width of vectors, n asked events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys.data.split import HeldOut, Split
from recsys.errors import DataError
from recsys.features.column import Column
from recsys.features.features import Features
from recsys.ids.vectors import Vectors
from recsys.llm.embed import PACKAGED, embed, embed_texts
from recsys.preferences.requests import PREFERENCE
from recsys.preferences.table import MATCHED, Preferences

POSITIVE, INVERTED, ANY, NONE = "positive", "turned round", "any", "none"
HOW = (POSITIVE, INVERTED, ANY, NONE)
_CHUNK = 1 << 14  # events matched at a time


@dataclass(frozen=True, eq=False)
class Matching:
    """A split, its preferences, and vectors of their texts and of item titles in one space, of length 1 or 0."""

    split: Split
    preferences: Preferences
    texts: np.ndarray  # (P, H) float32
    titles: np.ndarray  # (N+1, H) float32, zero for padding and for items without a title
    model: str = ""  # what made the vectors

    @classmethod
    def of(
        cls,
        split: Split,
        preferences: Preferences,
        model: Any = PACKAGED,
        columns: Sequence[str] | None = ("title",),
        progress: bool = True,
    ) -> Matching:
        """Vectors by ``model`` (see :func:`recsys.llm.embed.embed`) of preferences and of items.

        Args:
            columns: what is read of the items: their titles, as published; None for all of their texts, for data whose
                titles do not say what an item is (names of films).

        Raises:
            DataError: the preferences are of other data, or items have no such columns.
            ValueError: the model makes vectors of all texts together (tfidf), so the two would not be in one space.
        """
        preferences.check(split)
        if model == "tfidf":
            raise ValueError("tfidf makes vectors of all texts together, and titles and texts come apart: use 'hashed'")
        titles = embed(split, model=model, columns=columns, progress=progress)
        texts = embed_texts(preferences.texts, model, of="preferences", progress=progress)
        return cls.given(split, preferences, texts, titles)

    @classmethod
    def given(cls, split: Split, preferences: Preferences, texts: Vectors, titles: Vectors) -> Matching:
        """The same from vectors that are there: of texts by their number, of titles by raw item id.

        Raises:
            DataError: a text has no vector, or the two have different widths.
        """
        preferences.check(split)
        if texts.width != titles.width or not np.array_equal(texts.ids, np.arange(len(preferences))):
            raise DataError(
                f"vectors of the {len(preferences):,} preferences, numbered from 0, and of titles must be of one "
                f"model; found {len(texts):,} of width {texts.width} and {len(titles):,} of width {titles.width}"
            )
        model = str(titles.manifest.get("model", "given"))
        return cls(split, preferences, np.asarray(texts.array, np.float32), titles.aligned(split.items)[0], model)

    def match(self, events: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        """The matched text of each of ``events`` (n,) for its target row (n,): (n,) int32 numbers, -1 where the event
        has no preference; and how many were matched in which way."""
        found = np.full(len(events), -1, np.int32)
        counts = dict.fromkeys(HOW, 0)
        for start in range(0, len(events), _CHUNK):
            part = slice(start, start + _CHUNK)
            found[part], how = self._match(events[part], targets[part])
            for name, count in zip(HOW, np.bincount(how, minlength=len(HOW)).tolist(), strict=True):
                counts[name] += count
        return found, counts

    def _match(self, events: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = self.preferences
        codes = own.codes[events]  # (n, C)
        there = codes >= 0
        safe = np.maximum(codes, 0)
        turned = np.where(there, own.inverse[safe], -1) if len(own) else codes
        positive = there & ~own.negative[safe] if len(own) else there
        how = np.select([positive.any(1), (turned >= 0).any(1), there.any(1)], [0, 1, 2], 3)
        candidates = np.select([how[:, None] == 0, how[:, None] == 1], [np.where(positive, codes, -1), turned], codes)
        if not len(own):
            return np.full(len(events), -1, np.int32), how
        nearness = np.einsum("nch,nh->nc", self.texts[np.maximum(candidates, 0)], self.titles[targets])
        nearness[candidates < 0] = -np.inf
        return candidates[np.arange(len(events)), nearness.argmax(1)].astype(np.int32), how

    def with_requests(self) -> Split:
        """The split with the matched preference in each request of validation and test, so that ``fit`` and
        ``evaluate`` ask with them; its protocol, and so every report, says that the target was looked at."""
        requests = {}
        for name, part in (("valid", self.split.valid), ("test", self.split.test)):
            found, _ = self.of_part(part)
            said = ["" if code < 0 else self.preferences.texts[code] for code in found.tolist()]
            requests[name] = Features({PREFERENCE: Column.of("text", said)})
        protocol = {**self.split.protocol, "requests": MATCHED, "preferences": self.preferences.label}
        return replace(self.split, requests=requests, protocol=protocol)

    def of_part(self, part: HeldOut) -> tuple[np.ndarray, dict[str, int]]:
        """The matched text of each user of a held-out part, for the first target; -1 for an empty history."""
        found = np.full(len(part), -1, np.int32)
        some = np.flatnonzero(part.history_lengths > 0)
        targets = part.prepared.items[part.target_start[some]].astype(np.int64)
        found[some], counts = self.match(part.target_start[some] - 1, targets)
        counts[NONE] += len(part) - len(some)
        return found, counts
