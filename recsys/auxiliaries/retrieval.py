"""Semantic neighbours: the items, and the training histories, whose text vectors are nearest (arXiv 2503.04162).

The released code of SRA-CL drops the first hit of each search, so the nearest neighbours of a prefix are mostly longer
prefixes of the same user, which contain its target, and of two equal texts each may find itself. Here a row never finds
itself (left out by its number, not by its rank among the hits), nor, unless told to, its own user's rows or exact
twins of its window.

Legend: N items (rows 1..N), Q histories, D width of the vectors, k neighbours.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.auxiliaries.histories import Histories as Histories
from recsys.auxiliaries.histories import fingerprint, unit
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.index.neighbours import nearest_rows
from recsys.randomness import numpy_generator

KIND, VERSION = "recsys.neighbours", 2
SPARE = 32  # hits fetched beyond k, for those that are left out
HITS = 1 << 26  # held at a time


@dataclass(frozen=True)
class Texts:
    """Text vectors by row, and what a cached table made of them must know."""

    matrix: np.ndarray  # (n, D) float32
    known: np.ndarray  # (n,) bool
    facts: dict[str, Any]
    counts: dict[str, Any]  # and names, for the report

    @classmethod
    def none(cls, size: int) -> Texts:
        """``size`` rows without a vector."""
        return cls(np.zeros((size, 1), np.float32), np.zeros(size, bool), {}, {})

    @classmethod
    def read(cls, folder: str, vocabulary: Vocabulary | None, of: str, shuffle: int | None = None) -> Texts:
        """The vectors in ``folder`` of all ids of ``vocabulary``; those that have none are counted on standard error.

        Args:
            of: what they are: "items", "users".
            shuffle: a seed, to deal them out anew: texts without their meaning, as a control.

        Raises:
            FileNotFoundError, DataError: there are no such vectors, or they are those of other data.
            ValueError: there is no vocabulary.
        """
        if vocabulary is None:
            raise ValueError(f"vectors of {of} belong to raw ids, but the context has no vocabulary of {of}")
        vectors = Vectors.load(folder)
        matrix, known = vectors.aligned(vocabulary)
        missing = len(vocabulary) - int(known.sum())
        if missing:
            note = f"{missing:,} of {len(vocabulary):,} {of} have no text vector: they get no semantic neighbours"
            print(note, file=sys.stderr, flush=True)
        if shuffle is not None:
            matrix = shuffled(matrix, known, shuffle)
        facts = {of: fingerprint(matrix, known), f"model of {of}": vectors.manifest.get("model", "")}
        counts: dict[str, Any] = {of: len(vocabulary), f"{of} without a text vector": missing}
        counts[f"model of {of}"] = facts[f"model of {of}"]
        counts[f"texts of {of}"] = vectors.manifest.get("label", f"those of the {of}")
        return cls(matrix, known, facts, counts | ({f"vectors of {of}": "shuffled"} if shuffle is not None else {}))


def item_neighbours(vectors: np.ndarray, known: np.ndarray, k: int, kind: str = "auto", seed: int = 0) -> np.ndarray:
    """(N+1, k) int32: the ``k`` other items of largest cosine, best first; 0 throughout for an item without a vector.

    Args:
        vectors: (N+1, D) by item row.
        known: (N+1,) bool, which of them are vectors; row 0 never is.
        kind, seed: of the search, as in :func:`recsys.index.neighbours.nearest_rows`.

    Raises:
        ValueError: ``k`` is not below the number of items with a vector.
    """
    vectors = unit(vectors)
    chosen = np.flatnonzero(known & vectors.any(1))
    chosen = chosen[chosen > 0]
    found = _others(vectors[chosen], k, [], "items with a vector", kind, seed)
    table = np.zeros((len(vectors), k), np.int32)
    table[chosen] = np.where(found < 0, 0, chosen[found])
    return table


def history_neighbours(
    vectors: np.ndarray,
    k: int,
    apart: Sequence[np.ndarray] = (),
    kind: str = "auto",
    seed: int = 0,
    twins: np.ndarray | None = None,
) -> np.ndarray:
    """(Q, k) int32: the ``k`` other rows of largest cosine, best first.

    A row with fewer than ``k`` admissible ones repeats what it has, and is -1 throughout if there is none or if its
    vector is zero; :func:`short_rows` counts both.

    Args:
        vectors: (Q, D); a zero row has no neighbours and is not one.
        apart: labels (Q,); rows that share one (the user) are not each other's neighbours.
        kind, seed: of the search, as in :func:`recsys.index.neighbours.nearest_rows`.
        twins: a further such label, of rows that have equal vectors as well, which spares the search the many windows
            of one best seller.

    Raises:
        ValueError: ``k`` is not below the number of rows with a vector.
    """
    vectors = unit(vectors)
    chosen = np.flatnonzero(vectors.any(1))
    labels, same = [label[chosen] for label in apart], None if twins is None else twins[chosen]
    found = _others(vectors[chosen], k, labels, "training histories", kind, seed, same)
    table = np.full((len(vectors), k), -1, np.int32)
    table[chosen] = np.where(found < 0, -1, chosen[found])
    return table


def short_rows(table: np.ndarray) -> tuple[int, int]:
    """How many rows of a table of neighbours (Q, k) have none, and how many some but fewer than k different ones."""
    ordered = np.sort(table, axis=1)
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    none = table[:, 0] < 0
    return int(none.sum()), int(((different < table.shape[1]) & ~none).sum())


def cached(folder: Path | str | None, facts: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The table that ``make`` gives, kept below ``folder`` under its ``facts`` and read from there the next time.

    Args:
        folder: None keeps nothing.
    """
    if folder is None:
        return make()
    from recsys.storage.artifacts import artifact

    def fill(partial: Path) -> dict[str, Any]:
        np.save(partial / "table.npy", make(), allow_pickle=False)
        return {}

    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path, _ = artifact(Path(folder) / name, KIND, VERSION, facts, fill)
    table: np.ndarray = np.load(path / "table.npy", allow_pickle=False)
    return table


