"""What a server asks somebody without a history: by what lies beside the bundle, else the most popular items in turn.

``recsys.elicit(model, split).save(BUNDLE / "elicitation")`` puts a way of asking into the folder of a bundle. Without
it the items that were most popular in training are asked about, and likes are a history like any other, for every model
that is served.

Legend: N items (rows 1..N).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recsys.elicitation.elicitor import Elicitor
from recsys.errors import DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.serve.bundle import Bundle

FOLDER = "elicitation"  # beside the parts of a bundle
POOL = 500  # items that may be asked about, without such a folder
POPULAR = "popular"


class Catalogue(Protocol):
    """What is asked about: :class:`recsys.serve.service.Served`."""

    bundle: Bundle
    withdrawn: np.ndarray

    @property
    def vocabulary(self) -> Vocabulary: ...

    def find(self, raw: Sequence[Any]) -> np.ndarray: ...

    def popular(self, count: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Asked:
    """Questions: item rows, best first, and the share of training users who know each, where that was counted."""

    rows: np.ndarray
    known: list[float | None]
    enough: bool


class Asking:
    """Questions of a bundle.

    Args:
        served: the bundle.

    Raises:
        DataError: the folder beside it is damaged, or of another catalogue.
    """

    def __init__(self, served: Catalogue) -> None:
        self._served = served
        folder = served.bundle.folder / FOLDER
        self.elicitor = Elicitor.load(folder, served.bundle.model) if folder.is_dir() else None

    @property
    def name(self) -> str:
        """Who asks."""
        return POPULAR if self.elicitor is None else self.elicitor.asker_name

    @property
    def reader(self) -> str:
        """How answers become a list; ``history`` is what every model can."""
        return "history" if self.elicitor is None else self.elicitor.reader_name

    def next(self, answers: Sequence[tuple[Any, str]], k: int) -> Asked:
        """The ``k`` next questions, none about what was withdrawn."""
        served = self._served
        if self.elicitor is None:
            said = np.union1d(served.find([one for one, _ in answers]), served.withdrawn)
            rows = served.popular(POOL)
            rows = rows[~np.isin(rows, said)][:k]
            return Asked(rows, [None] * len(rows), not len(rows))
        gone = set(served.vocabulary.raw(served.withdrawn).tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of unknown ids, which a caller may well send
            found = self.elicitor.next(answers, k + len(gone))
        kept = [at for at, one in enumerate(found.items) if one not in gone][:k]
        rows = served.find([found.items[at] for at in kept])
        return Asked(rows, [found.known[at] for at in kept], found.enough or not kept)

    def read(self, answers: Sequence[tuple[Any, str]], k: int) -> tuple[list[Any], list[float]]:
        """Raw ids and scores of the list after ``answers``, of a reader other than ``history``."""
        assert self.elicitor is not None
        served = self._served
        gone = served.vocabulary.raw(served.withdrawn).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            top = self.elicitor.recommend(answers, k + len(gone))
        hidden = set(gone)
        pairs = zip(top.items[0], top.scores[0].tolist(), strict=False)
        kept = [(one, score) for one, score in pairs if one not in hidden][:k]
        return [one for one, _ in kept], [score for _, score in kept]
