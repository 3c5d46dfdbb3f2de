"""Item vectors that a trained model saved: those in the folder of a run, of a bundle, or of vectors."""

from __future__ import annotations

from pathlib import Path

from recsys.errors import DataError
from recsys.ids.vectors import KIND as VECTORS
from recsys.ids.vectors import Vectors
from recsys.ids.vocabulary import Vocabulary
from recsys.storage.layout import CONFIG, VOCABULARY, WEIGHTS
from recsys.storage.layout import KIND as RUN
from recsys.storage.reading import outside, read_json, reading
from recsys.storage.tensors import read_tensors

BUNDLE = "recsys.bundle"


def saved_vectors(folder: str | Path) -> Vectors:
    """The item vectors in the folder of a run, a bundle or vectors, by raw id.

    The manifest of those of a trained model holds the digest of the events that it learned from as ``cut``.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: it holds none that can be read without its model.
    """
    outside(folder, "folder of item vectors")
    path = Path(folder).absolute()
    if not (path / "manifest.json").is_file():
        raise FileNotFoundError(f"{path} is not a folder of a run, a bundle or vectors: it has no manifest.json")
    matrix, cut = None, None
    with reading(path, "make it again"):
        manifest = read_json(path / "manifest.json", "make it again")
        kind = manifest.get("kind")
        if kind == RUN and (path / WEIGHTS).is_file():
            cut = read_json(path / CONFIG, "make it again").get("cut") if (path / CONFIG).is_file() else None
            tensors = read_tensors(path / WEIGHTS)
            found = tensors.get("items.output_weight", tensors.get("items.weight"))
            ids = Vocabulary.load(path / VOCABULARY, "items").ids
            matrix = None if found is None else found.numpy()[1 : len(ids) + 1]
        elif kind == BUNDLE and (path / "vectors.safetensors").is_file():
            cut = manifest.get("cut")
            matrix = read_tensors(path / "vectors.safetensors")["item_vectors"].numpy()
            ids = Vocabulary.load(path, "items").ids
        elif kind == VECTORS:
            return Vectors.load(path)
    if matrix is None:
        raise DataError(
            f"{path} holds no table of item vectors: name a finished run with IdItems, a bundle with an index, or save "
            "those of its model with recsys.ids.vectors.Vectors.of(ids, model.item_vectors()).save(folder)"
        )
    trained = {"cut": str(cut["digest"])} if isinstance(cut, dict) and "digest" in cut else {}
    return Vectors.of(ids, matrix, of="items", model=str(path), **trained)
