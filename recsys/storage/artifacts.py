"""Artifacts: cached folders that say what they were made from; made once, reused as long as that is the same.

What takes minutes and depends only on its inputs (text vectors, profiles, neighbour tables) is a folder with a manifest
whose ``facts`` name the inputs: model, hash of the texts, settings. Who asks for it again with the same facts gets the
folder as it is. While an artifact is being made its files lie in ``NAME.work`` beside it, which survives a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.errors import DataError
from recsys.storage.files import hold, is_folder, write_text
from recsys.storage.folders import MANIFEST, read_manifest, refuse_foreign, write_folder
from recsys.storage.reading import read_json

STARTED = ".started.json"  # in a work folder: what is being made


def artifacts_root(cache: Path | str) -> Path:
    """Where artifacts lie in a cache folder (:func:`recsys.storage.cache.cache_folder` knows the user's)."""
    return Path(cache) / "artifacts"


def artifact(
    folder: Path | str,
    kind: str,
    version: int,
    facts: dict[str, Any],
    fill: Callable[[Path], dict[str, Any]],
    *,
    resume: bool = False,
) -> tuple[Path, bool]:
    """The folder of an artifact and whether it was there already; otherwise ``fill(work folder)`` makes it.

    One line on standard error says that it is reused, or why it is made anew: which fact differs, or what is damaged.
    Of two processes that ask for the same folder one makes it and the other waits.

    Args:
        kind, version: of the manifest, as in :func:`recsys.storage.folders.write_folder`.
        facts: JSON values that decide the contents; compared with those of the folder that is there.
        fill: writes the files and returns more for the manifest. Names that begin with "." stay behind.
        resume: hand ``fill`` what an interrupted call with the same facts left in the work folder; otherwise the work
            folder is always empty, and nothing is left of a failed call.

    Raises:
        FileExistsError: the folder, or the work folder, holds something that no artifact of this kind left there.
        TypeError, ValueError: ``facts`` are not plain JSON.
    """
    folder = Path(folder).absolute()
    wanted = json.loads(json.dumps(facts, allow_nan=False))
    if _state(folder, kind, version, wanted) == "same":
        _say(f"reused {folder}")
        return folder, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        state = _state(folder, kind, version, wanted)
        if state == "same":
            _say(f"reused {folder}, which another process has just made")
            return folder, True
        if state:
            _say(f"{folder} is rebuilt: {state}")
        _make(folder, kind, version, wanted, fill, resume)
    return folder, False


def _state(folder: Path, kind: str, version: int, wanted: dict[str, Any]) -> str:
    """Either "same", or "" where there is nothing yet, or what keeps the folder from being used."""
    refuse_foreign(folder, kind)
    if not (folder / MANIFEST).is_file():
        return ""
    found = read_json(folder / MANIFEST, "delete the folder, so that it is made again")
    if "facts" not in found:
        raise FileExistsError(
            f"{folder} is a {kind} that was not made from facts (somebody saved it): name another folder"
        )
    if found.get("format") != version:
        return f"format: was {found.get('format')}, is {version}"
    if different := differences(found["facts"], wanted):
        return different
    try:
        read_manifest(folder, kind, version, verify=True)
    except DataError as error:
        return f"it is damaged ({error})"
    return "same"


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """The facts that differ, in words; empty where none does.

    >>> differences({"model": "a", "k": 10}, {"model": "b", "k": 10})
    'model: was "a", is "b"'
    """
    names = [*was, *(name for name in now if name not in was)] if isinstance(was, dict) else []
    if not names and was != now:
        return f"facts: was {_short({'facts': was}, 'facts')}, is {_short({'facts': now}, 'facts')}"
    changed = [name for name in names if name not in was or name not in now or was[name] != now[name]]
    return "; ".join(f"{name}: was {_short(was, name)}, is {_short(now, name)}" for name in changed)


def hash_folder(folder: Path) -> str:
    """One SHA-256 over the relative names and the contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest.update(f"{path.relative_to(folder).as_posix()} ".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _make(
    folder: Path,
    kind: str,
    version: int,
    facts: dict[str, Any],
    fill: Callable[[Path], dict[str, Any]],
    resume: bool,
) -> None:
    work = folder.with_name(folder.name + ".work")
    _open(work, {"kind": kind, "format": version, "facts": facts}, resume)
    try:
        details = fill(work)
    except BaseException:
        if not resume:
            _drop(work)
        raise

    def take_over(partial: Path) -> dict[str, Any]:
        # Linked, not moved: if this is interrupted, the work folder is still whole.
        for path in work.iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir():
                shutil.copytree(path, partial / path.name, copy_function=_link)
            else:
                _link(path, partial / path.name)
        return {**details, "facts": facts}

    write_folder(folder, kind, version, take_over)
    _drop(work)


def _open(work: Path, record: dict[str, Any], resume: bool) -> None:
    """Leave in ``work`` what an interrupted call for the same artifact wrote there, or nothing."""
    started = work / STARTED
    foreign = work.exists() and not started.is_file() and (not work.is_dir() or any(work.iterdir()))
    if foreign or work.is_symlink():
        raise FileExistsError(f"{work} is in the way, and no artifact left it there: move it, or name another folder")
    if started.is_file():
        try:
            before = read_json(started, "")
        except DataError:
            before = None
        if resume and before == record:
            for path in work.rglob("*"):
                if path.is_symlink():  # none is ours, and what is written through it would land elsewhere
                    path.unlink()
            return
        if resume:
            _say(f"{work} was begun for other inputs and is dropped")
        _drop(work)
    work.mkdir(exist_ok=True)
    write_text(started, json.dumps(record))


def _drop(work: Path) -> None:
    """Remove a work folder, the record last: killed in between, what is left is still known to be ours."""
    for path in work.iterdir():
        if is_folder(path):
            shutil.rmtree(path)
        elif path.name != STARTED:
            path.unlink()
    shutil.rmtree(work)


def _lock(folder: Path) -> Any:
    """A lock on ``folder``, held; it says so if it has to wait."""
    from filelock import FileLock

    path = folder.with_name(folder.name + ".lock")
    try:
        return hold(path, folder)
    except BlockingIOError:
        _say(f"another process is making {folder}: waiting for it")
        lock = FileLock(path)
        lock.acquire()
        return lock


def _link(source: Any, target: Any) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _short(facts: dict[str, Any], name: str) -> str:
    text = json.dumps(facts[name], ensure_ascii=False) if name in facts else "absent"
    return text if len(text) <= 60 else text[:57] + "..."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
