"""A trained recommender read back from the folder of its run. :mod:`recsys.train.folder` writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recsys.data.vocabulary import Vocabulary
from recsys.errors import DataError
from recsys.parts import build
from recsys.ranker import Ranker
from recsys.seams import Context

KIND = "recsys.run"
FORMAT = 1
MANIFEST, CONFIG, WEIGHTS, VOCABULARY = "manifest.json", "config.json", "model.safetensors", "vocabulary"


def load_run(folder: str | Path, trust: Sequence[str] = ()) -> Ranker:
    """The model of a run folder with its best weights, ready to recommend. Needs neither the data nor pickle.

    Args:
        trust: modules (or packages) outside recsys whose parts may be constructed; their code runs.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: a part comes from a module that is neither ours nor trusted.
        DataError: the folder is damaged, of another version, or stopped before its first epoch was over.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist: pass the folder given to fit(..., folder=...)")
    config = read_config(path)
    tensors = read_weights(path)
    model: Ranker = build(config["model"], trust)
    model.bind(Context(config["num_items"], Vocabulary.load(path / VOCABULARY, "items")))
    model.load_tensors(tensors)
    model.eval()
    return model


def read_config(path: Path) -> dict[str, Any]:
    """``config.json`` of a run that this version can read.

    Raises:
        DataError: it is missing, damaged or of another format.
    """
    try:
        kind = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["kind"]
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        form = config["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a run folder, or it is damaged ({error!r})") from error
    if kind != KIND:
        raise DataError(f"{path} is a folder of kind {kind!r}, and a run ({KIND!r}) was expected")
    if form != FORMAT:
        raise DataError(f"{path} has run format {form!r}, and this version of recsys reads format {FORMAT}")
    return dict(config)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The best weights of a run so far.

    Raises:
        DataError: there are none yet, or the file is damaged.
    """
    if not (path / WEIGHTS).is_file():
        raise DataError(f"{path} has no {WEIGHTS}: the run stopped before its first epoch was over; resume it")
    return read_tensors(path / WEIGHTS)


def hash_run(folder: str | Path) -> str:
    """SHA-256 of the model of a run, its config and best weights.

    Raises:
        FileNotFoundError: it has none.
    """
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (Path(folder) / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        DataError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): the file is missing or damaged") from error
