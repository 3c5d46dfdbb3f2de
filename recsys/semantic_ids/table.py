"""Semantic ids of items by raw id: a table of codes, kept as a folder.

Legend: N items, M levels, K_m codes of level m, d width of a codeword.
The folder holds ``ids`` (as :meth:`recsys.ids.vocabulary.Vocabulary.save` writes them), ``codes.npy`` (N, M) int32,
``codewords.m.npy`` (K_m, d) where the tokenizer has them, and ``manifest.json``. The table itself is what models are
trained on and exported with: another version of FAISS, or of the vectors, gives other codes.
:func:`recsys.semantic_ids.make.make_semantic_ids` writes it; :meth:`SemanticIds.of` takes codes from anywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.ids.vocabulary import Vocabulary
from recsys.semantic_ids.quality import quality_lines
from recsys.storage.arrays import read_array, write_array
from recsys.storage.folders import read_manifest, write_folder
from recsys.storage.reading import outside, reading

KIND = "recsys.semantic-ids"
FORMAT = 1
CODES = "codes.npy"
_OWN = ("kind", "format", "files", "items", "sizes", "ordered", "digest", "codewords")  # written from the table
_REMEDY = "make them again, or copy the folder again"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """The codes of every item.

    >>> ids = SemanticIds.of(["pear", "plum", "fig"], [[0, 1], [0, 0], [2, 1]])
    >>> ids.sizes, ids.aligned(Vocabulary(np.array(["fig", "pear"], object), first=1)).tolist()
    ((3, 2), [[0, 0], [2, 1], [0, 1]])
    """

    vocabulary: Vocabulary  # the raw ids, from row 0
    codes: np.ndarray  # (N, M) int32: row j is of the item ids[j], the code of level m in 0..sizes[m]-1
    sizes: tuple[int, ...]  # (M,): codes per level
    ordered: bool = True  # whether a code means something only after those before it (residual codes)
    manifest: dict[str, Any] = field(default_factory=dict)  # how they were made, their quality
    codewords: list[np.ndarray] | None = None  # (K_m, d) of the first levels; an appended level has none
    path: Path | None = None

    @classmethod
    def of(
        cls,
        table: Any = None,
        codes: Any = None,
        sizes: Sequence[int] | None = None,
        ordered: bool = True,
        codewords: list[np.ndarray] | None = None,
        *,
        ids: Any = None,
        columns: str | Sequence[str] | None = None,
        **manifest: Any,
    ) -> SemanticIds:
        """Codes of your own: ``of(ids, codes)`` with raw ids (N,), all ints or all strings, and their codes (N, M) in
        the same order; or ``of(frame, ids="item")`` with both in a frame of Polars or pandas, or an Arrow table.

        Args:
            table: raw ids, or a frame.
            codes: whole numbers from 0; None with a frame.
            sizes: codes per level (default: one more than the largest that occurs).
            ordered: False where each code means something by itself, as those of product quantisation do.
            codewords: per level the (K_m, d) vectors that the codes stand for, of the first levels at least.
            ids: of a frame, the column of ids.
            columns: of a frame, the column that holds a list per row, or those of codes, in order; None: all others.
            manifest: JSON values kept with them.

        Raises:
            DataError: an id occurs twice, the counts differ, or a code is not a whole number below its size.
        """
        if codes is None:
            from recsys.readers.frames import vectors_of

            table, codes = vectors_of(table, ids, columns)
        elif table is None:
            table = ids
        elif ids is not None or columns is not None:
            raise TypeError("ids= and columns= name columns of a frame; with codes the ids come first: of(ids, codes)")
        names = table if isinstance(table, np.ndarray) and table.dtype.kind in "iu" else _objects(table)
        whole = _whole_numbers(codes)
        if len(names) != len(whole):
            raise DataError(f"there are codes of {len(whole):,} items for {len(names):,} ids: one row per id")
        found = tuple(int(one) + 1 for one in whole.max(axis=0))
        sizes = found if sizes is None else tuple(int(one) for one in sizes)
        _check_range(whole, sizes)
        words = None if codewords is None else [np.asarray(one, np.float32) for one in codewords]
        _check_codewords(words, sizes)
        return cls(Vocabulary(names, first=0), whole.astype(np.int32), sizes, bool(ordered), dict(manifest), words)

    @classmethod
    def load(cls, path: str | Path, verify: bool = True) -> SemanticIds:
        """Read a folder of semantic ids. ``verify`` also compares the checksums.

        Raises:
            FileNotFoundError: there is no such folder.
            DataError: it is something else, of another version, or damaged.
        """
        outside(path, "folder of semantic ids")
        path = Path(path).absolute()
        manifest = read_manifest(path, KIND, FORMAT, verify)
        codes = read_array(path / CODES, _REMEDY, kinds="i", ndim=2)
        vocabulary = Vocabulary.load(path, "ids")
        with reading(path / "manifest.json", _REMEDY):
            sizes, ordered = tuple(int(one) for one in manifest["sizes"]), bool(manifest["ordered"])
            count, digest = int(manifest["codewords"]), str(manifest["digest"])
        words = [read_array(_codewords(path, level), _REMEDY, kinds="f", ndim=2) for level in range(count)] or None
        with reading(path, _REMEDY):
            if len(codes) != len(vocabulary) or not len(codes):
                raise DataError(f"{len(vocabulary):,} ids for codes of shape {codes.shape}")
            _check_range(codes, sizes)
            _check_codewords(words, sizes)
            found = cls(vocabulary, codes.astype(np.int32, copy=False), sizes, ordered, manifest, words, path)
            if found.digest != digest:
                raise DataError("the codes are not those that the manifest was written for (their digest differs)")
        return found

    def save(self, path: str | Path) -> SemanticIds:
        """Write them to a folder, whole or not at all, and open it.

        Raises:
            FileExistsError: the folder holds something else.
        """
        write_folder(path, KIND, FORMAT, self.write)
        return type(self).load(path)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files into ``folder``; the answer is what its manifest says."""
        self.vocabulary.save(folder, "ids")
        write_array(folder / CODES, self.codes)
        for level, words in enumerate(self.codewords or []):
            write_array(_codewords(folder, level), np.asarray(words, np.float32))
        told = {key: value for key, value in self.manifest.items() if key not in _OWN}
        own = {"items": len(self), "sizes": list(self.sizes), "ordered": self.ordered, "digest": self.digest}
        return {**told, **own, "codewords": len(self.codewords or [])}

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def ids(self) -> np.ndarray:
        """(N,) int64 or object array of ``str``: the raw ids, in the order of the rows of ``codes``."""
        return self.vocabulary.ids

    @property
    def levels(self) -> int:
        """M."""
        return len(self.sizes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of codes, sizes and raw ids in order: a model of other codes than it was trained on is refused."""
        found = hashlib.sha256(f"{list(self.sizes)} {self.vocabulary.digest} ".encode())
        found.update(np.ascontiguousarray(self.codes, dtype="<i4").data)
        return found.hexdigest()

    def aligned(self, vocabulary: Vocabulary) -> np.ndarray:
        """(first + N', M) int64: the codes by the rows of ``vocabulary``; row 0 of items, padding, is zeros.

        Raises:
            DataError: an item of the vocabulary has no codes.
        """
        at = self.vocabulary.rows(vocabulary.ids)
        missing = (at < 0) & vocabulary.alive
        if missing.any():
            sample = vocabulary.raw(np.flatnonzero(missing)[:3] + vocabulary.first).tolist()
            raise DataError(
                f"{int(missing.sum()):,} of {len(vocabulary):,} items have no semantic ids, such as {sample}: "
                f"{self.path or 'the table'} has those of {len(self):,} items such as {self.ids[:3].tolist()}; make "
                "them for these data (recsys semantic-ids, rs.make_semantic_ids)"
            )
        table = np.zeros((vocabulary.first + len(vocabulary), self.levels), np.int64)
        table[vocabulary.first :][at >= 0] = self.codes[at[at >= 0]]
        return table

    def __str__(self) -> str:
        told = self.manifest
        facts = told.get("true_facts") or told.get("facts") or {}
        lines = [repr(self)[:-1].replace("SemanticIds(", "semantic ids: ")]
        if tokenizer := facts.get("tokenizer"):
            lines.append(f"  tokenizer  {_named(tokenizer)}")
        for source in facts.get("vectors", []):
            lines.append(f"  vectors    {source.get('model', 'not stated')}, {source.get('width')} wide")
        if "control" in told:
            lines.append(f"  CONTROL    {told['control']}, seed {told.get('seed')}: these codes are not of their items")
        if "fitted" in told:
            lines.append(f"  fitted on  {told['fitted']:,} items ({facts.get('fit_on')})")
        if told.get("without_vector"):
            lines.append(f"  missing    {told['without_vector']:,} items without a vector: the mean stands in")
        return "\n".join([*lines, *quality_lines(told.get("quality", {})), f"  folder     {self.path or 'not saved'}"])

    def __repr__(self) -> str:
        sizes = f"{list(self.sizes)}" if len(set(self.sizes)) > 1 else f"{self.levels} x {self.sizes[0]}"
        return f"SemanticIds({len(self):,} items, sizes {sizes}, {'' if self.ordered else 'un'}ordered)"


def _named(tokenizer: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in tokenizer.get("arguments", {}).items())
    return f"{str(tokenizer.get('class')).rpartition(':')[2]}({arguments})"


def _codewords(folder: Path, level: int) -> Path:
    return folder / f"codewords.{level}.npy"


def _objects(ids: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Ids as an array that keeps ints ints and strings strings."""
    values = [one.item() if isinstance(one, np.generic) else one for one in ids]
    if values and all(type(one) is int for one in values):
        return np.array(values, np.int64)
    names = np.empty(len(values), dtype=object)
    names[:] = values
    return names


def _whole_numbers(codes: Any) -> np.ndarray:
    """(N, M) int64 of codes in any form."""
    try:
        table = np.asarray(codes)
        with np.errstate(invalid="ignore"):  # NaN is told below
            whole = table.astype(np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"codes must be whole numbers, one row of equal length per item: {error}") from error
    if table.dtype.kind not in "iuf" or (table.dtype.kind == "f" and not (np.isfinite(table) & (table == whole)).all()):
        raise DataError(f"codes must be whole numbers, found {table.dtype} such as {table.reshape(-1)[:3].tolist()}")
    if table.ndim != 2 or 0 in table.shape:
        raise DataError(f"codes must have shape (items, levels), found {table.shape}")
    return whole


def _check_range(codes: np.ndarray, sizes: tuple[int, ...]) -> None:
    if len(sizes) != codes.shape[1] or min(sizes, default=0) < 1:
        raise DataError(f"sizes must give the codes of each of {codes.shape[1]} levels, found {list(sizes)}")
    wrong = (codes < 0) | (codes >= np.array(sizes))
    if wrong.any():
        row, level = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{int(wrong.sum()):,} codes are out of range, such as {int(codes[row, level])} of level {level + 1}, "
            f"whose codes are 0..{sizes[level] - 1}: give sizes= that fit, or number the codes of each level from 0"
        )


def _check_codewords(words: list[np.ndarray] | None, sizes: tuple[int, ...]) -> None:
    shapes = [one.shape for one in words or []]
    fits = all(len(shape) == 2 and shape[0] == size for shape, size in zip(shapes, sizes, strict=False))
    if len(shapes) > len(sizes) or not fits:
        raise DataError(f"codewords must have shapes (codes of the level, width), found {shapes} for sizes {sizes}")
