"""Folders that are complete or absent: written beside, hashed file by file in a manifest, then renamed into place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from recsys.errors import DataError, printable
from recsys.storage.files import MARK, Workplace, kept_beside, writing
from recsys.storage.kinds import kind_name, missing, mistaken
from recsys.storage.reading import read_json, reading

MANIFEST = "manifest.json"
LOCK = ".lock"  # in a folder that is written for a long time, locked as long as its writer lives


def write_folder(
    folder: Path | str, kind: str, version: int, fill: Callable[[Path], dict[str, Any]], apart: Sequence[str] = ()
) -> None:
    """Let ``fill(empty folder)`` write the files, add ``manifest.json`` with its answer and every hash, and rename.

    A folder of the same kind that is already there is exchanged only once the new one is complete; whatever goes wrong
    before that (a full disk included) leaves it as it was and nothing beside it.

    Args:
        apart: folders inside with a manifest of their own, which may be written anew later.

    Raises:
        FileExistsError: ``folder`` exists and is not a folder of this kind, so it is not ours to replace.
        BlockingIOError: another process is writing it.
    """
    folder = Path(folder).absolute()
    refuse_foreign(folder, kind)
    with Workplace(folder) as work, writing(folder):
        facts = fill(work.path)
        manifest = {"kind": kind, "format": version, **facts, "files": hashes(work.path, apart)}
        (work.path / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        _exchange(work, kind)


def hashes(folder: Path, apart: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below ``folder``, by name, for a manifest."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: hash_file(path)
        for name, path in names.items()
        if name != MARK and PurePosixPath(name).parts[0] not in apart
    }


def hash_file(path: Path) -> dict[str, Any]:
    """SHA-256 and size of a file."""
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def refuse_foreign(folder: Path | str, kind: str) -> None:
    """Raise ``FileExistsError`` if ``folder`` holds anything but a folder of this kind; call it before long work."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(one.name not in (LOCK, MARK) for one in folder.iterdir())):
        return
    found = "a file" if folder.is_file() else "a folder with other contents"
    if folder.is_dir() and (folder / MANIFEST).is_file():
        other = _kind(folder)
        if other == kind:
            return
        found = "a folder with another manifest.json" if other is None else kind_name(other)
    raise FileExistsError(
        f"{printable(folder, None)} is {found}, not {kind_name(kind)} to replace: name another folder, or delete it "
        "yourself"
    )


def read_manifest(
    folder: Path | str,
    kind: str,
    version: int,
    verify: bool = True,
    apart: Sequence[str] = (),
    oldest: int | None = None,
) -> dict[str, Any]:
    """The manifest of a folder that :func:`write_folder` wrote, after checking that every file is what was written.

    Args:
        verify: also compare each file's SHA-256; without it only presence and size are compared.
        apart: as in :func:`write_folder`; what lies there is not compared.
        oldest: the first version that is still read (default: ``version`` alone).

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: another kind or version, or files that are missing, truncated or changed.
    """
    folder, shown = Path(folder), printable(folder, None)
    if not (folder / MANIFEST).is_file():
        kept = [*kept_beside(folder.absolute()), folder.with_name(folder.name + ".old")]
        left = [printable(one, None) for one in kept if _kind(one) == kind]
        hint = f"; an interrupted write left the previous one in {left[0]}: rename it back" if left else ""
        raise FileNotFoundError(missing(folder, kind) + hint)
    manifest = read_json(folder / MANIFEST, "write the folder anew")
    if manifest.get("kind") != kind:
        raise DataError(mistaken(folder, manifest.get("kind"), kind))
    if manifest.get("format") not in range(version if oldest is None else oldest, version + 1):
        raise DataError(
            f"{shown} has format {printable(manifest.get('format'))}, and this version of recsys reads "
            f"format {version}: write it again with this version, or install the version that wrote it "
            f"({printable(manifest.get('library', 'unknown'))})"
        )
    check_hashes(folder, manifest.get("files"), verify, apart)
    return manifest


def check_hashes(folder: Path, files: Any, verify: bool = True, apart: Sequence[str] = ()) -> None:
    """Compare the files of ``folder`` with what :func:`hashes` once said about them.

    Raises:
        DataError: a file is missing, of another size, or (``verify``) changed; or the entries make no sense.
    """
    with reading(folder / MANIFEST, "write the folder anew"):
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    for name, (size, sha256) in expected.items():
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts or "\0" in name or not inner.parts:
            raise DataError(
                f"{printable(folder / MANIFEST, None)} names {printable(repr(name))}, which is not inside the folder: "
                "do not use this folder"
            )
        if inner.parts[0] not in apart:
            _check_file(folder, name, size, sha256 if verify else None)


def _check_file(folder: Path, name: str, size: int, sha256: str | None) -> None:
    path = folder / name
    shown = printable(path, None)
    with reading(path, "copy or write it again"):
        if not path.is_file():
            raise DataError(
                f"{printable(folder, None)} is incomplete: {printable(name)} is missing; write or copy it again"
            )
        if path.stat().st_size != size:
            raise DataError(f"{shown} has {path.stat().st_size:,} bytes, {size:,} were written: copy or write it again")
        if sha256 is not None and _sha256(path) != sha256:
            raise DataError(f"{shown} is not what was written (its SHA-256 differs): copy or write it again")


def _exchange(work: Workplace, kind: str) -> None:
    work.exchange(lambda other: _kind(other) == kind)


def _kind(folder: Path) -> str | None:
    """What the manifest of a folder says it is, None if it has none that can be read."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        kind = read_json(folder / MANIFEST, "").get("kind")
    except (DataError, OSError):
        return None
    return kind if isinstance(kind, str) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
