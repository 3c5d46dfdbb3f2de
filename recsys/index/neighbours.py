"""Rows of vectors that are nearest to others, exactly or through the cells of an inverted file."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys.index.search import checked_vectors, load_faiss
from recsys.progress import Progress
from recsys.randomness import derive_seed

EXACT_WORK = 2e12  # multiply-adds up to which nearest_rows compares everything with everything
PROBE_ROWS, PROBE_RECALL = 1000, 0.95  # how an inverted file is checked, and what it must find


def nearest_rows(
    queries: np.ndarray, rows: np.ndarray, k: int, kind: str = "auto", seed: int = 0, label: str = "neighbours"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of largest inner product for each query: (row numbers (Q, k), products (Q, k)), -1 where none.

    Args:
        queries: (Q, D) vectors; of unit length if cosine is meant.
        rows: (M, D) vectors.
        kind: "exact" compares all, "ivf" the rows of the nearest cells (as many as it takes to find 95% of the true
            neighbours of a sample of queries, which is checked), "auto" the former while it is quick.
        seed: of the cells.
        label: what the progress bar calls it.

    Raises:
        ValueError: ``k`` is above the number of rows, widths differ, or ``kind`` is unknown.
    """
    queries, rows = checked_vectors(queries, None), checked_vectors(rows, np.shape(queries)[1])
    if not 1 <= k <= len(rows):
        raise ValueError(f"k must lie in 1..{len(rows)}, the rows to choose from; found {k}")
    if kind not in ("auto", "exact", "ivf"):
        raise ValueError(f"kind must be auto, exact or ivf, found {kind!r}")
    quick = len(queries) * len(rows) * queries.shape[1] <= EXACT_WORK
    graph: Any = load_faiss().IndexFlatIP(rows.shape[1])
    graph.add(rows)
    if kind == "ivf" or (kind == "auto" and not quick):
        graph = _cells(rows, queries, k, graph, seed)
    found, products = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    size = max(1, int(2e10 / max(len(rows) * rows.shape[1], 1)))
    with Progress(len(queries), label, "rows", enabled=len(queries) > size) as bar:
        for first in range(0, len(queries), size):
            part = slice(first, min(first + size, len(queries)))
            products[part], found[part] = graph.search(queries[part], k)
            bar.advance(part.stop - part.start)
    return found, products


def _cells(rows: np.ndarray, queries: np.ndarray, k: int, flat: Any, seed: int) -> Any:
    """An inverted file over ``rows`` that finds ``PROBE_RECALL`` of what ``flat`` finds for a sample of the queries."""
    faiss = load_faiss()
    cells = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 40))
    graph = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    graph.cp.seed = derive_seed(seed, "cells") % 2**31
    graph.train(rows)
    graph.add(rows)
    draw = np.random.default_rng(seed).choice(len(queries), min(PROBE_ROWS, len(queries)), replace=False)
    _, truth = flat.search(queries[draw], k)
    graph.nprobe = min(8, cells)
    while graph.nprobe < cells:
        _, found = graph.search(queries[draw], k)
        hits = sum(len(np.intersect1d(one, other)) for one, other in zip(found, truth))
        if hits >= PROBE_RECALL * truth.size:
            break
        graph.nprobe = min(2 * graph.nprobe, cells)
    return graph
