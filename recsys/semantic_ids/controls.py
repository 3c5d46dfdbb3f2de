"""Controls: tables of codes that lost what codes should give a model, and kept the rest.

Train the same model on a control and compare by a paired test: the difference is what the content of the codes
contributes, not the level that the model reaches. A model over random codes is a hashing model, and better than chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recsys.randomness import numpy_generator
from recsys.semantic_ids.collisions import appended
from recsys.semantic_ids.make import ids_folder, measured
from recsys.semantic_ids.quality import level_quality, tuple_quality
from recsys.semantic_ids.table import FORMAT, KIND, SemanticIds
from recsys.storage.artifacts import artifact


def permuted(ids: SemanticIds, seed: int = 0) -> SemanticIds:
    """The same tuples, each at another item, drawn by ``seed``: breaks which content has which codes, nothing else."""
    order = numpy_generator(seed, "permuted codes").permutation(len(ids))
    return _control(ids, ids.codes[order], ids.sizes, "permuted", seed)


def shuffled_columns(ids: SemanticIds, seed: int = 0) -> SemanticIds:
    """Each level permuted by itself: codes are used as often as before, and say nothing together.

    A level that was appended to tell items apart is counted again.
    """
    columns = ids.codes[:, : _told(ids)].copy()
    for level in range(columns.shape[1]):
        columns[:, level] = columns[numpy_generator(seed, "shuffled codes", level).permutation(len(ids)), level]
    return _again(ids, columns, "shuffled columns", seed)


def drawn(ids: SemanticIds, seed: int = 0) -> SemanticIds:
    """Codes drawn evenly, with the sizes of ``ids``; a level that was appended is counted again."""
    sizes = ids.sizes[: _told(ids)]
    columns = [numpy_generator(seed, "drawn codes", m).integers(0, size, len(ids)) for m, size in enumerate(sizes)]
    return _again(ids, np.stack(columns, axis=1).astype(np.int32), "random", seed)


def make_control(ids: SemanticIds, name: str, seed: int = 0, folder: str | Path | None = None) -> SemanticIds:
    """A control as an artifact: "permuted", "shuffled" (:func:`shuffled_columns`) or "random" (:func:`drawn`).

    Args:
        folder: where it lies; None names one in the cache by the codes, the control and the seed.

    Raises:
        ValueError: there is no such control.
    """
    known = {"permuted": permuted, "shuffled": shuffled_columns, "random": drawn}
    if name not in known:
        raise ValueError(f"control must be one of {', '.join(known)}, found {name!r}")
    facts = {"control": name, "seed": seed, "of": ids.digest}
    path, _ = artifact(
        folder or ids_folder("control", f"{name}-{seed}", ids.digest), KIND, FORMAT, facts,
        lambda work: known[name](ids, seed).write(work),
    )  # fmt: skip
    return SemanticIds.load(path)


def _told(ids: SemanticIds) -> int:
    """How many levels the tokenizer made."""
    return ids.levels - bool(ids.manifest.get("appended"))


def _again(ids: SemanticIds, columns: np.ndarray, name: str, seed: int) -> SemanticIds:
    sizes = ids.sizes[: columns.shape[1]]
    if columns.shape[1] == ids.levels:
        return _control(ids, columns, sizes, name, seed)
    order = np.argsort(ids.ids, kind="stable")  # by raw id, as they were counted before
    codes = np.empty((len(ids), ids.levels), np.int32)
    codes[order], size = appended(columns[order], len(ids))
    return _control(ids, codes, (*sizes, size), name, seed)


def _control(ids: SemanticIds, codes: np.ndarray, sizes: tuple[int, ...], name: str, seed: int) -> SemanticIds:
    told = _told(ids)
    quality = measured(codes[:, :told], sizes[:told])
    quality["levels"] += [{**level_quality(codes[:, m], sizes[m]), "appended": True} for m in range(told, len(sizes))]
    quality["after"] = tuple_quality(codes)
    manifest: dict[str, Any] = {"appended": bool(ids.manifest.get("appended")), "true_facts": ids.manifest.get("facts")}
    return SemanticIds.of(
        ids.ids, codes, sizes, ids.ordered, control=name, seed=seed, true_digest=ids.digest, quality=quality, **manifest
    )
