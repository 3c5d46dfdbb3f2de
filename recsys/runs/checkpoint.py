"""Checkpoints that are whole or absent: written beside, flushed, renamed, then pointed at. No pickle.

``checkpoints/step-00000120/`` holds ``state.json`` and safetensors files; ``checkpoints/last.json`` names the folder to
load. Whenever a process is killed, ``last.json`` leads to a complete checkpoint, or there is none yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.errors import DataError, printable
from recsys.storage.files import flush_folder, fresh, is_folder, refuse_links
from recsys.storage.files import write_text as write_text
from recsys.storage.reading import read_json, reading
from recsys.storage.tensors import read_tensors
from recsys.storage.tensors import write_tensors as write_tensors

FORMAT = 1
_OURS = re.compile(r"step-\d+(\.\d+)?(\.[0-9a-f]{16})?(\.partial)?")  # folders that may be removed
_GROUP = re.compile(r"\w+", re.ASCII)
REMEDY = "pass resume=False to start over, or copy the run folder again"
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
        FileExistsError: ``folder`` is a link, which is not followed.
    """
    refuse_links(folder.parent, (folder.name,))
    folder.mkdir(parents=True, exist_ok=True)
    target = _unused(folder, name)
    partial = fresh(target)
    try:
        partial.mkdir()
        for group, tensors in checkpoint.tensors.items():
            write_tensors(partial / f"{group}.safetensors", tensors)
        state = {"format": FORMAT, "groups": sorted(checkpoint.tensors), **checkpoint.state}
        text = json.dumps(state, indent=1)
        write_text(partial / STATE, text)
        _flush(partial)
        os.replace(partial, target)
        _flush(folder)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_text(folder / POINTER, json.dumps({"format": FORMAT, "folder": target.name, "sha256": digest}))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove_checkpoints(folder, but=target)
    return target


def remove_checkpoints(folder: Path, but: Path | None = None) -> None:
    """Delete the checkpoints in ``folder``, half-written ones too, and nothing else; no link is followed.

    Args:
        but: the one to keep, with what points at it; None deletes the folder as well if nothing else is in it.
    """
    if not is_folder(folder):
        return
    for other in folder.iterdir():
        if other != but and _OURS.fullmatch(other.name) and is_folder(other):
            shutil.rmtree(other, ignore_errors=True)
    if but is None:
        (folder / POINTER).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint that ``folder`` points at, None if there is none yet.

    Raises:
        DataError: it is damaged, or of another format.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    head = read_json(pointer, REMEDY)
    _check_format(pointer, head)
    with reading(pointer, REMEDY):
        target = folder / head["folder"]
        if not _OURS.fullmatch(target.name) or target.parent != folder or not is_folder(target):
            raise DataError(
                f"{printable(pointer, None)} names {printable(repr(head['folder']))}, which is not a checkpoint beside "
                f"it: {REMEDY}"
            )
    with reading(target, REMEDY):
        data = (target / STATE).read_bytes()
        if hashlib.sha256(data).hexdigest() != head.get("sha256", hashlib.sha256(data).hexdigest()):
            raise DataError(f"{target / STATE} is not what was written (its SHA-256 differs): {REMEDY}")
        state = json.loads(data)
        _check_format(target, state)
        groups = [group for group in state["groups"] if _GROUP.fullmatch(group)]
        if len(groups) != len(state["groups"]):
            raise ValueError("it names files outside of it")
        files = {group: target / f"{group}.safetensors" for group in groups}
        return Checkpoint(state, {group: read_tensors(path, remedy=REMEDY) for group, path in files.items()})


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


def _check_format(path: Path, head: dict[str, Any]) -> None:
    if head.get("format") != FORMAT:
        raise DataError(
            f"{path} has checkpoint format {head.get('format')!r}, and this version of recsys reads format {FORMAT}: "
            "resume with the version that wrote it, or pass resume=False to start over"
        )


def _unused(folder: Path, name: str) -> Path:
    number = 0
    while (folder / f"{name}.{number}").exists():
        number += 1
    return folder / f"{name}.{number}"


def _flush(folder: Path) -> None:
    flush_folder(folder)
