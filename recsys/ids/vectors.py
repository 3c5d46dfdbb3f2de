"""Vectors of items or users by raw id: a folder with the ids and one matrix that stays on disk.

Legend: M vectors, D width, N rows of a vocabulary.
The folder holds ``ids`` (as :meth:`recsys.ids.vocabulary.Vocabulary.save` writes them), ``vectors.npy`` (M, D) in
float32 or float16, and ``manifest.json``. :func:`recsys.llm.embed.embed` writes it from texts; :meth:`Vectors.of` takes
vectors from anywhere else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError, DataWarning
from recsys.ids.vocabulary import Vocabulary
from recsys.readers.blanks import stripped
from recsys.storage.arrays import read_array, write_array
from recsys.storage.files import write_text
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import outside

KIND = "recsys.vectors"
FORMAT = 1
ARRAY = "vectors.npy"
_DONE = ".done.json"  # in a work folder: rows that are on disk, their width, how many texts were cut
_CHUNK = 1 << 16  # rows worked on at a time


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors and the raw ids they belong to.

    >>> own = Vectors.of(["pear", "plum"], np.eye(2))
    >>> matrix, known = own.aligned(Vocabulary(np.array(["plum", "fig"], object), first=1))
    >>> matrix.tolist(), known.tolist()
    ([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [False, True, False])
    """

    vocabulary: Vocabulary  # the raw ids, from row 0
    array: np.ndarray  # (M, D) float32 or float16; read-only and memory-mapped when loaded
    manifest: dict[str, Any] = field(default_factory=dict)  # what they are and how they were made
    path: Path | None = None

    @classmethod
    def of(
        cls,
        table: Any = None,
        array: Any = None,
        *,
        ids: Any = None,
        columns: str | Sequence[str] | None = None,
        **manifest: Any,
    ) -> Vectors:
        """Vectors of your own: ``of(ids, array)`` with raw ids (M,), all ints or all strings, and their vectors (M, D)
        in the same order; or ``of(frame, ids="item")`` with both in a frame of Polars or pandas, or an Arrow table.

        As in events, blanks around ids are taken off; a warning counts them.

        Args:
            table: raw ids, or a frame.
            array: anything numpy takes; float16 stays float16, all else becomes float32. None with a frame.
            ids: of a frame, the column of ids.
            columns: of a frame, the column that holds a list per row, or the columns of numbers; None: all others.
            manifest: JSON values kept with them, such as ``of="items"`` and ``model="..."``.

        Raises:
            DataError: an id occurs twice, the counts differ, or a value is not a finite number.
        """
        if array is None:
            from recsys.readers.frames import vectors_of

            table, array = vectors_of(table, ids, columns)
        elif table is None:
            table = ids
        elif ids is not None or columns is not None:
            raise TypeError(
                "ids= and columns= name columns of a frame; with an array the ids come first: of(ids, array)"
            )
        names = _without_blanks(_names(table))
        try:
            matrix = np.asarray(array)
            if np.iscomplexobj(matrix):
                raise TypeError("found complex numbers")
            matrix = matrix if matrix.dtype == np.float16 else matrix.astype(np.float32, copy=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"vectors must be a table of numbers, one row per id: {error}") from error
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise DataError(f"vectors must have shape (ids, width), found {matrix.shape}")
        if names.ndim != 1 or len(names) != len(matrix):
            raise DataError(f"there are {len(matrix):,} vectors for ids of shape {names.shape}: one id per vector")
        _refuse_repeated(names)
        vectors = cls(Vocabulary(names, first=0), matrix, dict(manifest))
        for start in range(0, len(matrix), _CHUNK):
            check_finite(names[start : start + _CHUNK], matrix[start : start + _CHUNK])
        return vectors

    @classmethod
    def load(cls, path: str | Path, verify: bool = False) -> Vectors:
        """Open a folder of vectors; the matrix stays on disk. ``verify`` also compares the checksums.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is something else, of another version, or damaged.
        """
        outside(path, "folder of vectors")
        path = Path(path).absolute()
        manifest = read_manifest(path, KIND, FORMAT, verify)
        array = read_array(path / ARRAY, "make it again", mapped=True, kinds="f", ndim=2)
        ids = Vocabulary.load(path, "ids")
        if len(array) != len(ids) or array.dtype not in (np.float16, np.float32):
            raise DataError(f"{path} is damaged: {len(ids):,} ids for a matrix of shape {array.shape}")
        return cls(ids, array, manifest, path)

    def save(self, path: str | Path) -> Vectors:
        """Write them to a folder, whole or not at all, and open it.

        Raises:
            FileExistsError: the folder holds something else.
        """

        def fill(partial: Path) -> dict[str, Any]:
            self.vocabulary.save(partial, "ids")
            write_array(partial / ARRAY, self.array)
            return {key: value for key, value in self.manifest.items() if key not in ("kind", "format", "files")}

        write_folder(path, KIND, FORMAT, fill)
        return type(self).load(path)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def ids(self) -> np.ndarray:
        """(M,) int64 or object array of ``str``: the raw ids, in the order of the rows of ``array``."""
        return self.vocabulary.ids

    @property
    def width(self) -> int:
        """D."""
        return int(self.array.shape[1])

    def digest(self) -> str:
        """SHA-256 of ids and numbers."""
        found = hashlib.sha256(repr((self.ids.tolist(), self.array.shape, str(self.array.dtype))).encode())
        for start in range(0, len(self), _CHUNK):
            found.update(np.ascontiguousarray(self.array[start : start + _CHUNK]).data)
        return found.hexdigest()

    def aligned(self, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
        """The vectors by the rows of ``vocabulary``: (first + N, D) float32, and (first + N,) bool where there is one.

        ``first`` is 1 for items, so row 0, padding, is zero and False, like every row that has no vector.

        Raises:
            DataError: no id of the vocabulary has a vector.
        """
        rows = vocabulary.rows(self.ids)
        if not (rows >= 0).any():
            raise DataError(
                f"none of the {len(vocabulary):,} ids, such as {_sample(vocabulary)}, has a vector: the vectors are "
                f"for ids such as {self.ids[:3].tolist()}; are they of other data?"
            )
        size = vocabulary.first + len(vocabulary)
        matrix, known = np.zeros((size, self.width), np.float32), np.zeros(size, bool)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            inside = chunk >= 0
            matrix[chunk[inside]] = self.array[start : start + _CHUNK][inside]
        known[rows[rows >= 0]] = True
        return matrix, known

    def __str__(self) -> str:
        told = self.manifest
        revision = f", revision {str(told['revision'])[:12]}" if told.get("revision") else ""
        lines = [
            f"vectors of {len(self):,} {told.get('of', 'ids')}, {self.width} wide, {self.array.dtype}",
            f"  model      {told.get('model', 'not stated')}{revision}",
        ]
        lines += [f"  texts      {told['label']}"] if told.get("label") else []
        for name, what in (
            ("missing", "without text, so without vector"),
            ("truncated", "longer than the model takes"),
        ):
            if isinstance(told.get(name), int):
                lines.append(f"  {name:<10} {told[name]:,} {what}")
        return "\n".join([*lines, f"  folder     {self.path or 'not saved'}"])

    def __repr__(self) -> str:
        return f"Vectors({len(self):,} × {self.width}, {self.manifest.get('model', 'model not stated')})"


class GrowingMatrix:
    """The matrix of a folder of vectors, of known height, written from the top into a work folder.

    What :meth:`append` took survives a kill; made again on the same work folder it goes on behind that. ``truncated``
    adds up what was said with each piece.
    """

    def __init__(self, work: Path, rows: int, dtype: np.dtype[Any]) -> None:
        self.path, self.record, self.rows, self.dtype = work / ARRAY, work / _DONE, rows, dtype
        self.done, self.width, self.truncated = 0, 0, 0
        if self.record.is_file() and self.path.is_file():
            try:
                done, width, truncated = json.loads(self.record.read_text(encoding="utf-8"))
            except (ValueError, TypeError):  # emptied by a power cut: start over
                return
            if self.path.stat().st_size >= self._end(done, width):
                self.done, self.width, self.truncated = done, width, truncated

    def append(self, vectors: np.ndarray, truncated: int) -> None:
        if self.done and vectors.shape[1] != self.width:
            raise ValueError(f"the model gave vectors of width {vectors.shape[1]}, and {self.width} before")
        self.width = vectors.shape[1]
        try:
            self._write(vectors, truncated)
        except OSError as error:
            kept = f"{self.done:,} of {self.rows:,} rows are kept, and the same call goes on there"
            raise OSError(error.errno, f"{error.strerror or error}; {kept}", str(self.path)) from error

    def _write(self, vectors: np.ndarray, truncated: int) -> None:
        with self.path.open("r+b" if self.done else "wb") as stream:
            if not self.done:
                stream.write(self._header(self.width))
            stream.seek(self._end(self.done, self.width))
            stream.write(np.ascontiguousarray(vectors, self.dtype).tobytes())
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        done, truncated = self.done + len(vectors), self.truncated + truncated
        write_text(self.record, json.dumps([done, self.width, truncated]))
        self.done, self.truncated = done, truncated

    def _header(self, width: int) -> bytes:
        stream = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtype)
        shape = {"descr": descr, "fortran_order": False, "shape": (self.rows, width)}
        np.lib.format.write_array_header_1_0(stream, shape)
        return stream.getvalue()

    def _end(self, rows: int, width: int) -> int:
        return len(self._header(width)) + rows * width * self.dtype.itemsize


