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

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import recsys
from recsys.data.batch import PAD
from recsys.data.cut import Cut
from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataError, DataWarning
from recsys.folders import read_manifest, refuse_foreign, write_folder
from recsys.parts import describe
from recsys.ranker import Ranker, TopK, as_histories
from recsys.saved import load_model
from recsys.storage.reading import read_json, reading
from recsys.storage.tensors import write_tensors

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.index import Index

KIND, FORMAT = "recsys.bundle", 1
INDEX = "index"  # the folder inside that has a manifest of its own, so that it can be saved alone
INDEXES = ("auto", "exact", "hnsw", None)
RECALL_USERS = 1000


def export(
    model: Ranker,
    folder: Path | str,
    index: str | None = "auto",
    item_text: Mapping[str, np.ndarray] | None = None,
    split: Split | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Bundle:
    """Write ``model`` to ``folder``, whole or not at all, and give the bundle that :meth:`Bundle.load` would give.

    Args:
        index: "exact" or "hnsw" for a model with ``item_vectors()``, None for no index; "auto" is exact where it can.
        item_text: columns (titles, ...) aligned with the item rows, entry 0 for padding; default: those of ``split``.
        split: the data it was trained on; its validation users are the queries on which an hnsw index is measured.
        metrics: numbers to keep in the manifest, such as ``report.means()``.

    Raises:
        ValueError: the model is not fitted or cannot be saved, or an index is asked for that it cannot have.
        TypeError: a part cannot be described as class and JSON arguments.
        FileExistsError: ``folder`` holds something that is not a bundle.
    """
    if not model.saved:
        raise ValueError(f"{type(model).__name__} cannot be exported: it lives in the process that trained it")
    refuse_foreign(folder, KIND)
    vectored = hasattr(model, "item_vectors")
    if index not in INDEXES or (index in ("exact", "hnsw") and not vectored):
        reason = "" if index not in INDEXES else f"; {type(model).__name__} has no item vectors, so it takes no index"
        raise ValueError(f'index must be "auto", "exact", "hnsw" or None, found {index!r}{reason}')
    if model.vocabulary is None:
        raise ValueError(f"{type(model).__name__} does not know a catalogue yet: fit it, then export it")
    if item_text is None and split is not None:
        item_text = split.item_text
    described = {"model": describe(model)}
    vocabulary = model.vocabulary
    built: list[Index] = []

    def fill(partial: Path) -> dict[str, Any]:
        model.eval()
        (partial / "model.json").write_text(json.dumps(described, indent=2, ensure_ascii=False), encoding="utf-8")
        write_tensors(partial / "model.safetensors", model.tensors())
        vocabulary.save(partial, "items")
        if item_text:
            _save_text(partial / "items.parquet", item_text, vocabulary)
        if vectored and index is not None:
            built.append(_save_index(model, partial, index, split))
        data = None if split is None else {"name": split.name, "hash": split.data_hash, "protocol": split.protocol}
        facts = {
            "library": f"recsys {recsys.__version__}",
            "torch": torch.__version__,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": described["model"]["class"],
            "num_items": model.num_items,
            "data": data,
            "cut": None if model.cut is None else model.cut.to_dict(),
            "index": {"kind": built[0].kind, "dim": built[0].dim, "recall": built[0].recall} if built else None,
            "metrics": dict(metrics) if metrics else None,
        }
        return json.loads(json.dumps(facts, default=str))

    write_folder(folder, KIND, FORMAT, fill, apart=(INDEX,))
    manifest = read_manifest(folder, KIND, FORMAT, verify=False, apart=(INDEX,))
    return Bundle(Path(folder), model, built[0] if built else None, manifest)


class Bundle:
    """An exported recommender, ready to serve: raw ids in, raw ids out, through the index where there is one."""

    def __init__(self, folder: Path, model: Ranker, index: Index | None, manifest: dict[str, Any]) -> None:
        self.folder, self.model, self.index, self.manifest = folder, model, index, manifest

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
        index = None
        if manifest.get("index") is not None:
            from recsys.index import Index

            with reading(folder, "export it again"):
                index = Index.load(folder / INDEX, verify)
            if not np.array_equal(index.slots.ids, vocabulary.ids):
                raise DataError(f"the index in {folder} holds other items than the model: export it again")
        return cls(folder, model, index, manifest)

    def __str__(self) -> str:
        text = f"bundle {self.folder}: {type(self.model).__name__}, {len(self.vocabulary):,} items"
        if self.index is None:
            return f"{text}, no index (all items are scored)"
        text = f"{text}, {self.index.kind} index"
        recall = self.index.recall
        if not recall:
            return text
        asked = "user vectors" if recall["queries"] == "given" else "item vectors"
        return f"{text}, recall@{recall['k']} {recall['value']:.4f} against exact on {recall['num_queries']:,} {asked}"

    @property
    def vocabulary(self) -> Vocabulary:
        """Raw item ids and their rows."""
        assert self.model.vocabulary is not None
        return self.model.vocabulary

    @cached_property
    def item_text(self) -> dict[str, np.ndarray]:
        """Column -> object array aligned with the item rows (entry 0 is padding); empty if none was exported."""
        path = self.folder / "items.parquet"
        if not path.is_file():
            return {}
        import polars as pl

        with reading(path, "export it again"):
            _, *columns = pl.read_parquet(path)  # the first one holds the raw ids
            if any(len(column) != len(self.vocabulary) for column in columns):
                raise ValueError(f"it has other rows than the {len(self.vocabulary):,} items")
            return {column.name: np.array(["", *column.to_list()], object) for column in columns}

    def recommend(
        self, histories: Sequence[Any], k: int = 10, exclude: str = "history", allow: Sequence[Any] | None = None
    ) -> TopK:
        """The ``k`` best items for each raw history, as :meth:`recsys.ranker.Ranker.recommend` has it.

        With an exact index the lists are those of the model; with an hnsw index they are approximate, unless ``allow``
        is given. What is excluded is fetched beyond ``k`` and dropped, so that ``k`` items come back if they exist.

        Raises:
            ValueError: ``k`` is not in 1..N, or ``exclude`` is neither "history" nor "none".
            TypeError: a history is one id, not a list of them.
        """
        if self.index is None:
            return self.model.recommend(histories, k, exclude, allow)
        self.model._check(k, exclude)
        histories = as_histories(histories)
        raw = [one.items for one in histories]
        owner = np.repeat(np.arange(len(raw)), [len(one) for one in raw])
        rows = self.vocabulary.rows(list(chain.from_iterable(raw)))
        unknown = np.bincount(owner[rows <= PAD], minlength=len(raw))
        known = np.bincount(owner[rows > PAD], minlength=len(raw))
        deny = (owner[rows > PAD], rows[rows > PAD] - 1) if exclude == "history" else None
        queries = self.model.user_vectors(histories)  # type: ignore[operator]
        slots, scores = self.index.nearest(queries, k, self._allowed(allow), deny)
        top = TopK(slots + 1, scores, unknown, known == 0, self.vocabulary)
        return self._fall_back(top, k, allow) if top.fallback.any() else top

    def _allowed(self, allow: Sequence[Any] | None) -> np.ndarray | None:
        if allow is None:
            return None
        rows = self.vocabulary.rows(allow)
        if (rows <= PAD).any():
            warnings.warn(
                f"{int((rows <= PAD).sum())} of {len(rows)} allowed items are not in the catalogue", DataWarning, 3
            )
        return rows[rows > PAD] - 1

    def _fall_back(self, top: TopK, k: int, allow: Sequence[Any] | None) -> TopK:
        """Popularity for the histories without a known item, with the model's own rule and warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            popular = self.model.recommend([[]], k, allow=allow)
        top.rows[top.fallback], top.scores[top.fallback] = popular.rows[0], popular.scores[0]
        note = f"{int(top.fallback.sum())} of {len(top)} histories hold no known item and are ranked by popularity"
        warnings.warn(note, DataWarning, stacklevel=3)
        return top


def _save_index(model: Any, partial: Path, kind: str, split: Split | None) -> Index:
    from recsys.index import Index

    vectors = np.ascontiguousarray(model.item_vectors(), np.float32)
    write_tensors(partial / "vectors.safetensors", {"item_vectors": torch.from_numpy(vectors)})
    queries = None if split is None else _user_vectors(model, split)
    kind = "exact" if kind == "auto" else kind
    index = Index.build(vectors, model.vocabulary.ids, kind=kind, recall_queries=queries)
    index.save(partial / INDEX)
    return index


@torch.inference_mode()
def _user_vectors(model: Any, split: Split) -> np.ndarray | None:
    part = split.valid if len(split.valid) else split.test
    if not len(part):
        return None
    chosen = np.unique(np.linspace(0, len(part) - 1, min(len(part), RECALL_USERS)).astype(np.int64))
    batch = part.batch(chosen, model.max_length, model.needs).to(model.popularity.device)
    return np.asarray(model.vectors(batch).cpu().numpy())


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
    pl.DataFrame(columns).write_parquet(path)