def neighbours_by_title(histories: Histories, table: np.ndarray, split: Any, count: int = 5) -> list[dict[str, str]]:
    """The last five items of a few rows, spread over all, and of their three nearest: what retrieval finds.

    Args:
        table: (Q, k) neighbours.
        split: the data, for titles (its first text column where there is no "title", raw ids where there is no text).
    """
    having = np.flatnonzero(table[:, 0] >= 0)
    chosen = having[np.linspace(0, len(having) - 1, min(count, len(having))).astype(int)]
    asked = np.concatenate([chosen[:, None], table[chosen][:, :3]], 1)
    batch = histories.batch(asked.ravel())
    ends = zip(batch.ids.numpy(), batch.lengths.tolist(), strict=True)
    texts = iter([_titles(ids[max(length - 5, 0) : length], split) for ids, length in ends])
    heads = ["history", *(f"neighbour {rank}" for rank in range(1, asked.shape[1]))]
    return [{head: next(texts) for head in heads} for _ in chosen]


def shuffled(vectors: np.ndarray, known: np.ndarray, seed: int) -> np.ndarray:
    """``vectors`` with those that are ``known`` dealt out anew: the control that has texts but not their meaning."""
    rows, dealt = np.flatnonzero(known), vectors.copy()
    dealt[rows] = vectors[numpy_generator(seed, "shuffled semantics").permutation(rows)]
    return dealt


def _others(
    vectors: np.ndarray,
    k: int,
    apart: list[np.ndarray],
    what: str,
    kind: str,
    seed: int,
    twins: np.ndarray | None = None,
) -> np.ndarray:
    """(n, k) int64 nearest rows that are neither the row itself nor share a label with it; see history_neighbours.

    Searched wider and wider for those rows of which too many hits are left out, at most so far that all of these could
    have come first.
    """
    total = len(vectors)
    if not 1 <= k < total:
        raise ValueError(f"k={k} neighbours are wanted, and there are {total} {what}: k must lie in 1..{total - 1}")
    among = np.arange(total) if twins is None else _enough(twins, apart, k)
    searched = vectors if len(among) == total else vectors[among]
    apart = [*apart, *([] if twins is None else [twins])]
    shares = (np.bincount(label[among], minlength=label.max() + 1)[label] for label in apart)
    widest = np.minimum(len(among), k + 1 + sum(shares, np.zeros(total, int)))
    found, left, width = np.full((total, k), -1, np.int64), np.arange(total), k + 1 + (SPARE if apart else 0)
    while len(left):
        width = min(width, len(among))
        for first in range(0, len(left), max(HITS // width, 1)):
            rows = left[first : first + max(HITS // width, 1)]
            hits, _ = nearest_rows(vectors[rows], searched, width, kind=kind, seed=seed, label=f"neighbours: {what}")
            hits = np.where(hits >= 0, among[hits], -1)
            fine = (hits >= 0) & (hits != rows[:, None])
            for label in apart:
                fine &= label[hits] != label[rows][:, None]
            chosen = np.argsort(~fine, axis=1, kind="stable")[:, :k]
            best = np.where(np.take_along_axis(fine, chosen, 1), np.take_along_axis(hits, chosen, 1), -1)
            found[rows, : best.shape[1]] = best
        left = left[(found[left, -1] < 0) & (width < widest[left])]
        width *= 4
    count = (found >= 0).sum(1, keepdims=True)
    return np.take_along_axis(found, np.arange(k) % np.maximum(count, 1), 1)


def _enough(twins: np.ndarray, apart: list[np.ndarray], k: int) -> np.ndarray:
    """The rows that need to be searched where rows of one twin number are equal: the first few of each number.

    So many that any row finds ``k`` of them that share no label with it.
    """
    both = (twins.astype(np.int64) * (int(label.max()) + 1) + label for label in apart)
    most = k + sum(int(np.unique(pair, return_counts=True)[1].max()) for pair in both)
    order = np.argsort(twins, kind="stable")
    sizes = np.unique(twins, return_counts=True)[1]
    rank = np.arange(len(twins)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < most])


def _titles(items: np.ndarray, split: Any) -> str:
    text = split.item_text or {}
    column = text.get("title", next(iter(text.values()), None))
    return "; ".join(str(name) for name in (split.items.raw(items) if column is None else column[items]))
