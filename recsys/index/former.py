"""Ids of an index as version 0.1 wrote them (format 1), read into the vocabulary that stands for them now."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary
from recsys.storage.arrays import read_array
from recsys.storage.reading import reading

REMEDY = "write the index again"


def ids_of_format_1(folder: Path) -> Vocabulary:
    """Ids by position from 0, some of them removed: ``alive.npy`` with ``ids.npy``, or ``ids_ends.npy``, ``ids.utf8``.

    Raises:
        DataError: a file is missing or damaged, or they do not belong together.
    """
    alive = read_array(folder / "alive.npy", REMEDY, kinds="b")
    if (folder / "ids.npy").is_file():
        ids = read_array(folder / "ids.npy", REMEDY, kinds="i").astype(np.int64)
    else:
        ends = read_array(folder / "ids_ends.npy", REMEDY, kinds="i")
        with reading(folder / "ids.utf8", REMEDY):
            blob = (folder / "ids.utf8").read_bytes()
            starts = np.concatenate([[0], ends])[: len(ends)]
            if (ends < starts).any() or (len(ends) and int(ends[-1]) != len(blob)):
                raise ValueError("its ends are those of other ids")
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            ids = np.empty(len(ends), object)
            ids[:] = [blob[first:last].decode("utf-8") for first, last in pairs]
    if len(ids) != len(alive):
        raise DataError(f"{folder} holds {len(ids):,} ids and marks for {len(alive):,}: {REMEDY}")
    with reading(folder, REMEDY):
        return Vocabulary(ids, 0, alive)
