"""Nearest items by inner product, exactly or through an HNSW graph, addressed by raw item ids.

The only file that imports faiss, and only when an index is made or loaded. FAISS counts vectors 0, 1, 2 ...: those
are called positions here, and ``items``, a vocabulary from row 0, has their raw ids. Lists are best first, equal
scores by ascending position, which is the order in which items were given.

"exact" compares a query with everything, by the same product as a model's scores. "hnsw" walks a graph, which forgets
nothing (a removed item is a tombstone until a fifth of them is) and which finds less and less of what lies deeper in a
list. How deep it can be trusted is measured when it is built (``recall["depth"]``): the rank down to which it finds 95%
of each ten neighbours. A request that needs to look deeper, as its ``k`` is large or much of what the graph found is
denied, and one with a list of what is allowed, is compared with everything instead. "auto" is exact up to
``EXACT_ITEMS`` items, where a comparison with everything takes a millisecond or two, and a graph above.

faiss and torch each bring an OpenMP runtime. On Linux both wheels ship their own libgomp, and running both with several
threads in one process works in either import order (the tests do it); each obeys ``OMP_NUM_THREADS``.

Legend: N items, D width, B queries, K cut-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from recsys.errors import DataError, DataWarning, UnknownItemError
from recsys.ids.vocabulary import Vocabulary
from recsys.index import recall
from recsys.index.former import ids_of_format_1
from recsys.index.graphs import check_graph, checked_settings, read_index
from recsys.progress import Progress
from recsys.randomness import derive_seed
from recsys.ranking.filters import Shown, checked_k
from recsys.ranking.products import check_metric, inverse_norms, products, refuse_nonfinite
from recsys.ranking.ties import best
from recsys.storage.files import replace
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import reading

KIND, FORMAT, OLDEST = "recsys.index", 2, 1
IDS = "ids"  # the name of the vocabulary in the folder
KINDS = ("auto", "exact", "hnsw")
EXACT_ITEMS = 50_000  # up to which "auto" compares with everything
SCAN_BYTES = 128 * 2**20  # scores held at a time when a query is compared with everything
WALK_BYTES = 32 * 2**20  # vectors looked up at a time behind a walk
MANY = 0.25  # share of the items above which what is allowed is not taken out before it is compared
REBUILD = 0.2  # share of tombstones at which a graph is built anew
FILE = "index.faiss"
ADDED = 4096  # vectors put into a graph at a time, between two words of progress
LARGEST = 1.8e19  # length of a vector above which a product of two may not be finite in float32


class Hits(NamedTuple):
    """Neighbours of B queries, best first; the last ``missing[b]`` entries of row b are padding.

    K is the ``k`` that was given, or the size of the index if that is less.
    """

    ids: np.ndarray  # (B, K) raw ids, -1 (int ids) or None (str ids) at padding
    scores: np.ndarray  # (B, K) float32 inner products, -inf at padding
    missing: np.ndarray  # (B,) int64


class Index:
    """Item vectors that answer ``search`` by inner product; make one with :meth:`build` or :meth:`load`.

    >>> index = Index.build(np.eye(3, dtype="f4"), ["a", "b", "c"])
    >>> index.search(np.array([[0.1, 0.9, 0.5]], "f4"), k=2).ids.tolist()
    [['b', 'c']]
    """

    def __init__(self, graph: Any, items: Vocabulary, settings: dict[str, Any]) -> None:
        self._faiss, self._graph, self._settings = load_faiss(), graph, settings
        self.items = items  # raw id <-> position; removed ones keep theirs for a while
        self.recall: dict[str, Any] = {}  # as measured by measure_recall
        self.catalogue: str | None = None  # digest of the vocabulary whose items these are, if they are of one
        self.stale = False  # whether items came or went since recall was measured
        self._measured_on: tuple[np.ndarray, Sequence[Sequence[Any]] | None] | None = None
        self._norms: torch.Tensor | None = None

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
        recall_deny: Sequence[Sequence[Any]] | None = None,
        progress: bool = True,
    ) -> Index:
        """An index of ``vectors`` (N, D), ``vectors[i]`` belonging to ``ids[i]`` (all ints or all strings).

        Args:
            kind: "exact" compares a query with everything; "hnsw" walks a graph (Malkov & Yashunin 2018), fast in large
                catalogues and approximate; "auto" is the former up to 50,000 items, the latter above.
            m, ef_construction, ef_search: links per item, effort at building and at searching (hnsw only).
            seed: of the graph's levels and of the recall sample; with several threads the graph still varies a little.
            recall_k, recall_queries, recall_deny: what :meth:`measure_recall` is asked for a graph.
            progress: say how far the building of a graph is.

        Raises:
            DataError: vectors that are not finite or not (N, D), ids that repeat or mix types.
        """
        if kind not in KINDS:
            raise ValueError(f'kind must be "auto", "exact" or "hnsw", found {kind!r}')
        vectors = checked_vectors(vectors, None)
        _match(vectors, ids)
        if kind == "auto":
            kind = "exact" if len(vectors) <= EXACT_ITEMS else "hnsw"
        settings = {"index": kind, "seed": seed}
        if kind == "hnsw":
            settings |= {"m": m, "ef_construction": ef_construction, "ef_search": ef_search}
        index = cls(_graph(vectors, settings, progress), Vocabulary(ids, 0), settings)
        index.measure_recall(recall_k, recall_queries, recall_deny)
        recall.warn_if_low(index, 3)
        return index

    def __len__(self) -> int:
        return int(self.items.alive.sum())

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
        """(positions, D) float32, a view of what faiss holds, tombstones included; valid until items are added."""
        flat = self._graph if self.kind == "exact" else self._faiss.downcast_index(self._graph.storage)
        if flat.ntotal == 0:
            return np.zeros((0, self.dim), np.float32)
        view: np.ndarray = self._faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * self.dim).reshape(-1, self.dim)
        return view

    def search(self, queries: np.ndarray, k: int = 10, allow: Any = None, deny: Any = None) -> Hits:
        """The ``k`` items with the largest inner product with each of ``queries`` (B, D).

        Args:
            allow, deny: raw ids for all queries, or one list of them per query; nothing else, or none of these, is
                returned. What is allowed is scored exactly; unknown ids in it are counted in a warning.

        Where fewer than ``k`` items are left, the rest of a list is padding.

        Raises:
            ValueError: ``k`` is below 1, the index is empty, or the queries have another width.
        """
        queries, k = checked_vectors(queries, self.dim), checked_k(k)
        shown = Shown.of(self.items.rows, [()] * len(queries), "none", allow, deny, empty=True)
        for note in shown.notes("index"):
            if "allowed" in note:
                warnings.warn(note, DataWarning, stacklevel=2)
        positions, scores = self.nearest(queries, k, shown)
        return Hits(self._raw(positions), scores, (positions < 0).sum(1))

    def similar(self, ids: Sequence[Any], k: int = 10, metric: str = "cosine") -> Hits:
        """The ``k`` items nearest to each given item, itself left out; as :meth:`recsys.Recommender.similar`, exact.

        Args:
            metric: "cosine", or "dot" for the inner product.
        """
        k = min(checked_k(k), len(self) - 1)
        check_metric(metric)
        own = self._known(ids)
        positions, scores = np.full((len(own), k), -1, np.int64), np.full((len(own), k), -np.inf, np.float32)
        for rows in _blocks(np.arange(len(own)), len(self.items)) if k else []:
            vectors = torch.from_numpy(self.vectors)
            found = products(vectors[torch.from_numpy(own[rows])], vectors)
            if metric == "cosine":
                norms = self._inverse_norms()
                found *= norms * norms[torch.from_numpy(own[rows])][:, None]
            found[torch.arange(len(rows)), torch.from_numpy(own[rows])] = -torch.inf
            positions[rows], scores[rows] = self._best(found, k, None)
        return Hits(self._raw(positions), scores, (positions < 0).sum(1))

    def nearest(
        self, queries: np.ndarray, k: int, shown: Shown | None = None, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`search` in positions (-1 at padding), and scores; the columns of ``shown`` are positions.

        With ``exact`` a graph is not asked.
        """
        if not len(self):
            raise ValueError("the index is empty, and k must be at most the number of its items: add some first")
        shown = shown or Shown()
        k = min(k, len(self))
        positions, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        left = np.arange(len(queries))
        if self.kind == "hnsw" and not exact and not shown.few and k <= self.depth:
            done = np.zeros(len(queries), bool)
            for rows in _blocks(left, self._beam * self.dim, WALK_BYTES):
                part = shown.part(int(rows[0]), int(rows[-1]) + 1)
                positions[rows], scores[rows], done[rows] = self._walk(queries[rows], k, part)
            left = np.flatnonzero(~done)
        columns = shown.columns(len(self.items)) if shown.few else None
        if columns is not None and len(columns) > MANY * len(self.items):
            columns = None  # comparing with all takes less than copying these, and the others are hidden
        for rows in _blocks(left, len(self.items) if columns is None else len(columns)):
            positions[rows], scores[rows] = self._scan(queries[rows], k, shown.rows(rows, len(queries)), columns)
        return positions, scores

    @property
    def depth(self) -> int:
        """The rank down to which the graph is asked; what lies deeper is compared with everything."""
        if self.kind == "exact":
            return 0
        old = self.recall.get("k", 0) if self.recall.get("value", 0) >= recall.GOOD else 0  # not measured by rank
        return max(0, min(int(self.recall.get("depth", old)), self._beam))

    def add(self, ids: Sequence[Any] | np.ndarray, vectors: np.ndarray) -> None:
        """Put further items in.

        Raises:
            DataError: an id is in the index already (:meth:`remove` it first), or as in :meth:`build`.
        """
        vectors = checked_vectors(vectors, self.dim)
        _match(vectors, ids)
        items = self.items.extended(ids)
        _put(self._graph, vectors, self.kind == "hnsw")
        self.items, self.stale, self._norms = items, True, None

    def remove(self, ids: Sequence[Any]) -> None:
        """Take items out; a graph keeps them as tombstones and is built anew when a fifth of it is dead.

        Raises:
            DataError: an id is not in the index.
        """
        items = self.items.without(self._known(ids))
        if self.kind == "exact" or (~items.alive).mean() > REBUILD:
            self._graph = _graph(np.ascontiguousarray(self.vectors[items.alive]), self._settings)
            items = items.kept()
        self.items, self.stale, self._norms = items, True, None

    def measure_recall(
        self, k: int = 10, queries: np.ndarray | None = None, deny: Sequence[Sequence[Any]] | None = None
    ) -> float:
        """Share of the true top ``k`` that the graph alone finds (an equal score counts), kept in :attr:`recall`.

        That also holds the shares at 10 and 100 (``at``), the same with ``deny`` (``denied``) and the ``depth`` down to
        which the graph is used; see :mod:`recsys.index.recall`.

        Args:
            queries: (B, D), best user vectors; by default mixtures of item vectors, none of which is in the index.
            deny: raw ids per query, best the histories; by default the 50 best of each.
        """
        self._measured_on = None if queries is None else (queries, deny)
        denied = None if deny is None else Shown.of(self.items.rows, deny, "history").denied
        self.recall = recall.measure(self, None if queries is None else checked_vectors(queries, self.dim), denied, k)
        self.stale = False
        return float(self.recall["value"])

    def save(self, folder: Path | str) -> None:
        """Write the faiss file, the ids and a manifest with their hashes to ``folder``, all or nothing.

        Recall is measured again first if items came or went.
        """
        if self.stale and len(self):
            self.measure_recall(self.recall.get("k", 10), *(self._measured_on or ()))
            recall.warn_if_low(self, 3)

        def fill(partial: Path) -> dict[str, Any]:
            replace(partial / FILE, lambda path: self._faiss.write_index(self._graph, str(path)))
            self.items.save(partial, IDS)
            facts = {"faiss": self._faiss.__version__, "metric": "inner_product", "settings": self._settings}
            return (
                facts
                | {"dim": self.dim, "count": len(self), "positions": len(self.items), "recall": self.recall}
                | {"catalogue": self.catalogue}
            )

        write_folder(folder, KIND, FORMAT, fill)

    @classmethod
    def load(cls, folder: Path | str, verify: bool = True) -> Index:
        """Read what :meth:`save` wrote; ``verify`` compares the hashes first.

        Faiss reads its own format here, and it is not made to withstand a file crafted to break it: load indexes
        of people you know.

        Raises:
            DataError: files that are missing, damaged or of another version.
        """
        folder, faiss = Path(folder), load_faiss()
        manifest = read_manifest(folder, KIND, FORMAT, verify, oldest=OLDEST)
        items = ids_of_format_1(folder) if manifest["format"] == 1 else Vocabulary.load(folder, IDS)
        with reading(folder, "write the index again"):
            settings = checked_settings(manifest["settings"], len(items))
            graph = read_index(faiss, folder / FILE)
            check_graph(faiss, graph, settings["index"])
            index = cls(graph, items, settings)
            index.recall, index.catalogue = recall.checked(manifest["recall"]), manifest.get("catalogue")
            sizes = {len(items), int(graph.ntotal), int(manifest["slots" if manifest["format"] == 1 else "positions"])}
            if (
                len(sizes) > 1
                or items.first
                or (index.dim, len(index)) != (manifest["dim"], manifest["count"])
                or index.depth < 0
            ):
                raise DataError(f"the files in {folder} do not belong together: write the index again")
        return index

    @property
    def _beam(self) -> int:
        return min(int(self._settings["ef_search"]), len(self.items))

    def _known(self, ids: Sequence[Any]) -> np.ndarray:
        """Positions of raw ids, all of which must be there."""
        positions = self.items.rows(ids)
        if (positions < 0).any():
            unknown = [one for one, at in zip(ids, positions, strict=True) if at < 0]
            raise UnknownItemError(f"{len(unknown)} ids are not in the index, such as {unknown[:3]}")
        return positions

    def _raw(self, positions: np.ndarray) -> np.ndarray:
        """Raw ids of positions of any shape; -1 (int ids) or None (str ids) for position -1."""
        ints = self.items.kind == "int"
        found = np.full(positions.shape, -1 if ints else None, dtype=np.int64 if ints else object)
        found[positions >= 0] = self.items.raw(positions[positions >= 0])
        return found

    def _ask(self, queries: np.ndarray, beam: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``beam`` items that the graph finds for each query, best first: positions (or -1) and scores."""
        chosen: dict[str, Any] = {"efSearch": beam}
        alive = self.items.alive
        if not alive.all():
            chosen["sel"] = self._faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        _, positions = self._graph.search(queries, beam, params=self._faiss.SearchParametersHNSW(**chosen))
        positions = np.sort(positions, axis=1)
        scores = np.full(positions.shape, -np.inf, np.float32)
        for rows in _blocks(np.arange(len(queries)), beam * self.dim, WALK_BYTES):
            vectors = torch.from_numpy(self.vectors[np.maximum(positions[rows], 0)])  # faiss sums up in several ways
            scores[rows] = (vectors * torch.from_numpy(queries[rows])[:, None]).sum(2).numpy()
        scores[positions < 0] = -np.inf
        values, order = (one.numpy() for one in best(torch.from_numpy(scores), beam))
        return np.take_along_axis(positions, order, 1), values

    def _walk(self, queries: np.ndarray, k: int, shown: Shown) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``k`` best that may be shown of what the graph finds, their scores, and where that will do."""
        positions, scores = self._ask(queries, self._beam)
        owners = np.broadcast_to(np.arange(len(queries))[:, None], positions.shape)
        hidden = shown.hidden(owners, positions, len(self.items)) | (positions < 0)
        enough = (~hidden).cumsum(1) >= k
        last = enough.argmax(1)
        rows = np.arange(len(queries))
        whole = positions.shape[1] >= len(self)
        more_of_the_last = (scores[rows, last] == scores[:, -1]) & (not whole)  # equal ones that were not fetched
        done = enough[:, -1] & (last < self.depth) & ~more_of_the_last
        order = np.argsort(hidden, axis=1, kind="stable")[:, :k]
        positions, scores = np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)
        return _wide(positions, k, -1), _wide(scores, k, -np.inf), done

    def _scan(
        self, queries: np.ndarray, k: int, shown: Shown, columns: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare every query with everything, or with the positions ``columns`` only."""
        vectors = self.vectors if columns is None else self.vectors[columns]
        scores = products(torch.from_numpy(queries), torch.from_numpy(vectors))
        refuse_nonfinite(scores)
        (shown if columns is None else shown.among(columns)).hide(scores)
        return self._best(scores, k, columns)

    def _best(self, scores: torch.Tensor, k: int, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        alive = self.items.alive if columns is None else self.items.alive[columns]
        if not alive.all():
            scores[:, torch.from_numpy(~alive)] = -torch.inf
        values, at = (one.numpy() for one in best(scores, k))
        positions = np.where(np.isneginf(values), -1, at if columns is None else columns[at])
        return _wide(positions, k, -1), _wide(values, k, -np.inf)

    def _inverse_norms(self) -> torch.Tensor:
        if self._norms is None:
            self._norms = inverse_norms(torch.from_numpy(self.vectors))
        return self._norms


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index needs faiss: pip install faiss-cpu") from error
    return faiss


def _graph(vectors: np.ndarray, settings: dict[str, Any], progress: bool = True) -> Any:
    faiss, dim = load_faiss(), vectors.shape[1]
    if settings["index"] == "exact":
        graph = faiss.IndexFlatIP(dim)
    else:
        graph = faiss.IndexHNSWFlat(dim, settings["m"], faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings["ef_construction"]
        graph.hnsw.rng = faiss.RandomGenerator(derive_seed(settings["seed"], "hnsw") % 2**31)
    _put(graph, vectors, progress and settings["index"] != "exact")
    return graph


def _put(graph: Any, vectors: np.ndarray, progress: bool) -> None:
    size = ADDED if progress else max(len(vectors), 1)
    with Progress(len(vectors), "building the hnsw index", "items", enabled=progress, log_seconds=5.0) as shown:
        for first in range(0, len(vectors), size):
            graph.add(vectors[first : first + size])
            shown.advance(len(vectors[first : first + size]))


def _wide(array: np.ndarray, width: int, fill: float) -> np.ndarray:
    """(B, width) of an array (B, n), n <= width."""
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)


def _blocks(rows: np.ndarray, width: int, limit: int | None = None) -> list[np.ndarray]:
    size = max(1, (SCAN_BYTES if limit is None else limit) // (4 * max(width, 1)))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def checked_vectors(vectors: Any, dim: int | None) -> np.ndarray:
    """(n, D) float32, contiguous and finite; D is ``dim`` if that is given.

    Raises:
        ValueError: another shape.
        DataError: numbers that are not finite, or have no finite products.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"vectors must be (n, {dim or 'D'}), found {array.shape}")
    ends = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)  # NaN stays NaN
    if not np.isfinite(ends).all():
        broken = np.flatnonzero(~np.isfinite(array).all(1))
        sample = f"{array[broken[0]][:4]} at {broken[0]}"
        raise DataError(
            f"{len(broken)} of {len(array)} vectors are not finite, such as {sample}: train again, or skip them"
        )
    if max(-ends[0], ends[1]) * array.shape[1] ** 0.5 > LARGEST:
        raise DataError(f"vectors with numbers up to {max(-ends[0], ends[1]):.3g} have no finite products: scale them")
    return array


def _match(vectors: np.ndarray, ids: Sequence[Any] | np.ndarray) -> None:
    if len(vectors) != len(ids) or len(ids) == 0:
        raise DataError(f"one id per vector, and at least one: found {len(ids)} ids and {len(vectors)} vectors")
