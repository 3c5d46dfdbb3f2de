"""Folders that are complete or absent: written beside, hashed file by file in a manifest, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from recsys.errors import DataError

MANIFEST = "manifest.json"


def write_folder(folder: Path | str, kind: str, version: int, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Let ``fill(empty folder)`` write the files, add ``manifest.json`` with its answer and every hash, and rename.

    A folder of the same kind that is already there is exchanged only once the new one is complete; whatever goes wrong
    before that (a full disk included) leaves it as it was and nothing beside it.

    Raises:
        FileExistsError: ``folder`` exists and is not a folder of this kind, so it is not ours to replace.
    """
    folder = Path(folder).absolute()
    refuse_foreign(folder, kind)
    partial = folder.with_name(folder.name + ".partial")
    _remove(partial)
    try:
        partial.mkdir(parents=True)
        facts = fill(partial)
        files = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
        hashes = {name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for name, path in files.items()}
        manifest = {"kind": kind, "format": version, **facts, "files": hashes}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    except BaseException:
        _remove(partial)
        raise
    _exchange(partial, folder)


def refuse_foreign(folder: Path | str, kind: str) -> None:
    """Raise ``FileExistsError`` if ``folder`` holds anything but a folder of this kind; call it before long work."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = "a file" if folder.is_file() else "a folder with other contents"
    if folder.is_dir() and (folder / MANIFEST).is_file():
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found = f"a folder of kind {manifest.get('kind')!r}"
            if manifest.get("kind") == kind:
                return
        except (ValueError, AttributeError):
            found = "a folder with another manifest.json"
    raise FileExistsError(f"{folder} is {found}, not a {kind} to replace: name another folder, or delete it yourself")


def read_manifest(folder: Path | str, kind: str, version: int, verify: bool = True) -> dict[str, Any]:
    """The manifest of a folder that :func:`write_folder` wrote, after checking that every file is what was written.

    Args:
        verify: also compare each file's SHA-256; without it only presence and size are compared.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: another kind or version, or files that are missing, truncated or changed.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        kept = folder.with_name(folder.name + ".old")
        hint = f"; an interrupted write left the previous one in {kept}: rename it back" if kept.exists() else ""
        raise FileNotFoundError(f"{folder} is not a {kind}: it has no {MANIFEST}{hint}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found, form = manifest["kind"], manifest["format"]
        files = manifest["files"].items() if found == kind else ()
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read ({error!r}): write the folder anew") from error
    if found != kind:
        raise DataError(f"{folder} is a {found!r}, and a {kind!r} was expected")
    if form != version:
        raise DataError(
            f"{folder} has format {form}, and this version of recsys reads format {version}: write it again with this "
            f"version, or install the version that wrote it ({manifest.get('library', 'unknown')})"
        )
    for name, (size, sha256) in expected.items():
        _check_file(folder, name, size, sha256 if verify else None)
    return manifest


def _check_file(folder: Path, name: str, size: int, sha256: str | None) -> None:
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts:
        raise DataError(f"{folder / MANIFEST} names {name!r}, which is not inside the folder: do not use this folder")
    path = folder / inner
    if not path.is_file():
        raise DataError(f"{folder} is incomplete: {name} is missing; write or copy it again")
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, {size:,} were written: copy or write it again")
    if sha256 is not None and _sha256(path) != sha256:
        raise DataError(f"{path} is not what was written (its SHA-256 differs): copy or write it again")


def _exchange(partial: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(partial, folder)
        return
    old = folder.with_name(folder.name + ".old")
    _remove(old)
    os.replace(folder, old)
    os.replace(partial, folder)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
