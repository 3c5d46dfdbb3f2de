"""Arrays as ``.npy`` files: no pickle, and no memory taken before the file is known to be as long as it says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np

from recsys.storage.files import replace
from recsys.storage.reading import reading


def write_array(path: Path, array: np.ndarray) -> None:
    """Replace a file by an array, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as stream:
            np.save(stream, np.ascontiguousarray(array), allow_pickle=False)

    replace(path, write)


def read_array(path: Path, remedy: str, mapped: bool = False, kinds: str = "biuf", ndim: int = 1) -> np.ndarray:
    """The array in a file.

    Args:
        mapped: leave it on disk (read-only) rather than read it.
        kinds, ndim: which kinds of numbers and how many dimensions are expected.

    Raises:
        DataError: the file is missing, damaged, truncated or holds something else.
    """
    with reading(path, remedy):
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            start = stream.tell()
        if dtype.hasobject or dtype.kind not in kinds or len(shape) != ndim or min(shape, default=0) < 0:
            raise ValueError(f"found an array of {dtype} with shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        if path.stat().st_size != start + size:
            raise ValueError(f"{path.stat().st_size:,} bytes, {start + size:,} are expected")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if mapped and size:  # an empty file cannot be mapped
            return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=tuple(shape), order=order)
        with path.open("rb") as stream:
            stream.seek(start)
            data = bytearray(stream.read(size))
        array: np.ndarray = np.ndarray(tuple(shape), dtype, data, order=order)
        return array
