"""The split that a run was trained on: kept in the cache, noted in the run folder, found again for its evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from recsys.errors import DataError, DataWarning
from recsys.plain import printable
from recsys.storage.files import fresh, write_text
from recsys.storage.reading import read_json
from recsys.train.folder import data_facts

if TYPE_CHECKING:
    from recsys.data.split import Split
    from recsys.ranker import Ranker

NOTE, SPLITS = "split.json", "splits"


def remember_split(split: Split, run: Path) -> None:
    """Keep the split in the cache, and where it is in the run folder, so that the run can be evaluated again."""
    from recsys.data.fetch import cache_folder

    facts = {"data": data_facts(split)["hash"], **split.protocol}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    place = cache_folder() / SPLITS / f"{split.name or 'data'}-{key}"
    try:
        if not place.is_dir():
            mine = fresh(place)  # runs that end together do not meet
            split.save(mine)
            with suppress(OSError):  # another process was faster: its folder holds the same
                os.replace(mine, place)
            shutil.rmtree(mine, ignore_errors=True)
    except OSError as error:
        warnings.warn(
            f"the split of this run cannot be kept in the cache ({error}), so recsys evaluate and export will need it: "
            "write it with split.save(FOLDER), or set RECSYS_CACHE to a folder that can be written",
            DataWarning,
            stacklevel=2,
        )
        return
    write_text(run / NOTE, json.dumps({"folder": str(place.resolve()), "data_hash": split.data_hash}))


def split_of(run: Path, model: Ranker, given: Path | None = None) -> Split:
    """The split in the folder ``given``, else the one of the run.

    Raises:
        DataError: it is not there (any more), or its items are not those that ``model`` was trained on.
    """
    from recsys.data.fetch import cache_folder
    from recsys.data.split import Split

    place = given
    if place is None and (run / NOTE).is_file():
        place = read_json(run / NOTE, "delete it and pass --split FOLDER", lambda note: Path(note["folder"]))
        if place.resolve().parent != (cache_folder() / SPLITS).resolve():  # no folder is read because a file says so
            raise DataError(
                f"{run / NOTE} names {printable(place, None)}, which is not in the cache ({cache_folder()}): if you "
                "want that split, pass --split FOLDER"
            )
    if place is None or (given is None and not place.is_dir()):
        raise DataError(
            f"the split of {run} is not in the cache (any more): write it with split.save(FOLDER) and pass "
            "--split FOLDER, or fit the recipe again"
        )
    split = Split.load(place)
    known = model.vocabulary
    if known is None or split.items.kind != known.kind or split.items.ids.tolist() != known.ids.tolist():
        raise DataError(f"{place} holds a split with other items than {run} was trained on: pass one of the same data")
    for part in model.modules():
        check = getattr(part, "check_split", None)
        if callable(check):
            check(split)
    return split
