"""Tensors as safetensors files: the one writer and the one reader, for runs, checkpoints and bundles.

A tensor that goes by several names (a parameter of two parts, a part used twice) is stored once; the other names are
in the metadata of the file, and reading gives the same tensor under all of them. The metadata also holds a hash of
names and contents, so that a file vouches for itself however it was copied. Files without metadata are read as well.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys.errors import DataError
from recsys.storage.files import replace
from recsys.storage.reading import reading

ENTRY = "recsys"  # of the metadata of a file
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors


class Sizes(NamedTuple):
    """What a file of tensors holds, by its header alone."""

    tensors: int
    elements: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file whole or not at all, flushed to disk, readable as the umask says.

    Raises:
        OSError: it cannot be written; for a full disk too, with what to do.
    """
    from safetensors.torch import save_file

    own, also = _distinct(once_each(tensors, lambda value: value.detach().cpu()))
    # One entry, as several would be written in any order, and equal tensors make equal files.
    metadata = {ENTRY: json.dumps({"sha256": _digest(own), "same": also})}
    replace(path, lambda partial: save_file(own, partial, metadata))


def read_tensors(path: Path, verify: bool = True, remedy: str = "copy or write it again") -> dict[str, Tensor]:
    """The tensors of a safetensors file by all their names; shared ones are one object.

    Args:
        verify: compare them with the hash in the file, where it has one.

    Raises:
        DataError: the file is missing, damaged, or not what was written.
    """
    from safetensors import safe_open

    with reading(path, remedy):
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if verify and "sha256" in told and _digest(found) != told["sha256"]:
            raise DataError(f"{path} is not what was written (its hash differs): {remedy}")
        for name, first in dict(told.get("same", {})).items():
            if name in found:
                raise ValueError(f"{name} is in it twice")
            found[name] = found[first]
        return found


def sizes(path: Path, remedy: str = "copy or write it again") -> Sizes:
    """How much a file of tensors holds, without reading them.

    Raises:
        DataError: the file is missing or damaged.
    """
    with reading(path, remedy), path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
            raise ValueError(f"its header should have {length:,} bytes")
        header = json.loads(stream.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        # One byte at least an element, so that no type makes it too few.
        return Sizes(len(ends), min(max(ends, default=0), path.stat().st_size))


def refuse_not_finite(path: Path, tensors: Mapping[str, Tensor], never: Collection[str] = ()) -> None:
    """Raise DataError if a tensor holds NaN or infinity; those named in ``never`` may hold minus infinity."""
    for name, value in tensors.items():
        if not value.is_floating_point() or bool(torch.isfinite(value).all()):
            continue
        if name in never and not bool((value.isnan() | value.isposinf()).any()):
            continue
        count = int((~torch.isfinite(value)).sum())
        raise DataError(
            f"{path}: {count:,} of the {value.numel():,} numbers of {name} are NaN or infinite, so nothing ranked with "
            "them means anything: train again (a lower learning_rate, clip_norm=1.0), or take an earlier copy"
        )


def shared(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each tensor that goes by several."""
    groups: dict[Any, list[str]] = {}
    for name, value in tensors.items():
        if value.numel():
            groups.setdefault(_memory(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def once_each(tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """``change`` of every tensor, the same result under all names of a shared one."""
    made: dict[Any, Tensor] = {}
    found = {}
    for name, value in tensors.items():
        key = _memory(value) if value.numel() else name
        if key not in made:
            made[key] = change(value)
        found[name] = made[key]
    return found


def _distinct(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under one name each, in memory of their own, and the other names."""
    own: dict[str, Tensor] = {}
    also: dict[str, str] = {}
    first: dict[Any, str] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        if value.numel() and _memory(value) in first:
            also[name] = first[_memory(value)]
            continue
        first[_memory(value)] = name
        storage = value.untyped_storage().data_ptr()
        alone = value.contiguous()
        # The format knows no views: a part of another tensor becomes one of its own.
        own[name] = alone.clone() if value.numel() and storage in storages and alone is value else alone
        storages.add(storage)
    return own, also


def _memory(value: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same numbers in memory."""
    return value.device, value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        if value.numel():
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
