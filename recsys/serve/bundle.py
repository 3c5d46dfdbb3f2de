"""One folder that recommends: parts as class names and JSON, tensors, item vectors, an index, ids, titles, a manifest.

``export`` writes it and ``Bundle.load`` reads it, without pickle: only classes of this library are constructed, and
classes of others if ``trust`` names their module. Files::

    manifest.json        kind, format, versions, counts, data, metrics, SHA-256 of every file
    model.json           the recommender as class and arguments, parts inside
    model.safetensors    everything it learned, training popularity (the fallback) included
    items.json, ...      raw item ids by row
    items.parquet        titles and other item text, if there is any
    vectors.safetensors  item vectors (N, D) by row, and
    index/               the FAISS index over them, if users and items meet in a dot product
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import recsys
from recsys.data.batch import PAD, Batch
from recsys.data.cut import Cut
from recsys.errors import DataError, UnknownItemError, not_fitted
from recsys.ids.vocabulary import Vocabulary
from recsys.ranking.filters import EVERYTHING, Limits, Shown
from recsys.ranking.products import refuse_nonfinite
from recsys.ranking.ties import best
from recsys.recommenders.base import Ranker, Scores
from recsys.recommenders.history import History, as_histories, histories_of
from recsys.recommenders.modes import evaluating
from recsys.recommenders.top import TopK, top_of, warn_of
from recsys.runs.read import load_model
from recsys.storage.files import write_parquet
from recsys.storage.folders import read_manifest, refuse_foreign, write_folder
from recsys.storage.parts import describe
from recsys.storage.reading import read_json, reading
from recsys.storage.tensors import write_tensors

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.index.search import Index

KIND, FORMAT = "recsys.bundle", 1
INDEX = "index"  # the folder inside that has a manifest of its own, so that it can be saved alone
INDEXES = ("auto", "exact", "hnsw", None)
RECALL_USERS = 1000
POPULAR_ROWS = 256  # histories ranked by popularity at a time


def export(
    model: Ranker,
    folder: Path | str,
    index: str | None = "auto",
    item_text: Mapping[str, np.ndarray] | None = None,
    split: Split | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Bundle:
    """Write ``model`` to ``folder``, whole or not at all, and give the bundle that :meth:`Bundle.load` would give.

    The bundle has a copy of the model: training ``model`` on, or adding items to either, leaves the other as it is.

    Args:
        index: "exact" or "hnsw" for a model with ``item_vectors()``, None for no index; "auto" is, where there are
            vectors, "exact" up to 50,000 items and "hnsw" above.
        item_text: columns (titles, ...) aligned with the item rows, entry 0 for padding; default: those of ``split``.
        split: the data it was trained on; its validation users and their histories are what an hnsw index is measured
            on. Its items may have other rows than the model's: they are found by id.
        metrics: numbers to keep in the manifest, such as ``report.means()``.

    Raises:
        ValueError: the model is not fitted or cannot be saved, or cannot have the index that is named.
        TypeError: a part cannot be described as class and JSON arguments.
        FileExistsError: ``folder`` holds something that is not a bundle.
        DataError: ``split`` has other items than the model.
    """
    if not model.saved:
        raise ValueError(f"{type(model).__name__} cannot be exported: it lives in the process that trained it")
    refuse_foreign(folder, KIND)
    vectored = hasattr(model, "item_vectors")
    if index not in INDEXES or (index in ("exact", "hnsw") and not vectored):
        reason = "" if index not in INDEXES else f"; {type(model).__name__} has no item vectors, so it takes no index"
        raise ValueError(f'index must be "auto", "exact", "hnsw" or None, found {index!r}{reason}')
    if model.vocabulary is None:
        raise not_fitted(model)
    data = None
    if split is not None:
        rows = _rows_of(split, model)
        item_text = _aligned_text(split, rows, model) if item_text is None else item_text
        data = {"name": split.name, "hash": split.data_hash, "protocol": split.protocol}
    made = _index_of(model, index, split) if vectored and index is not None else None
    same: dict[int, Any] = {id(one): one for one in (model.vocabulary, model.users, model.cut)}
    return _write(copy.deepcopy(model, same), made, folder, item_text, data, metrics)


def _write(
    model: Ranker,
    index: Index | None,
    folder: Path | str,
    item_text: Mapping[str, np.ndarray] | None,
    data: Any,
    metrics: Mapping[str, float] | None,
) -> Bundle:
    """Write a bundle of parts that are made already."""
    described = {"model": describe(model)}
    vocabulary = model.vocabulary
    assert vocabulary is not None

    def fill(partial: Path) -> dict[str, Any]:
        (partial / "model.json").write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
        write_tensors(partial / "model.safetensors", model.tensors())
        vocabulary.save(partial, "items")
        if item_text:
            _save_text(partial / "items.parquet", item_text, vocabulary)
        if index is not None:
            vectors = torch.from_numpy(np.ascontiguousarray(model.item_vectors(), np.float32))  # type: ignore[operator]
            write_tensors(partial / "vectors.safetensors", {"item_vectors": vectors})
            index.save(partial / INDEX)
        cut = getattr(model, "cut", None)
        facts = {
            "library": f"recsys {recsys.__version__}",
            "torch": torch.__version__,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": described["model"]["class"],
            "num_items": model.num_items,
            "catalogue": vocabulary.digest,
            "cut": cut and cut.to_dict(),
            "data": data,
            "index": index and {"kind": index.kind, "dim": index.dim, "depth": index.depth, "recall": index.recall},
            "metrics": dict(metrics) if metrics else None,
        }
        return json.loads(json.dumps(facts, default=str))

    write_folder(folder, KIND, FORMAT, fill, apart=(INDEX,))
    manifest = read_manifest(folder, KIND, FORMAT, verify=False, apart=(INDEX,))
    return Bundle(Path(folder), model, index, manifest)


class Bundle:
    """An exported recommender, ready to serve: raw ids in, raw ids out, through the index where there is one."""

    def __init__(self, folder: Path, model: Ranker, index: Index | None, manifest: dict[str, Any]) -> None:
        self.folder, self.model, self.index, self.manifest = folder, model, index, manifest
        self._catalogue: _Catalogue | None = None
        self._item_text: dict[str, np.ndarray] | None = None

    @classmethod
    def load(cls, folder: Path | str, trust: Sequence[str] = (), verify: bool = True) -> Bundle:
        """Read a bundle.

        Args:
            trust: modules (or packages) of others whose classes the bundle may construct, which runs their code; and
                folders or hub names that the model may read besides its own folder.
            verify: compare every file with the hash written at export, or with the index when that was saved.

        Raises:
            FileNotFoundError: there is no bundle.
            DataError: files are missing, damaged or of another version.
            PermissionError: a part is of a module that is neither ours nor trusted, or would be read from elsewhere.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, KIND, FORMAT, verify, apart=(INDEX,))
        described = read_json(folder / "model.json", "export it again").get("model")
        vocabulary = Vocabulary.load(folder, "items")
        model = load_model(described, folder / "model.safetensors", vocabulary, trust, verify=False)
        with reading(folder, "export it again"):
            model.cut = Cut.from_dict(manifest["cut"]) if manifest.get("cut") else None
            if manifest.get("catalogue", vocabulary.digest) != vocabulary.digest:
                raise ValueError("its items are not those that it was written with")
        index = None
        if manifest.get("index") is not None:
            from recsys.index.search import Index

            with reading(folder, "export it again"):
                index = Index.load(folder / INDEX, verify)
            if not _same_catalogue(index, vocabulary):
                raise DataError(f"the index in {folder} holds other items than the model: export it again")
            index.catalogue = vocabulary.digest  # not written by 0.1.0.dev0
        return cls(folder, model, index, manifest)

    def __str__(self) -> str:
        text = f"bundle {self.folder}: {type(self.model).__name__}, {len(self.vocabulary):,} items"
        if self.index is None:
            how = "all items are scored" if isinstance(self.model, Scores) else "it makes lists by itself"
            return f"{text}, no index ({how})"
        text = f"{text}, {self.index.kind} index"
        measured = self.index.recall
        if not measured:
            return text
        asked = {"given": "user vectors", "made": "mixtures of item vectors"}.get(measured["queries"], "item vectors")
        at = {
            f"@{depth}": share for depth, share in measured.get("at", {str(measured["k"]): measured["value"]}).items()
        }
        at |= {f"@{depth} without {measured['denial']}": share for depth, share in measured.get("denied", {}).items()}
        shares = ", ".join(f"recall{name} {share:.4f}" for name, share in at.items())
        if self.index.kind == "exact":
            return f"{text}, recall@{measured['k']} {measured['value']:.4f}"
        deep = f"what lies beyond rank {self.index.depth} is compared with all items"
        stale = "; items came or went since then" if self.index.stale else ""
        return f"{text}, {shares} against exact on {measured['num_queries']:,} {asked}{stale}; {deep}"

    @property
    def vocabulary(self) -> Vocabulary:
        """Raw item ids and their rows: those of the model, and behind them what only the index holds."""
        return self._catalogued().vocabulary

    @property
    def item_text(self) -> dict[str, np.ndarray]:
        """Column -> object array aligned with the item rows (entry 0 is padding); empty if none was exported."""
        path = self.folder / "items.parquet"
        if self._item_text is None and path.is_file():
            import polars as pl

            with reading(path, "export it again"):
                _, *columns = pl.read_parquet(path, glob=False)  # the first one holds the raw ids
                written = int(self.manifest.get("num_items", self.model.num_items))
                if any(len(column) != written for column in columns) or written > self.model.num_items:
                    raise ValueError(f"it has other rows than the {written:,} items")
            self._item_text = {column.name: np.array(["", *column.to_list()], object) for column in columns}
        size = 1 + len(self.vocabulary)
        return {
            name: np.concatenate([values, np.full(size - len(values), "", object)])
            for name, values in (self._item_text or {}).items()
        }

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Any = None, deny: Any = None
    ) -> TopK:
        """The ``k`` best items for each raw history, as :meth:`recsys.recommenders.base.Ranker.recommend` has it.

        With an exact index the lists are those of the model. With an hnsw index they are approximate, but requests
        that look deeper than the graph was found good for (a large ``k``, or much denied of what it finds), and those
        with ``allow``, are answered exactly (see :mod:`recsys.index.search`). Items that were removed from the index
        are never recommended, and those that were added to it are.

        Raises:
            ValueError: ``k`` is below 1, ``exclude`` is neither "history" nor "none", nothing is allowed, or what the
                model gives is not finite.
            TypeError: a history is one id, not a list of them, or ``k`` is not a whole number.
        """
        histories = as_histories(histories)
        top, shown = self._rank(histories, k, exclude, allow, deny)
        warn_of(shown, top, histories, 3)
        return top

    def similar(self, items: Sequence[Any], k: int = 10, metric: str = "cosine") -> list[list[tuple[Any, float]]]:
        """The ``k`` items nearest to each given raw item, as (raw id, similarity), itself left out; exact.

        Args:
            metric: "cosine", or "dot" for the inner product.

        Raises:
            UnknownItemError: an item is not in the index.
            ValueError: the model has no item vectors, or ``k`` or ``metric`` is not possible.
        """
        if self.index is None:
            similar: Any = getattr(self.model, "similar", None)
            if similar is None:
                raise ValueError(f"{type(self.model).__name__} has no item vectors that could be compared")
            return list(similar(items, k, metric))
        if isinstance(items, (str, bytes)):
            raise TypeError(f"a list of ids is expected, and {items!r} is one id: pass [{items!r}]")
        there = self._catalogued().find(list(items))
        if (there < 0).any():
            unknown = [one for one, position in zip(items, there, strict=True) if position < 0]
            raise UnknownItemError(
                f"{len(unknown):,} items are not in the catalogue, or no longer in the index, such as {unknown[:3]}"
            )
        hits = self.index.similar(items, k, metric)
        lengths = hits.ids.shape[1] - hits.missing
        pairs = zip(hits.ids.tolist(), hits.scores.tolist(), lengths.tolist(), strict=True)
        return [list(zip(ids[:n], near[:n], strict=True)) for ids, near, n in pairs]

    def add_items(self, ids: Sequence[Any], vectors: Any = None, features: Mapping[str, Any] | None = None) -> None:
        """Take items in that came after training: ``model.add_items``, and what it makes of them into the index."""
        add: Any = getattr(self.model, "add_items", None)
        if add is None:
            raise ValueError(f"{type(self.model).__name__} cannot take items that came after training: fit it again")
        before = self.model.num_items
        add(ids, vectors, **({} if features is None else {"features": features}))
        if self.index is not None and self.model.num_items > before:
            new = self.vocabulary_of_model.raw(np.arange(before + 1, self.model.num_items + 1))
            held = new[self.index.items.rows(new) >= 0]  # added by Index.add
            if len(held):
                self.index.remove(held.tolist())
            self.index.add(new, self.model.item_vectors()[before:])  # type: ignore[operator]
            self.index.catalogue = self.vocabulary_of_model.digest

    def save(self, folder: Path | str | None = None) -> Bundle:
        """Write the bundle as it is now (items added and removed) to ``folder``, by default where it came from."""
        text = {name: values[: 1 + self.model.num_items] for name, values in self.item_text.items()}
        facts = [self.manifest.get(name) for name in ("data", "metrics")]
        return _write(self.model, self.index, folder or self.folder, text, *facts)

    @property
    def cut(self) -> Cut | None:
        """Which events the model learned from, as far as that is known."""
        return self.model.cut

    @property
    def vocabulary_of_model(self) -> Vocabulary:
        """The items that the model can read in a history."""
        assert self.model.vocabulary is not None
        return self.model.vocabulary

    def _catalogued(self) -> _Catalogue:
        """The catalogue of the index as it is now."""
        indexed = None if self.index is None else self.index.items
        found = self._catalogue
        if found is None or found.indexed is not indexed or found.own is not self.model.vocabulary:
            self._catalogue = found = _Catalogue(self.vocabulary_of_model, indexed)
        return found

    def _rank(
        self,
        histories: Sequence[Any],
        k: int,
        exclude: str,
        allow: Any = None,
        deny: Any = None,
        limits: Limits = EVERYTHING,
        exact: bool = False,
    ) -> tuple[TopK, Shown]:
        """:meth:`recommend` without warnings, within rows of :attr:`vocabulary` besides, and what might be shown.

        With ``exact`` a graph is not asked.
        """
        model, catalogue = self.model, self._catalogued()
        if self.index is None and (isinstance(model, Scores) or type(model)._rank is not Ranker._rank):
            return model._rank(histories, k, exclude, allow, deny, limits)
        if self.index is None:  # one that makes lists, by a recommend of its own
            with evaluating(model):
                return model.recommend(histories, k, exclude, *_by_id(catalogue, allow, deny, limits)), Shown()
        k = model._check(k, exclude)
        histories = model._ready(histories, 4)
        shown = Shown.of(catalogue.find, [one.items for one in histories], exclude, allow, deny)
        shown = shown.limited(*(None if rows is None else catalogue.positions(rows) for rows in limits))
        width, first = min(k, len(catalogue.vocabulary)), 0
        found: list[tuple[np.ndarray, ...]] = []
        with evaluating(model), torch.inference_mode():
            for batch, skipped in model._batches(histories):
                part, known = shown.part(first, first + len(batch)), (batch.lengths > 0).cpu().numpy()
                values = np.full((len(batch), width), -np.inf, np.float32)
                positions = np.full((len(batch), width), -1, np.int64)
                asking, others = np.flatnonzero(known), np.flatnonzero(~known)
                if len(asking) and len(self.index):
                    queries = self._users(batch, histories[first : first + len(batch)])
                    refuse_nonfinite(queries.abs(), first)
                    may = part.rows(asking, len(batch))
                    near = self.index.nearest(queries.cpu().numpy()[asking], width, may, exact)
                    positions[asking, : near[0].shape[1]], values[asking, : near[1].shape[1]] = near
                for rows in np.array_split(others, -(-len(others) // POPULAR_ROWS)) if len(others) else ():
                    positions[rows], values[rows] = self._popular(part.rows(rows, len(batch)), len(rows), width)
                found.append((values, catalogue.row_of_position[positions], skipped, ~known))
                first += len(batch)
        return top_of(found, width, catalogue.vocabulary, histories), shown

    def _users(self, batch: Batch, histories: list[History]) -> torch.Tensor:
        """(B, D) vectors, by the same computation as the model's scores where it is a recommender of parts."""
        model: Any = self.model
        if hasattr(model, "vectors"):
            found: torch.Tensor = model.vectors(batch)
            return found
        return torch.from_numpy(np.asarray(model.user_vectors(histories), np.float32))

    def _popular(self, shown: Shown, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores of what is most popular in training, for ``count`` histories without a known item."""
        assert self.index is not None
        catalogue, own = self._catalogued(), self.model.popularity.cpu()
        popularity = torch.cat([own, own.new_zeros(1 + len(catalogue.vocabulary) - len(own))])
        scores = popularity[torch.from_numpy(catalogue.row_of_position[:-1])].repeat(count, 1)
        scores[:, torch.from_numpy(~self.index.items.alive)] = -torch.inf
        shown.hide(scores)
        values, columns = best(scores, width)
        positions = torch.where(values == -torch.inf, -1, columns).numpy()
        short = ((0, 0), (0, width - positions.shape[1]))
        return np.pad(positions, short, constant_values=-1), np.pad(values.numpy(), short, constant_values=-np.inf)


class _Catalogue:
    """The items of a bundle: the model's rows, behind them those that only the index holds; positions in it."""

    def __init__(self, own: Vocabulary, indexed: Vocabulary | None) -> None:
        self.own, self.indexed, self.vocabulary = own, indexed, own
        self.row_of_position = np.arange(1, len(own) + 2)
        if indexed is not None and not (indexed.alive.all() and np.array_equal(indexed.ids, own.ids)):
            known = set(own.ids.tolist())
            new = [one for one in indexed.ids[indexed.alive].tolist() if one not in known]
            if new:
                self.vocabulary = Vocabulary(np.concatenate([own.ids, np.array(new, own.ids.dtype)]), own.first)
            self.row_of_position = np.append(np.maximum(self.vocabulary.rows(indexed.ids), PAD), PAD)
        self.row_of_position[-1] = PAD
        self.position_of_row = np.full(len(self.vocabulary) + 1, -2)
        living = np.arange(len(own)) if indexed is None else np.flatnonzero(indexed.alive)
        self.position_of_row[self.row_of_position[living]] = living

    def find(self, ids: list[Any]) -> np.ndarray:
        """Positions in the index of raw ids: -1 for unknown ones, -2 for those that were removed from the index."""
        rows = self.vocabulary.rows(ids)
        return np.where(rows > PAD, self.position_of_row[np.maximum(rows, PAD)], -1)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Positions in the index of those of ``rows`` that have one."""
        found = self.position_of_row[rows]
        return found[found >= 0]


def _by_id(catalogue: _Catalogue, allow: Any, deny: Any, limits: Limits) -> tuple[Any, Any]:
    """``allow`` and ``deny`` with ``limits`` in them, as raw ids."""
    only, never = (None if rows is None else catalogue.vocabulary.raw(rows).tolist() for rows in limits)

    def per_history(lists: Any) -> bool:
        return bool(lists) and any(one is None or isinstance(one, (list, tuple, np.ndarray)) for one in lists)

    if only is not None and allow is not None:
        kept = set(only)
        nested = per_history(allow)
        given = allow if nested else [allow]
        lists = [only if one is None else [item for item in one if item in kept] for one in given]
        allow = lists if nested else lists[0]
    elif only is not None:
        allow = only
    if never:
        deny = [[*(one or ()), *never] for one in deny] if per_history(deny) else [*(deny or ()), *never]
    return allow, deny


def _same_catalogue(index: Index, vocabulary: Vocabulary) -> bool:
    if index.catalogue is not None:
        return index.catalogue == vocabulary.digest
    return np.array_equal(index.items.ids, vocabulary.ids)


def _rows_of(split: Split, model: Ranker) -> np.ndarray:
    """(N + 1,) rows of the model for the item rows of ``split``, 0 for padding.

    Raises:
        DataError: it has other items than the model (one that was given items after training may have more).
    """
    ours = model.vocabulary
    assert ours is not None
    rows = np.arange(len(split.items) + 1)
    if split.items.digest == ours.digest:
        return rows
    rows = np.append(PAD, ours.rows(split.items.ids))
    begins = np.array_equal(rows, np.arange(len(rows)))
    if (rows[1:] <= PAD).any() or not (begins or len(split.items) == len(ours)):
        unknown = split.items.ids[rows[1:] <= PAD]
        sample = f", such as {unknown[:3].tolist()}" if len(unknown) else ""
        raise DataError(
            f"the split has {len(split.items):,} items, {len(unknown):,} of which the model does not know{sample}; the "
            f"model has {len(ours):,}: pass the split that it was trained on"
        )
    return rows


def _aligned_text(split: Split, rows: np.ndarray, model: Ranker) -> dict[str, np.ndarray]:
    found = {}
    for name, values in (split.item_text or {}).items():
        found[name] = np.full(model.num_items + 1, "", object)
        found[name][rows] = values
    return found


def _index_of(model: Any, kind: str, split: Split | None) -> Index:
    from recsys.index.search import EXACT_ITEMS, Index

    vectors = np.ascontiguousarray(model.item_vectors(), np.float32)
    graph = kind == "hnsw" or (kind == "auto" and len(vectors) > EXACT_ITEMS)
    histories = [] if split is None or not graph else _histories(split)
    queries = model.user_vectors(histories) if histories else None
    deny = [one.items for one in histories] if histories else None
    index = Index.build(vectors, model.vocabulary.ids, kind=kind, recall_queries=queries, recall_deny=deny)
    index.catalogue = model.vocabulary.digest
    return index


def _histories(split: Split) -> list[History]:
    """Raw histories of some validation users (of test users if there are none) that are not empty."""
    part = split.valid if len(split.valid) else split.test
    lasting = np.flatnonzero(part.history_lengths > 0)
    chosen = lasting[
        np.unique(np.linspace(0, max(len(lasting) - 1, 0), min(len(lasting), RECALL_USERS)).astype(np.int64))
    ]
    return histories_of(part, chosen)


def _save_text(path: Path, item_text: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> None:
    import polars as pl

    ids = "item"
    while ids in item_text:
        ids = f"raw_{ids}"
    columns: dict[str, list[Any]] = {ids: vocabulary.ids.tolist()}
    for name, values in item_text.items():
        if len(values) != len(vocabulary) + 1:
            raise ValueError(
                f"item_text[{name!r}] has {len(values):,} entries; one per item row is needed, with row 0 for padding: "
                f"{len(vocabulary) + 1:,}"
            )
        columns[name] = np.asarray(values)[1:].tolist()
    write_parquet(path, pl.DataFrame(columns))
