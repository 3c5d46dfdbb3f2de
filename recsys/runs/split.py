"""The split that a run was trained on: kept in the cache, noted in the run folder, found again for its evaluation.

``fit`` keeps it before it trains. Splits that share a name and a protocol may still train on other events, and be of
other texts: a kept split is named by its cut and by everything else that comes out of it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.errors import DataError, DataWarning
from recsys.hooks import having
from recsys.storage.files import fresh, is_folder, remove, write_text
from recsys.storage.reading import read_json

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.features.features import Features
    from recsys.recommenders.base import Ranker

NOTE = "split.json"
INSIDE = "split"  # folder in the run, where the cache cannot be written
REMEDY = "split.save(FOLDER) writes one to pass as --split FOLDER; or fit again (RECSYS_CACHE is where splits are kept)"
SMALL = 64 * 2**20  # bytes of a split that a run folder may hold


def remember_split(split: Split, run: Path) -> None:
    """Keep the split in the cache, and its name there in the run folder, so that the run can be evaluated again.

    Where the cache cannot be written, a small split is kept in the run folder and a large one not at all; a warning
    says which. Training does not end for it.
    """
    if split.users is None or split.items is None:
        return  # put together by hand: it cannot be saved
    name = _name(split)
    note: dict[str, Any] = {"cache": name, "cut": split.cut.digest, "data_hash": split.data_hash}
    warning = ""
    try:
        _keep(split, splits_folder() / name)
        _drop(run / INSIDE)
    except (OSError, DataError) as error:
        why = f"the cache cannot be written ({error}): set RECSYS_CACHE to a folder that can be"
        if split_bytes(split) <= SMALL:
            split.save(run / INSIDE)
            note["inside"] = INSIDE
            warning = f"the split is kept in {run / INSIDE}, because {why}"
        else:
            note["cache"] = None
            warning = (
                f"the split is not kept, because {why}, or save it with split.save(FOLDER) and pass --split FOLDER"
            )
    write_text(run / NOTE, json.dumps(note))
    if warning:  # last, since a warning may be an error
        warnings.warn(warning, DataWarning, stacklevel=2)


def split_of(run: Path, model: Ranker, given: Path | None = None) -> Split:
    """The split in the folder ``given``, else the one that ``run`` was trained on.

    Raises:
        FileNotFoundError: there is nothing at ``given``.
        DataError: it was not kept or is gone, it is another one than the run's, or its items are not those that
            ``model`` was trained on.
    """
    from recsys.data.split import Split

    folder, cut = (given, None) if given is not None else _kept(run)
    split = Split.load(folder)
    if cut is not None and split.cut.digest != cut:
        raise DataError(f"{folder} is not the split that {run} was trained on: {REMEDY}")
    known = model.vocabulary
    if known is None or split.items.digest != known.digest:
        same = known is not None and set(split.items.ids.tolist()) == set(known.ids.tolist())
        found = "the same items in another order than" if same else "other items than"
        raise DataError(f"{folder} holds a split with {found} {run} was trained on: pass one of the same data")
    for _, part in having(model, "check_split", used=True):
        part.check_split(split)
    return split


def splits_folder() -> Path:
    """Where the cache keeps splits."""
    from recsys.storage.cache import cache_folder

    return cache_folder() / "splits"


def split_bytes(split: Split) -> int:
    """About how much a saved split takes on disk."""
    prepared = split.prepared
    arrays = (prepared.items, prepared.offsets, prepared.times, prepared.weights, split.train_stop, split.valid_stop)
    texts = sum(len(str(text)) for column in _own_texts(split).values() for text in column)
    texts += sum(one.num_bytes for one in (*_features(split), *(split.requests or {}).values()) if one is not None)
    ids = 24 * (split.num_users + split.num_items)
    return sum(array.nbytes for array in arrays if array is not None) + ids + texts


def _name(split: Split) -> str:
    """What the split is called in the cache; another name for anything that would come back otherwise."""
    facts = [split.cut.digest, split.protocol, split.data_hash, split.name, split.audit is None]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    for features in _features(split):
        digest.update(b"" if features is None else features.digest.encode())
    for part, requests in (split.requests or {}).items():
        digest.update(f"{part} {requests.digest}".encode())
    for column, texts in _own_texts(split).items():
        digest.update(json.dumps([column, [None if text is None else str(text) for text in texts]]).encode())
    plain = re.sub(r"[^\w.-]+", "-", split.name, flags=re.ASCII).lstrip(".")[:60] or "data"
    return f"{plain}-{digest.hexdigest()[:16]}"


def _own_texts(split: Split) -> Mapping[str, Any]:
    """Texts that are not typed columns written out."""
    return {} if split.item_text is None or split.texts_are_features else split.item_text


def _features(split: Split) -> list[Features | None]:
    return [split.item_features, split.user_features, split.prepared.features]


def _keep(split: Split, folder: Path) -> None:
    """Write the split to ``folder``, unless it is there already."""
    if _is_split(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        mine = fresh(folder)  # runs that start together do not meet
        split.save(mine)
    except OSError as error:
        raise DataError(f"{folder.parent}: {error.strerror or error}") from error
    try:
        os.replace(mine, folder)
    except OSError:
        if not _is_split(folder):  # else another process was faster: its folder holds the same
            raise
    finally:
        remove(mine)


def _is_split(folder: Path) -> bool:
    """Whether there is a complete split in ``folder``, and it is not a link."""
    from recsys.data.split import FORMAT, KIND
    from recsys.storage.folders import read_manifest

    if not is_folder(folder):
        return False
    try:
        read_manifest(folder, KIND, FORMAT, verify=False)
    except (OSError, DataError):
        return False
    return True


def _drop(folder: Path) -> None:
    """Remove a split that an earlier run kept in its own folder."""
    if _is_split(folder):
        remove(folder)


def _kept(run: Path) -> tuple[Path, str | None]:
    """The folder of the split of a run, and the digest of its cut (none in runs of older versions)."""
    path = run / NOTE
    if not path.is_file():
        raise DataError(f"{run} does not say on which split it was trained: {REMEDY}")
    inside, name, cut = read_json(path, REMEDY, _noted)
    if inside is None and name is None:
        raise DataError(f"the split of {run} was not kept: {REMEDY}")
    folder = run / INSIDE if inside is not None else splits_folder() / Path(name).name
    if not _is_split(folder):
        raise DataError(f"the split of {run} is not (or not whole) at {folder}: {REMEDY}")
    return folder, cut


def _noted(note: dict[str, Any]) -> tuple[Any, str | None, str | None]:
    """What a note says: whether the split is inside the run, its name in the cache, the digest of its cut."""
    name = note.get("cache")
    if name is None and "folder" in note:  # by earlier versions
        name = note["folder"]
    if not isinstance(name, (str, type(None))):
        raise TypeError(f"the name of a folder is expected, found {name!r}")
    return note.get("inside"), name, note.get("cut")
