"""What a faiss index from a file must be before it is searched: settings within reason, links that lead somewhere.

Faiss follows the links of a graph without looking whether they lead out of its arrays, so a file that was changed
would end the process. Everything here takes faiss and its objects as they come; ``recsys.index.search`` imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import printable

KINDS = {"exact": "IndexFlatIP", "hnsw": "IndexHNSWFlat"}
_MOST = 2**20
_ROWS = 1 << 16  # vectors checked at a time
_one_at_a_time = threading.Lock()


def checked_settings(found: Any, total: int) -> dict[str, Any]:
    """The settings of a saved index, so that what is asked of faiss later fits an index of ``total`` vectors.

    Raises:
        ValueError: a setting is missing or out of range.
    """
    if not isinstance(found, dict) or found.get("index") not in KINDS:
        raise ValueError(f'the kind must be "exact" or "hnsw", found {printable(repr(found))}')
    most = {"m": 4096, "ef_construction": max(total, _MOST), "ef_search": max(total, _MOST)}
    for name in most if found["index"] == "hnsw" else ():
        if type(found.get(name)) is not int or not 1 <= found[name] <= most[name]:
            raise ValueError(f"{name} must be in 1..{most[name]:,}, found {printable(repr(found.get(name)))}")
    if type(found.get("seed")) is not int:
        raise ValueError(f"seed must be a whole number, found {printable(repr(found.get('seed')))}")
    return dict(found)


def read_index(faiss: Any, path: Path) -> Any:
    """The index in a file; faiss takes no more memory for an array than the file has bytes, if it can be told so."""
    with _limited(faiss, path.stat().st_size + 1024):
        return faiss.read_index(str(path))


def check_graph(faiss: Any, graph: Any, kind: str) -> None:
    """Raise ValueError unless an index is of this kind, compares by inner product, and is whole."""
    if type(graph).__name__ != KINDS[kind] or graph.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"it is a {type(graph).__name__}, no {kind} index of inner products")
    flat = graph if kind == "exact" else faiss.downcast_index(graph.storage)
    total, dim = int(graph.ntotal), int(graph.d)
    if type(flat).__name__ not in ("IndexFlatIP", "IndexFlat") or (int(flat.ntotal), int(flat.d)) != (total, dim):
        raise ValueError("its vectors are others than its graph is of")
    if flat.codes.size() != 4 * total * dim or dim < 1:
        raise ValueError("it does not hold the vectors that it counts")
    for first in range(0, total, _ROWS):
        count = min(_ROWS, total - first)
        if not bool(np.isfinite(flat.reconstruct_n(first, count)).all()):
            raise ValueError("it holds vectors that are NaN or infinite")
    if kind == "hnsw" and total:
        _check_links(faiss, graph.hnsw, total)


def _check_links(faiss: Any, hnsw: Any, total: int) -> None:
    levels, offsets, links = (_view(faiss, getattr(hnsw, name)) for name in ("levels", "offsets", "neighbors"))
    ends = _view(faiss, hnsw.cum_nneighbor_per_level).astype(np.int64)
    entry, top = int(hnsw.entry_point), int(hnsw.max_level)
    whole = len(levels) == total and len(offsets) == total + 1 and len(ends) > 1 and ends[0] == 0
    whole = whole and bool((np.diff(ends) >= 0).all() and (levels >= 1).all() and (levels < len(ends)).all())
    whole = whole and offsets[0] == 0 and offsets[-1] == len(links)
    whole = whole and bool((np.diff(offsets.astype(np.int64)) == ends[levels]).all())
    whole = whole and 0 <= entry < total and levels[entry] == top + 1 == levels.max()
    if not whole or bool((links < -1).any() or (links >= total).any()):
        raise ValueError("its links lead out of it")
    for layer in range(1, top + 1):
        starts = offsets[:-1][levels > layer].astype(np.int64)[:, None] + np.arange(ends[layer], ends[layer + 1])
        reached = links[starts.ravel()]
        if bool((levels[reached[reached >= 0]] <= layer).any()):
            raise ValueError("its links lead out of a layer")


def _view(faiss: Any, vector: Any) -> np.ndarray:
    found: np.ndarray = faiss.rev_swig_ptr(vector.data(), vector.size()) if vector.size() else np.zeros(0, np.int64)
    return found


@contextmanager
def _limited(faiss: Any, size: int) -> Iterator[None]:
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # before faiss 1.14
        yield
        return
    with _one_at_a_time:  # the limit is the process's
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(size)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
