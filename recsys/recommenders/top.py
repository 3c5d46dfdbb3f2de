"""What ``recommend`` answers: the best items of each history, with their scores.

Legend: B histories, K length of the lists.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.data.batch import PAD
from recsys.errors import DataWarning, printable
from recsys.ids.vocabulary import Vocabulary
from recsys.ranking.filters import Shown
from recsys.recommenders.history import History

if TYPE_CHECKING:
    import polars as pl

_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int, np.integer)}
SHOWN = 10  # histories whose recommendations are printed


@dataclass(frozen=True, repr=False)
class TopK:
    """Recommendations for B histories, readable as a data frame too (:meth:`to_frame`, or ``polars.DataFrame(top)``).

    K is the length of the lists, or the size of the catalogue. Rows are 0, scores -inf, where fewer items were left.
    """

    rows: np.ndarray  # (B, K) int64
    scores: np.ndarray  # (B, K) float32
    unknown: np.ndarray  # (B,) int64: history items the catalogue does not hold, skipped
    fallback: np.ndarray  # (B,) bool: nothing known in the history, ranked by popularity
    vocabulary: Vocabulary
    users: Sequence[Any] | None = None  # (B,) ``History.user`` where every history has one

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def items(self) -> list[list[Any]]:
        """Raw item ids, best first, one list per history."""
        found = self.rows != PAD
        raw = iter(self.vocabulary.raw(self.rows[found]).tolist())
        return [[next(raw) for _ in range(count)] for count in found.sum(1).tolist()]

    def to_frame(self) -> pl.DataFrame:
        """A Polars frame with a row per recommendation: ``history`` (its position, or ``user`` where all histories have
        one), ``rank`` from 1, ``item``, ``score``."""
        import polars as pl

        found = self.rows != PAD
        owner, rank = found.nonzero()
        kind = pl.Int64 if self.vocabulary.kind == "int" else pl.String
        return pl.DataFrame(
            [
                pl.Series("history", owner) if self.users is None else pl.Series("user", self.users).gather(owner),
                pl.Series("rank", rank + 1, dtype=pl.Int32),
                pl.Series("item", self.vocabulary.raw(self.rows[found]).tolist(), dtype=kind),
                pl.Series("score", self.scores[found], dtype=pl.Float32),
            ]
        )

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The Arrow interface, by which pandas, pyarrow, DuckDB and others read :meth:`to_frame`."""
        return self.to_frame().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        counts = [f"{len(self):,} histor{'y' if len(self) == 1 else 'ies'}", f"k={self.rows.shape[1]}"]
        counts += [f"{self.unknown.sum():,} unknown history items"] if self.unknown.any() else []
        counts += [f"{self.fallback.sum():,} ranked by popularity"] if self.fallback.any() else []
        return "\n".join([f"TopK({', '.join(counts)})", *str(self).splitlines()])

    def __str__(self) -> str:
        lines = []
        for at, items in enumerate(replace(self, rows=self.rows[:SHOWN]).items):
            shown = ", ".join(
                f"{printable(item)} {score:.4g}" for item, score in zip(items, self.scores[at], strict=False)
            )
            notes = ["by popularity"] if self.fallback[at] else []
            notes += [f"{self.unknown[at]:,} unknown in the history"] if self.unknown[at] else []
            told = f" ({'; '.join(notes)})" if notes else ""
            lines.append(f"{at}: {shown or 'nothing is left to recommend'}{told}")
        if len(self) > SHOWN:
            lines.append(f"... and {len(self) - SHOWN:,} more histories")
        return "\n".join(lines)


def top_of(
    found: list[tuple[np.ndarray, ...]], width: int, vocabulary: Vocabulary | None, histories: Sequence[History]
) -> TopK:
    """Chunks of (scores, rows, unknown, fallback) as one :class:`TopK`."""
    assert vocabulary is not None
    if not found:
        found = [
            (np.zeros((0, width), np.float32), np.zeros((0, width), np.int64), np.zeros(0, np.int64), np.zeros(0, bool))
        ]
    scores, rows, unknown, fallback = (np.concatenate(column) for column in zip(*found, strict=True))
    users = [one.user for one in histories]
    named = bool(users) and all(user is not None for user in users)
    return TopK(rows, scores, unknown, fallback, vocabulary, users if named else None)


def warn_of(shown: Shown, top: TopK, histories: Sequence[History], stacklevel: int) -> None:
    """Say how many ids of ``allow`` and ``deny`` are unknown and how many histories are ranked by popularity; and that
    their ids are of another type than the catalogue's, if none is known."""
    notes = shown.notes("catalogue")
    if top.fallback.any():
        count = int(top.fallback.sum())
        notes.append(f"{count:,} of {len(top):,} histories hold no known item and are ranked by popularity")
        notes += _of_another_type(top, histories) if top.fallback.all() else []
    for note in notes:
        warnings.warn(note, DataWarning, stacklevel=stacklevel)


def _of_another_type(top: TopK, histories: Sequence[History]) -> list[str]:
    """A sentence on the types of the ids of histories and catalogue, if they differ."""
    given = next((item for one in histories for item in one.items), None)
    kind = next((name for name, of in _KINDS.items() if isinstance(given, of)), type(given).__name__)
    if given is None or not len(top.vocabulary) or kind == top.vocabulary.kind:
        return []
    sample = top.vocabulary.raw(np.array([top.vocabulary.first])).tolist()[0]
    return [
        f"the histories have {kind} ids, such as {printable(repr(given))}, and the catalogue has "
        f"{top.vocabulary.kind} ids, such as {printable(repr(sample))}: pass raw ids as they are in the data"
    ]
