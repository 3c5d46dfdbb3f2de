"""Item vectors that semantic ids are made of: one table, from one or several sources, in the order of the raw ids.

Several sources are put side by side, each centred and scaled to total variance 1, so that none counts more for being
wider or longer. Items that a source does not know get its mean, so that it says nothing of them.

Legend: N items, F width, S sources.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recsys.errors import DataError, DataWarning
from recsys.ids.saved_vectors import saved_vectors
from recsys.ids.vectors import Vectors, check_finite
from recsys.ids.vocabulary import Vocabulary

_CHUNK = 1 << 14  # rows copied at a time


class Inputs(NamedTuple):
    """What a tokenizer gets."""

    matrix: np.ndarray  # (N, F) float32
    known: np.ndarray  # (N,) bool: items that have a vector in each source
    fit: np.ndarray  # (N,) bool: items that the tokenizer learns from


def opened(vectors: Any) -> list[Vectors]:
    """The sources that ``vectors`` names: tables of vectors, or folders of vectors, of a run or of a bundle."""
    several = list(vectors) if isinstance(vectors, (list, tuple)) else [] if vectors is None else [vectors]
    for one in several:
        if not isinstance(one, (Vectors, str, Path)):
            raise TypeError(
                "vectors must be rs.Vectors, the folder of vectors, a run or a bundle, or a list of them; "
                f"found {one!r:.80}"
            )
    return [one if isinstance(one, Vectors) else saved_vectors(one) for one in several]


def sources_facts(sources: Sequence[Vectors]) -> list[dict[str, Any]]:
    """What each source is, as JSON: model, label of its texts, width, hash of ids and numbers."""
    named = ("model", "revision", "label", "of", "cut")
    return [
        {"width": one.width, "digest": one.digest(), **{key: one.manifest[key] for key in named if key in one.manifest}}
        for one in sources
    ]


def inputs(sources: Sequence[Vectors], items: Vocabulary, learnable: np.ndarray, missing: str) -> Inputs:
    """The vectors of ``items`` (N), of which those that are ``learnable`` (N,) bool decide means and scales.

    Raises:
        DataError: a vector is not finite, no item is learnable and has one, or some have none and ``missing`` is
            "refuse".
    """
    found = [_aligned(one, items) for one in sources]
    known = np.logical_and.reduce([there for _, there in found])
    fit = known & learnable
    if not fit.any():
        raise DataError(
            f"none of the {int(learnable.sum()):,} items that codes are fitted on has a vector: are they of other data?"
        )
    if not known.all():
        _tell_missing(items, known, missing)
    parts = []
    for matrix, there in found:
        mean, variance = _moments(matrix, fit)
        matrix[~there] = mean
        if len(found) > 1:
            matrix -= mean
            matrix /= np.float32(variance**0.5 if variance > 0 else 1)
        parts.append(matrix)
    return Inputs(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), known, fit)


def _aligned(source: Vectors, items: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    matrix, there = source.aligned(items)
    matrix, there = matrix[items.first :], there[items.first :]
    for rows in _chunks(there):
        check_finite(items.ids[rows], matrix[rows])
    return matrix, there


def _moments(matrix: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean (F,) float32 of the rows of ``matrix`` (N, F) that are ``fit`` (N,), and their total variance."""
    count = int(fit.sum())
    mean = sum((matrix[rows].sum(0, dtype=np.float64) for rows in _chunks(fit)), np.zeros(matrix.shape[1])) / count
    squares = sum(float(((matrix[rows] - mean) ** 2).sum()) for rows in _chunks(fit))
    return mean.astype(np.float32), squares / count


def _chunks(chosen: np.ndarray) -> list[np.ndarray]:
    """The rows that are ``chosen`` (N,) bool, in pieces of which a copy is small."""
    rows = np.flatnonzero(chosen)
    return [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]


def _tell_missing(items: Vocabulary, known: np.ndarray, missing: str) -> None:
    count, sample = int((~known).sum()), items.ids[~known][:3].tolist()
    told = f"{count:,} of {len(items):,} items have no vector, such as {sample}"
    if missing == "refuse":
        raise DataError(f'{told}: give them a text (embed(stand_in=...)) or a vector, or pass missing="mean"')
    warnings.warn(f"{told}: the mean of the others stands in, so they share their codes", DataWarning, stacklevel=4)
