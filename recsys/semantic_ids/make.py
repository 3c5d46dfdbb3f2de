"""Semantic ids from item vectors, made once: fitted, encoded, told apart, judged, and kept as an artifact.

Items are taken in the order of their raw ids, so the codes depend on which items there are, and not on the order in
which the data name them. Legend: N items, M levels, F width of the vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from recsys.data.split import Split
from recsys.errors import DataError, DataWarning
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.semantic_ids.collisions import appended
from recsys.semantic_ids.inputs import Inputs, inputs, opened, sources_facts
from recsys.semantic_ids.quality import alarms, level_quality, reconstruction_error, tuple_quality
from recsys.semantic_ids.residual import ResidualKMeans
from recsys.semantic_ids.table import FORMAT, KIND, SemanticIds
from recsys.semantic_ids.tokenizer import Tokenizer, decoded
from recsys.storage.artifacts import artifact, artifacts_root
from recsys.storage.cache import cache_folder
from recsys.storage.parts import describe

if TYPE_CHECKING:
    from recsys.data.dataset import Dataset

ORDER = "raw id"  # of the items of a bucket: what the appended level counts in
_JUDGED = 1 << 16  # vectors whose reconstruction error is computed


def make_semantic_ids(
    data: Split | Dataset | Vocabulary,
    vectors: Vectors | str | Path | Sequence[Vectors | str | Path] | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    collisions: Literal["append", "keep"] | None = None,
    fit_on: Literal["all", "train"] | None = None,
    missing: Literal["mean", "refuse"] = "mean",
    largest_bucket: int = 256,
    strict: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
) -> SemanticIds:
    """Codes of all items of ``data``; a second call with the same inputs opens what is there.

    Args:
        data: a split, a data set, or a vocabulary of items.
        vectors: of the items: ``rs.embed(split)``, or the folder of vectors, of a run or of a bundle (the item vectors
            that it learned); several are put side by side, each scaled to total variance 1.
        tokenizer: default ``ResidualKMeans()``, three levels of 256 codes.
        collisions: what is done about items with equal codes: "append" a level that counts them by ascending raw id,
            or "keep" them alike; None appends where codes are ordered.
        fit_on: the items that the tokenizer learns from, all of them or those with a training event; None takes "train"
            for a split of cold items and "all" otherwise. All items get codes.
        missing: items without a vector get the "mean" of the others, counted in a warning, or are a reason to "refuse".
        largest_bucket: most items with equal codes that an appended level may tell apart.
        strict: raise where a level has collapsed, instead of warning.
        seed: of everything that is drawn.
        folder: where the artifact lies; None names one in the cache by data, tokenizer and inputs.

    Raises:
        DataError: an item has no vector (``missing="refuse"``), a vector is not finite, there are fewer different
            vectors than codes, more items have equal codes than a level can tell apart, or a level collapsed
            (``strict``).
        FileExistsError: ``folder`` holds something else.
    """
    tokenizer = ResidualKMeans() if tokenizer is None else tokenizer
    _check(collisions, fit_on, missing, largest_bucket, tokenizer)
    items, split = _items(data)
    fit_on = fit_on or ("train" if split is not None and split.protocol.get("name") == "cold-items" else "all")
    learnable = _learnable(items, split, fit_on)
    sources = _sources(vectors, tokenizer)
    told = sources_facts(sources)
    _warn_other_cut(told, split)
    collisions = collisions or ("append" if tokenizer.ordered else "keep")
    facts = {
        "items": items.digest, "vectors": told, "tokenizer": describe(tokenizer), "collisions": collisions,
        "order": ORDER, "largest_bucket": largest_bucket, "missing": missing, "fit_on": fit_on, "seed": seed,
        "fitted_items": hashlib.sha256(np.packbits(learnable).tobytes()).hexdigest(),
    }  # fmt: skip

    def fill(work: Path) -> dict[str, Any]:
        started = time.monotonic()
        made = _made(sources, items, learnable, tokenizer, collisions, missing, largest_bucket, seed)
        ids = SemanticIds.of(
            items.ids, made.codes, made.sizes, tokenizer.ordered, tokenizer.codewords, **made.manifest,
            seconds=round(time.monotonic() - started, 1), versions=_versions(),
        )  # fmt: skip
        return ids.write(work)

    path, _ = artifact(folder or _folder("" if split is None else split.name, facts), KIND, FORMAT, facts, fill)
    ids = SemanticIds.load(path)
    raise_alarms(ids, strict)
    return ids


def raise_alarms(ids: SemanticIds, strict: bool = False) -> None:
    """Warn of each level that has collapsed; ``strict``: raise DataError."""
    for alarm in ids.manifest.get("quality", {}).get("alarms", []):
        if strict:
            raise DataError(f"{alarm}: standardise the vectors, or use ResidualKMeans, which does not collapse")
        warnings.warn(f"semantic ids: {alarm}", DataWarning, stacklevel=3)


class _Made(NamedTuple):
    """What the artifact gets."""

    codes: np.ndarray  # (N, M) int32
    sizes: tuple[int, ...]
    manifest: dict[str, Any]


def _made(
    sources: Sequence[Vectors],
    items: Vocabulary,
    learnable: np.ndarray,
    tokenizer: Tokenizer,
    collisions: str,
    missing: str,
    largest_bucket: int,
    seed: int,
) -> _Made:
    every = np.ones(len(items), bool)
    given = inputs(sources, items, learnable, missing) if sources else Inputs(np.zeros((len(items), 1)), every, every)
    tokenizer.fit(given.matrix if given.fit.all() else given.matrix[given.fit], seed)
    codes = tokenizer.encode(given.matrix)
    quality = measured(codes, tokenizer.sizes)
    quality["reconstruction_error"] = _error(tokenizer, given, codes) if sources else None
    sizes = tokenizer.sizes
    if collisions == "append":
        codes, size = appended(codes, largest_bucket)
        sizes = (*sizes, size)
        quality["levels"].append({**level_quality(codes[:, -1], size), "appended": True})
    quality["after"] = tuple_quality(codes)
    manifest = {
        "quality": quality,
        "appended": collisions == "append",
        "without_vector": int((~given.known).sum()),
        "fitted": int(given.fit.sum()),
        "combined": "each centred and scaled to total variance 1" if len(sources) > 1 else None,
        "tokenizer_facts": getattr(tokenizer, "facts", {}),
    }
    return _Made(codes, sizes, manifest)


def measured(codes: np.ndarray, sizes: Sequence[int]) -> dict[str, Any]:
    """The part of the quality that ``codes`` (N, M) alone tell, before a level is appended."""
    levels = [level_quality(codes[:, level], size) for level, size in enumerate(sizes)]
    return {"levels": levels, "before": tuple_quality(codes), "alarms": alarms(levels, len(codes))}


def _error(tokenizer: Tokenizer, given: Inputs, codes: np.ndarray) -> float | None:
    rows = np.flatnonzero(given.known)
    rows = rows[:: -(-len(rows) // _JUDGED)]
    found = decoded(tokenizer, codes[rows])
    return None if found is None else reconstruction_error(given.matrix[rows], found)


def _check(collisions: Any, fit_on: Any, missing: Any, largest_bucket: int, tokenizer: Any) -> None:
    for name, value, known in (
        ("collisions", collisions, ("append", "keep", None)),
        ("fit_on", fit_on, ("all", "train", None)),
        ("missing", missing, ("mean", "refuse")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, found {value!r}")
    if largest_bucket < 1:
        raise ValueError(f"largest_bucket must be at least 1, found {largest_bucket}")
    if isinstance(tokenizer, type) or not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            "tokenizer must have fit, encode, sizes, codewords and ordered, "
            f"as ResidualKMeans() has; found {tokenizer!r:.60}"
        )


def _sources(vectors: Any, tokenizer: Tokenizer) -> list[Vectors]:
    """The vectors, none for a tokenizer that does not read them."""
    if not getattr(tokenizer, "reads_vectors", True):
        return []
    if sources := opened(vectors):
        return sources
    raise ValueError("vectors are needed, such as rs.embed(split), or the folder of a run with item vectors")


def _items(data: Any) -> tuple[Vocabulary, Split | None]:
    """The items of ``data`` by ascending raw id, from row 0; and the split, if it is one."""
    found = data if isinstance(data, Vocabulary) else data.items if isinstance(data, Split) else None
    if found is None:
        if not hasattr(data, "prepare"):
            raise TypeError(f"data must be a split, a data set or a vocabulary of items, found {data!r:.80}")
        found = data.prepare().items
    return Vocabulary(np.sort(found.ids[found.alive]), first=0), data if isinstance(data, Split) else None


def _learnable(items: Vocabulary, split: Split | None, fit_on: str) -> np.ndarray:
    """(N,) bool: the items that the tokenizer may learn from."""
    if fit_on == "all":
        return np.ones(len(items), bool)
    if split is None:
        raise ValueError('fit_on="train" needs a split: it says which items occur in training')
    found: np.ndarray = split.train.item_counts()[split.items.rows(items.ids)] > 0
    return found


def _warn_other_cut(sources: Sequence[dict[str, Any]], split: Split | None) -> None:
    """Vectors of a model that learned from other events may know what this split holds out."""
    for one in sources:
        if split is not None and one.get("cut") not in (None, split.cut.digest):
            warnings.warn(
                f"the vectors of {one.get('model')} were learned from another split than this one: they may know "
                "events that are held out here; train that model on this split",
                DataWarning,
                stacklevel=3,
            )


def ids_folder(name: str, kind: str, key: str) -> Path:
    """Where the cache keeps the codes of the data ``name``."""
    plain = re.sub(r"[^\w.]+", "-", f"{name or 'items'}-{kind}").strip("-.")
    return artifacts_root(cache_folder()) / "semantic-ids" / f"{plain}-{key[:8]}"


def _folder(name: str, facts: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return ids_folder(name, str(facts["tokenizer"]["class"]).rpartition(":")[2].lower(), key)


def _versions() -> dict[str, str]:
    found = {}
    for package in ("recsys", "numpy", "torch", "faiss-cpu", "faiss-gpu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
