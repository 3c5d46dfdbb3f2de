"""A trained recommender read back from the folder of its run. :mod:`recsys.runs.write` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recsys.data.cut import Cut
from recsys.errors import DataError, printable
from recsys.ids.vocabulary import Vocabulary
from recsys.protocols import Context
from recsys.recommenders.base import Ranker
from recsys.storage.bounds import bounded
from recsys.storage.folders import check_hashes
from recsys.storage.kinds import missing, mistaken
from recsys.storage.layout import CONFIG, FORMAT, KIND, MANIFEST, STOPS, VOCABULARY, WEIGHTS
from recsys.storage.parts import build, class_of
from recsys.storage.reading import inert, read_json, reading
from recsys.storage.tensors import read_tensors as read_tensors
from recsys.storage.tensors import refuse_not_finite, sizes


def load_run(folder: str | Path, trust: Sequence[str] = (), verify: bool = True) -> Ranker:
    """The model of a run folder with its best weights, ready to recommend. Needs neither the data nor pickle.

    Args:
        trust: modules (or packages) outside recsys whose parts may be constructed, whose code runs; and folders or hub
            names that the model may read besides its own folder.
        verify: compare the files with the hashes written beside them; leave it out after changing one by hand.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: a part comes from a module that is neither ours nor trusted, or would be read from elsewhere.
        DataError: the folder is damaged, of another version, or stopped before its first epoch was over; or its
            weights are not finite.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(missing(path, KIND))
    config = read_config(path, verify)
    _require_weights(path)
    vocabulary = Vocabulary.load(path / VOCABULARY, "items")
    if config.get("num_items") != len(vocabulary):
        raise DataError(
            f"{printable(path / CONFIG, None)} says {printable(config.get('num_items'))} items, and {VOCABULARY} holds "
            f"{len(vocabulary):,}: copy the run folder again"
        )
    model = load_model(config.get("model"), path / WEIGHTS, vocabulary, trust, verify)
    model.cut = cut_of(path, config)
    return model


def load_model(
    described: Any, weights: Path, vocabulary: Vocabulary, trust: Sequence[str] = (), verify: bool = True
) -> Ranker:
    """The recommender that was described as JSON, with its tensors, ready to recommend.

    Making it reads nothing but ``weights``, and takes no more memory than these can fill.

    Raises:
        PermissionError: a part comes from a module that is neither ours nor trusted, or would be read from elsewhere.
        DataError: it is not a recommender, or the file is damaged, does not fit or holds what is not finite.
    """
    with reading(weights.parent, "copy or write it again"):
        if vocabulary.first != 1:
            raise ValueError(f"its items begin at row {vocabulary.first}")
        cls = class_of(described, trust)
        if not issubclass(cls, Ranker):
            raise DataError(f"{printable(weights.parent, None)} holds a {cls.__name__}, which is not a recommender")
        with inert(trust), bounded(sizes(weights)):
            model: Ranker = build(described, trust)
            model.bind(Context(num_items=len(vocabulary), vocabulary=vocabulary))
        tensors = read_tensors(weights, verify)
        refuse_not_finite(weights, tensors, never=dict(model.named_buffers(remove_duplicate=False)))
        model.load_tensors(tensors)
    model.eval()
    return model


def read_config(path: Path, verify: bool = False) -> dict[str, Any]:
    """``config.json`` of a run that this version can read; ``verify`` compares its hash and those of the vocabulary.

    Raises:
        DataError: it is missing, damaged or of another format.
    """
    if not (path / MANIFEST).exists():
        raise DataError(missing(path, KIND))
    remedy = "the run folder is damaged: copy it again"
    manifest = read_json(path / MANIFEST, remedy)
    if manifest.get("kind") != KIND:
        raise DataError(mistaken(path, manifest.get("kind"), KIND))
    config = read_json(path / CONFIG, remedy)
    if config.get("format") != FORMAT:
        raise DataError(
            f"{printable(path, None)} has run format {printable(repr(config.get('format')))}, and this version of "
            f"recsys reads format {FORMAT}"
        )
    if verify and "files" in manifest:  # runs of 0.1.0.dev0 have none
        check_hashes(path, manifest["files"])
    return config


def cut_of(path: Path, config: dict[str, Any]) -> Cut | None:
    """Which events the model of the run at ``path`` learned from, by its config; None for a run that did not keep it.

    Raises:
        DataError: what was kept is damaged.
    """
    kept = config.get("cut")
    if kept is None:
        return None
    with reading(path / STOPS, "copy the run folder again"):
        stops = read_tensors(path / STOPS)["stops"].numpy() if (path / STOPS).is_file() else None
        return Cut.from_dict(kept, stops)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The best weights of a run so far.

    Raises:
        DataError: there are none yet, or the file is damaged.
    """
    _require_weights(path)
    return read_tensors(path / WEIGHTS)


def _require_weights(path: Path) -> None:
    if not (path / WEIGHTS).is_file():
        raise DataError(
            f"{printable(path, None)} has no {WEIGHTS}: the run stopped before its first epoch was over; resume it"
        )
