"""Checkpoints that are whole or absent: written beside, flushed, renamed, then pointed at. No pickle.

``checkpoints/step-00000120/`` holds ``state.json`` and safetensors files; ``checkpoints/last.json`` names the folder to
load. Whenever a process is killed, ``last.json`` leads to a complete checkpoint, or there is none yet.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import DataError
from recsys.saved import read_tensors

FORMAT = 1
POINTER = "last.json"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: plain facts, and named groups of tensors."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def write_checkpoint(folder: Path, name: str, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below ``folder`` and make it the one to load; older ones are removed afterwards.

    Raises:
        OSError: it cannot be written (a full disk); the checkpoint of before is still there and nothing is beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = _unused(folder, name)
    partial = target.with_name(target.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for group, tensors in checkpoint.tensors.items():
            write_tensors(partial / f"{group}.safetensors", tensors)
        state = {"format": FORMAT, "groups": sorted(checkpoint.tensors), **checkpoint.state}
        write_text(partial / STATE, json.dumps(state, indent=1))
        _flush(partial)
        os.replace(partial, target)
        _flush(folder)
        write_text(folder / POINTER, json.dumps({"format": FORMAT, "folder": target.name}))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for other in folder.iterdir():
        if other.is_dir() and other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint that ``folder`` points at, None if there is none yet.

    Raises:
        DataError: it is damaged, or of another format.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    remedy = "; pass resume=False to start over, or copy the run folder again"
    try:
        head = json.loads(pointer.read_text(encoding="utf-8"))
        _check_format(pointer, head)
        state = json.loads((folder / head["folder"] / STATE).read_text(encoding="utf-8"))
        _check_format(folder / head["folder"], state)
        groups = state["groups"]
        tensors = {group: read_tensors(folder / head["folder"] / f"{group}.safetensors") for group in groups}
    except _OtherFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the checkpoint {pointer} points at cannot be read ({error}){remedy}") from error
    return Checkpoint(state, tensors)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or not at all, flushed to disk."""
    _replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Replace a safetensors file whole or not at all, flushed to disk."""
    from safetensors.torch import save_file

    # Tied tensors are written once per name: the format knows no sharing.
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    seen: set[int] = set()
    for name, value in own.items():
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            own[name] = value.clone()
        seen.add(own[name].untyped_storage().data_ptr())
    _replace(path, lambda partial: save_file(own, partial))


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested state (dicts, lists, tuples, numbers, arrays) as JSON; its tensors go to ``tensors`` under their path."""
    if isinstance(value, np.ndarray):
        kept = value.astype(np.int64) if value.dtype == np.uint32 else value
        return {"array": pack(torch.from_numpy(kept.copy()), path, tensors)["tensor"], "dtype": str(value.dtype)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, pack(inner, f"{path}.{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(inner, f"{path}.{i}", tensors) for i, inner in enumerate(value)]}
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise TypeError(f"the optimizer keeps {path} = {value!r}, which is neither a tensor nor plain data")
    return value


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`pack` packed."""
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return tensors[packed["array"]].numpy().astype(packed["dtype"])
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dict" in packed:
        return {key: unpack(inner, tensors) for key, inner in packed["dict"]}
    kind, values = next(iter(packed.items()))
    return (tuple if kind == "tuple" else list)(unpack(inner, tensors) for inner in values)


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch (CPU, and CUDA in use), numpy and Python."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = np.random.get_state(legacy=False)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global generators where :func:`random_state` found them."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two trees of plain data differ, one line per leaf."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            where = f"{path}.{key}" if path else str(key)
            yield from differences(before.get(key, "(absent)"), now.get(key, "(absent)"), where)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (left, right) in enumerate(zip(before, now, strict=True)):
            yield from differences(left, right, f"{path}[{index}]")
    elif before != now:
        yield f"{path}: {before!r} in the checkpoint, {now!r} now"


class _OtherFormat(DataError):
    """Not damaged, so not to be reported as such."""


def _check_format(path: Path, head: dict[str, Any]) -> None:
    if head.get("format") != FORMAT:
        raise _OtherFormat(
            f"{path} has checkpoint format {head.get('format')!r}, and this version of recsys reads format {FORMAT}: "
            "resume with the version that wrote it, or pass resume=False to start over"
        )


def _unused(folder: Path, name: str) -> Path:
    number = 0
    while (folder / f"{name}.{number}").exists():
        number += 1
    return folder / f"{name}.{number}"


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _flush(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
