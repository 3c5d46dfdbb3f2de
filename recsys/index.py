"""Nearest items by inner product, exactly or through an HNSW graph, addressed by raw item ids.

The only file that imports faiss, and only when an index is made or loaded. FAISS counts vectors 0, 1, 2 ...: those
are called slots here, and ``ids[slot]`` is the raw id. What FAISS offers decides how things are done: an HNSW graph
forgets nothing, so a removed item is a tombstone until enough of them make a rebuild worth it; what a request denies is
fetched beyond k and dropped; what it allows is scored exactly, without the graph.

faiss and torch each bring an OpenMP runtime. On Linux both wheels ship their own libgomp, and running both with several
threads in one process works in either import order (the tests do it); each obeys ``OMP_NUM_THREADS``.

Legend: N items, D width, B queries, K cut-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recsys.errors import DataError, DataWarning
from recsys.folders import read_manifest, write_folder
from recsys.progress import Progress
from recsys.randomness import derive_seed, numpy_generator
from recsys.slots import Slots
from recsys.storage.files import replace
from recsys.storage.graphs import check_graph, checked_settings, read_index
from recsys.storage.reading import reading

KIND, FORMAT = "recsys.index", 1
KINDS = ("exact", "hnsw")
SCAN_BYTES = 128 * 2**20  # scores held at a time when a query is compared with everything
OVERFETCH = 2048  # a query that must fetch more than this is compared with everything instead
REBUILD = 0.2  # share of tombstones at which a graph is built anew
LOW_RECALL = 0.9
FILE = "index.faiss"


class Hits(NamedTuple):
    """Neighbours of B queries, best first; the last ``missing[b]`` entries of row b are padding."""

    ids: np.ndarray  # (B, K) raw ids, -1 (int ids) or None (str ids) at padding
    scores: np.ndarray  # (B, K) float32 inner products, -inf at padding
    missing: np.ndarray  # (B,) int64


class Index:
    """Item vectors that answer ``search`` by inner product; make one with :meth:`build` or :meth:`load`.

    >>> index = Index.build(np.eye(3, dtype="f4"), ["a", "b", "c"])
    >>> index.search(np.array([[0.1, 0.9, 0.5]], "f4"), k=2).ids.tolist()
    [['b', 'c']]
    """

    def __init__(self, graph: Any, slots: Slots, settings: dict[str, Any]) -> None:
        self._faiss, self._graph, self._settings = _faiss(), graph, settings
        self.slots = slots  # raw id <-> slot
        self.recall: dict[str, Any] = {}  # k, value, queries, count: as measured by measure_recall

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        ids: Sequence[Any] | np.ndarray,
        kind: str = "exact",
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 128,
        seed: int = 0,
        recall_k: int = 10,
        recall_queries: np.ndarray | None = None,
    ) -> Index:
        """An index of ``vectors`` (N, D), ``vectors[i]`` belonging to ``ids[i]`` (all ints or all strings).

        Args:
            kind: "exact" compares a query with everything; "hnsw" walks a graph (Malkov & Yashunin 2018), fast in large
                catalogues and approximate.
            m, ef_construction, ef_search: links per item, effort at building and at searching (hnsw only).
            seed: of the graph's levels and of the recall sample; with several threads the graph still varies a little.
            recall_k, recall_queries: a graph's recall@k against exact search is measured on these (B, D) queries, best
                real user vectors, otherwise on a sample of the item vectors, and kept in :attr:`recall`.

        Raises:
            DataError: vectors that are not finite or not (N, D), ids that repeat or mix types.
        """
        if kind not in KINDS:
            raise ValueError(f'kind must be "exact" or "hnsw", found {kind!r}')
        vectors = _vectors(vectors, None)
        _match(vectors, ids)
        settings = {"index": kind, "seed": seed}
        if kind == "hnsw":
            settings |= {"m": m, "ef_construction": ef_construction, "ef_search": ef_search}
        slots = Slots(ids)
        index = cls(_graph(vectors, settings), slots, settings)
        index.measure_recall(recall_k, recall_queries)
        if index.recall["value"] < LOW_RECALL:
            warnings.warn(
                f"the graph finds {index.recall['value']:.1%} of the true top {index.recall['k']}: raise ef_search "
                f"(now {ef_search}) or m (now {m}), or use the exact index",
                DataWarning,
                stacklevel=2,
            )
        return index

    def __len__(self) -> int:
        return int(self.slots.alive.sum())

    @property
    def kind(self) -> str:
        """ "exact" or "hnsw"."""
        return str(self._settings["index"])

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return int(self._graph.d)

    @property
    def vectors(self) -> np.ndarray:
        """(slots, D) float32, a view of what faiss holds, tombstones included; valid until items are added."""
        flat = self._graph if self.kind == "exact" else self._faiss.downcast_index(self._graph.storage)
        if flat.ntotal == 0:
            return np.zeros((0, self.dim), np.float32)
        view: np.ndarray = self._faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * self.dim).reshape(-1, self.dim)
        return view

    def search(
        self,
        queries: np.ndarray,
        k: int = 10,
        allow: Sequence[Any] | None = None,
        deny: Sequence[Sequence[Any]] | None = None,
    ) -> Hits:
        """The ``k`` items with the largest inner product with each of ``queries`` (B, D).

        Args:
            allow: raw ids; nothing else is returned. They are scored exactly; unknown ones are counted in a warning.
            deny: per query, raw ids that must not be returned (unknown ones do no harm). ``k`` items come back all the
                same as long as that many are left.

        Raises:
            ValueError: ``k`` is not in 1..N, or the queries have another width.
        """
        queries = _vectors(queries, self.dim)
        allowed = None if allow is None else self._allowed(allow)
        denied = None
        if deny is not None:
            if len(deny) != len(queries):
                raise ValueError(f"deny must hold one list per query: {len(queries)} expected, {len(deny)} found")
            if any(isinstance(one, (str, bytes)) for one in deny):
                raise TypeError("deny must hold one list of ids per query, and holds ids themselves")
            owner = np.repeat(np.arange(len(deny)), [len(one) for one in deny])
            held = self.slots.find(list(chain.from_iterable(deny)))
            denied = (owner[held >= 0], held[held >= 0])
        slots, scores = self.nearest(queries, k, allowed, denied)
        return Hits(self.slots.raw(slots), scores, (slots < 0).sum(1))

    def similar(self, ids: Sequence[Any], k: int = 10) -> Hits:
        """The ``k`` items with the largest inner product with each given item, itself left out."""
        return self.search(self.vectors[self.slots.known(ids)], k, deny=[[one] for one in ids])

    def nearest(
        self,
        queries: np.ndarray,
        k: int,
        allow: np.ndarray | None = None,
        deny: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`search` in slots: ``allow`` (n,) slots, ``deny`` pairs (query, slot); gives slots (or -1), scores."""
        if not 1 <= k <= len(self):
            raise ValueError(f"k must be between 1 and the {len(self)} items of the index, found {k}")
        total = len(self.slots)
        slots, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        deny = _unique_pairs(deny, total)
        counts = np.bincount(deny[0], minlength=len(queries))
        left = np.arange(len(queries))
        if allow is None:
            fetch = np.exp2(np.ceil(np.log2(k + counts))).astype(np.int64)
            fetch[counts == 0] = k
            for size in np.unique(fetch[fetch <= min(OVERFETCH, len(self))]):
                rows = np.flatnonzero(fetch == size)
                slots[rows], scores[rows] = _drop(self._ask(queries[rows], int(size)), rows, deny, k, total)
            left = np.flatnonzero((slots >= 0).sum(1) < np.minimum(k, len(self) - counts))
        for rows in _blocks(left, total if allow is None else len(allow)):
            slots[rows], scores[rows] = self._scan(queries[rows], k, allow, _of_rows(deny, rows, len(queries)))
        return slots, scores

    def add(self, ids: Sequence[Any] | np.ndarray, vectors: np.ndarray) -> None:
        """Put further items in.

        Raises:
            DataError: an id is in the index already (:meth:`remove` it first), or as in :meth:`build`.
        """
        vectors = _vectors(vectors, self.dim)
        _match(vectors, ids)
        slots = self.slots.extended(ids)
        self._graph.add(vectors)
        self.slots = slots

    def remove(self, ids: Sequence[Any]) -> None:
        """Take items out; a graph keeps them as tombstones and is built anew when a fifth of it is dead.

        Raises:
            DataError: an id is not in the index.
        """
        names, alive = self.slots.ids, self.slots.alive.copy()
        alive[self.slots.known(ids)] = False
        if self.kind == "exact" or (~alive).mean() > REBUILD:
            self._graph = _graph(np.ascontiguousarray(self.vectors[alive]), self._settings)
            names, alive = names[alive], alive[alive]
        self.slots = Slots(names, alive)

    def measure_recall(self, k: int = 10, queries: np.ndarray | None = None) -> float:
        """Share of the true top ``k`` that a search finds (an equal score counts), kept in :attr:`recall`."""
        given = queries is not None
        living = np.flatnonzero(self.slots.alive)
        if queries is None:
            rng = numpy_generator(self._settings["seed"], "recall")
            queries = self.vectors[rng.choice(living, min(len(living), 1000), replace=False)]
        queries, k = _vectors(queries, self.dim), min(k, len(living))
        value = 1.0
        if self.kind == "hnsw" and len(queries) and k:
            _, found = self.nearest(queries, k)
            blocks = _blocks(np.arange(len(queries)), len(self.slots))
            worst = np.concatenate([self._scan(queries[rows], k, None, _NONE)[1] for rows in blocks])[:, -1:]
            value = float((found >= worst - 1e-5 * np.maximum(np.abs(worst), 1e-3)).mean())
        queried = "given" if given else "items"
        self.recall = {"k": k, "value": value, "queries": queried, "num_queries": len(queries), "count": len(living)}
        return value

    def save(self, folder: Path | str) -> None:
        """Write the faiss file, the ids and a manifest with their hashes to ``folder``, all or nothing."""

        def fill(partial: Path) -> dict[str, Any]:
            replace(partial / FILE, lambda path: self._faiss.write_index(self._graph, str(path)))
            self.slots.save(partial)
            facts = {"faiss": self._faiss.__version__, "metric": "inner_product", "settings": self._settings}
            return facts | {"dim": self.dim, "count": len(self), "slots": len(self.slots), "recall": self.recall}

        write_folder(folder, KIND, FORMAT, fill)

    @classmethod
    def load(cls, folder: Path | str, verify: bool = True) -> Index:
        """Read what :meth:`save` wrote; ``verify`` compares the hashes first.

        Faiss reads its own format here, and it is not made to withstand a file crafted to break it: load indexes
        of people you know.

        Raises:
            DataError: files that are missing, damaged or of another version.
        """
        folder, faiss = Path(folder), _faiss()
        manifest = read_manifest(folder, KIND, FORMAT, verify)
        slots = Slots.load(folder)
        with reading(folder, "write the index again"):
            settings = checked_settings(manifest["settings"], len(slots))
            graph = read_index(faiss, folder / FILE)
            check_graph(faiss, graph, settings["index"])
            index = cls(graph, slots, settings)
            index.recall = dict(manifest["recall"])
            sizes = {len(slots), int(graph.ntotal), int(manifest["slots"])}
            if len(sizes) > 1 or (index.dim, len(index)) != (manifest["dim"], manifest["count"]):
                raise DataError(f"the files in {folder} do not belong together: write the index again")
        return index

    def _ask(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == "exact":
            scores, slots = self._graph.search(queries, k)
            return slots, scores
        chosen: dict[str, Any] = {"efSearch": max(self._settings["ef_search"], k)}
        alive = self.slots.alive
        if not alive.all():
            chosen["sel"] = self._faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        scores, slots = self._graph.search(queries, k, params=self._faiss.SearchParametersHNSW(**chosen))
        return slots, np.where(slots < 0, -np.inf, scores).astype(np.float32)

    def _scan(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, deny: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare every query with everything, or with the ``allow`` slots only."""
        columns = np.arange(len(self.slots)) if allow is None else np.unique(allow)
        vectors = self.vectors if allow is None else self.vectors[columns]
        scores = torch.from_numpy(queries) @ torch.from_numpy(vectors).T
        scores[:, torch.from_numpy(~self.slots.alive[columns])] = -torch.inf
        if len(deny[0]) and len(columns):
            at = np.minimum(np.searchsorted(columns, deny[1]), len(columns) - 1)
            inside = columns[at] == deny[1]
            scores[torch.from_numpy(deny[0][inside]), torch.from_numpy(at[inside])] = -torch.inf
        best = scores.topk(min(k, len(columns)), dim=1)
        slots, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        values[:, : len(columns)] = best.values.numpy()
        slots[:, : len(columns)] = columns[best.indices.numpy()]
        slots[np.isneginf(values)] = -1
        return slots, values

    def _allowed(self, ids: Sequence[Any]) -> np.ndarray:
        slots = self.slots.find(ids)
        if (slots < 0).any():
            warnings.warn(f"{int((slots < 0).sum())} of {len(slots)} allowed ids are not in the index", DataWarning, 3)
        return slots[slots >= 0]


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
    queries, rows = _vectors(queries, None), _vectors(rows, np.shape(queries)[1])
    if not 1 <= k <= len(rows):
        raise ValueError(f"k must lie in 1..{len(rows)}, the rows to choose from; found {k}")
    if kind not in ("auto", "exact", "ivf"):
        raise ValueError(f"kind must be auto, exact or ivf, found {kind!r}")
    quick = len(queries) * len(rows) * queries.shape[1] <= EXACT_WORK
    graph: Any = _faiss().IndexFlatIP(rows.shape[1])
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


def kmeans(
    vectors: np.ndarray, clusters: int, iterations: int = 20, seed: int = 0, start: np.ndarray | None = None
) -> np.ndarray:
    """(clusters, D) float32 centroids of ``vectors`` (n, D) by Lloyd's algorithm; ``start``: where to begin.

    Raises:
        ValueError: there are fewer vectors than clusters.
    """
    vectors = _vectors(vectors, None)
    if not 1 <= clusters <= len(vectors):
        raise ValueError(f"{clusters} clusters need at least as many vectors, found {len(vectors)}: ask for fewer")
    faiss = _faiss()
    made = faiss.Kmeans(
        vectors.shape[1], clusters, niter=iterations, seed=derive_seed(seed, "kmeans") % 2**31,
        min_points_per_centroid=1, max_points_per_centroid=256,
    )  # fmt: skip
    made.train(vectors, init_centroids=None if start is None else _vectors(start, vectors.shape[1]))
    return np.asarray(made.centroids, np.float32)


def _cells(rows: np.ndarray, queries: np.ndarray, k: int, flat: Any, seed: int) -> Any:
    """An inverted file over ``rows`` that finds ``PROBE_RECALL`` of what ``flat`` finds for a sample of the queries."""
    faiss = _faiss()
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


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index needs faiss: pip install faiss-cpu") from error
    return faiss


def _graph(vectors: np.ndarray, settings: dict[str, Any]) -> Any:
    faiss, dim = _faiss(), vectors.shape[1]
    if settings["index"] == "exact":
        graph = faiss.IndexFlatIP(dim)
    else:
        graph = faiss.IndexHNSWFlat(dim, settings["m"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings["ef_construction"]
        graph.hnsw.rng = faiss.RandomGenerator(derive_seed(settings["seed"], "hnsw") % 2**31)
    graph.add(vectors)
    return graph


def _drop(
    hits: tuple[np.ndarray, np.ndarray], rows: np.ndarray, deny: tuple[np.ndarray, np.ndarray], k: int, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first ``k`` hits of each row that are not denied, in order."""
    found, scores = hits
    if len(deny[0]):
        denied = np.isin(rows[:, None] * slots + found, deny[0] * slots + deny[1]) & (found >= 0)
        found, scores = np.where(denied, -1, found), np.where(denied, -np.inf, scores).astype(np.float32)
        order = np.argsort(found < 0, axis=1, kind="stable")[:, :k]
        found, scores = np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
    return found[:, :k], scores[:, :k]


def _unique_pairs(pairs: tuple[np.ndarray, np.ndarray] | None, slots: int) -> tuple[np.ndarray, np.ndarray]:
    if pairs is None or len(pairs[0]) == 0:
        return _NONE
    keys = np.unique(np.asarray(pairs[0], np.int64) * slots + np.asarray(pairs[1], np.int64))
    return keys // slots, keys % slots


def _of_rows(pairs: tuple[np.ndarray, np.ndarray], rows: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of the queries ``rows``, counted within them."""
    place = np.full(total, -1)
    place[rows] = np.arange(len(rows))
    inside = place[pairs[0]] >= 0
    return place[pairs[0][inside]], pairs[1][inside]


def _blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    size = max(1, SCAN_BYTES // (4 * max(width, 1)))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _vectors(vectors: Any, dim: int | None) -> np.ndarray:
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"vectors must be (n, {dim or 'D'}), found {array.shape}")
    broken = np.flatnonzero(~np.isfinite(array.sum(1)))
    broken = broken[~np.isfinite(array[broken]).all(1)]
    if len(broken):
        sample = f"{array[broken[0]][:4]} at {broken[0]}"
        raise DataError(
            f"{len(broken)} of {len(array)} vectors are not finite, such as {sample}: train again, or skip them"
        )
    return array


def _match(vectors: np.ndarray, ids: Sequence[Any] | np.ndarray) -> None:
    if len(vectors) != len(ids) or len(ids) == 0:
        raise DataError(f"one id per vector, and at least one: found {len(ids)} ids and {len(vectors)} vectors")