def check_finite(ids: Sequence[Any] | np.ndarray, array: np.ndarray) -> None:
    """Raise DataError if a row of ``array`` (n, D) holds what is not a finite number, and name its id."""
    wrong = ~np.isfinite(array).all(axis=1)
    if wrong.any():
        first = _plain(ids[int(wrong.argmax())])
        raise DataError(
            f"the vector of {first!r} holds NaN or infinity ({int(wrong.sum()):,} of {len(array):,} do): leave ids "
            "out that have no vector, and use float32 where float16 overflows"
        )


def _names(ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Ids as an array that keeps ints ints and strings strings."""
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        return ids
    values = [_plain(key) for key in ids]
    if values and all(type(value) is int for value in values):
        return np.array(values)
    names = np.empty(len(values), dtype=object)
    names[:] = values
    return names


def _without_blanks(ids: np.ndarray) -> np.ndarray:
    """Ids as reading events would give them."""
    if ids.dtype != object and ids.dtype.kind != "U":
        return ids
    given = ids.tolist()
    plain = [stripped(key) if isinstance(key, str) else key for key in given]
    count = sum(isinstance(key, str) and len(key) > len(one) for key, one in zip(given, plain, strict=True))
    if not count:
        return ids
    warnings.warn(
        f"{count:,} of {len(ids):,} ids of vectors had blanks around them, which were taken off as in events",
        DataWarning,
        stacklevel=3,
    )
    return _names(plain)


def _refuse_repeated(ids: np.ndarray) -> None:
    try:
        values, counts = np.unique(ids, return_counts=True)
    except TypeError:
        return  # ints and strings mixed, which the vocabulary refuses
    if (repeated := counts > 1).any():
        found, sample = int(repeated.sum()), _plain(values[repeated][0])
        raise DataError(f"{found:,} ids have more than one vector, such as {sample!r}: keep one of each")


def _plain(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def _sample(vocabulary: Vocabulary) -> list[Any]:
    first = vocabulary.first
    return vocabulary.raw(np.arange(first, first + min(3, len(vocabulary)))).tolist()
