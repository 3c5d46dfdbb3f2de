"""Files of public data sets, downloaded once, resumed, verified and cached.

A file is looked for in a mirror folder (``RECSYS_MIRROR``), in the cache (``RECSYS_CACHE``), and then in the sources of
its card, in their order:

- ``https://host/file`` or ``https://host/archive.zip!member``: the publisher;
- ``pypi:recbole==1.2.1!path/in/the/wheel``: a file inside a published wheel. The wheel is downloaded without its
  dependencies through pip (so with the index the user configured) and unzipped; none of its code runs.

What is being written ends in ``.partial`` and gets its name only when it is complete and verified.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.cards.download import FULL, SourceError, download
from recsys.errors import DataError, DataWarning
from recsys.storage.cache import cache_folder, make_folder, mirror_folder
from recsys.storage.files import write_text

MIRROR = "mirror"
RECORD = "fetched.json"  # in the cache folder of a data set: what was recorded about files no card vouches for
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A file of a data set: its name, what is known about its bytes, and where to look for it, in order."""

    name: str
    sha256: str | None = None  # None: nobody vouches for the bytes; recorded when first fetched
    size: int | None = None  # bytes
    sources: tuple[str, ...] = (MIRROR,)


@dataclass(frozen=True)
class Got:
    """A file that is here, with the source it came from and its hash."""

    path: Path
    source: str
    sha256: str
    verified: bool  # True: the hash is the one in the card


class Fetcher:
    """Gets the files of one data set (or model) and remembers what was tried.

    Args:
        name: data set name, which is its folder in the cache.
        folder: its folder in the mirror, if that has another name.
        cache: its folder in the cache, if it is not one of the data sets.
    """

    def __init__(self, name: str, folder: str | None = None, cache: Path | None = None) -> None:
        self.name = name
        self.cache = cache_folder() / "datasets" / name if cache is None else cache
        self.downloads = cache_folder() / "downloads"
        self.folder = folder or name
        root = mirror_folder()
        self.mirror = None if root is None else root / self.folder
        self.tried: list[str] = []

    def local(self, wanted: Wanted) -> Got | None:
        """The file from the mirror or the cache, verified, or None; nothing is downloaded."""
        found = None
        if MIRROR in wanted.sources:
            found = self._from_mirror(wanted)
        return found or self._from_cache(wanted)

    def remote(self, wanted: Wanted) -> Got | None:
        """The file from the first of its sources that answers, put into the cache, or None.

        Raises:
            OSError: the disk is full; what had arrived stays, and the next call goes on from there.
        """
        for source in wanted.sources:
            if source == MIRROR:
                continue
            try:
                return self._from_source(wanted, source)
            except SourceError as problem:
                self.tried.append(f"{source}: {problem}")
        return None

    def _from_mirror(self, wanted: Wanted) -> Got | None:
        if self.mirror is None:
            self._note("mirror folder: RECSYS_MIRROR is not set")
            return None
        path = self.mirror / wanted.name
        if not path.is_file():
            self._note(f"mirror folder: no file {path}")
            return None
        return self._checked(path, wanted, MIRROR)

    def _from_cache(self, wanted: Wanted) -> Got | None:
        path = self.cache / wanted.name
        if not path.is_file():
            return None
        found = self._checked(path, wanted, "cache")
        if found is None:
            spoiled = path.with_name(path.name + ".spoiled")
            os.replace(path, spoiled)
            warnings.warn(
                f"{path} is not the file it was (truncated or changed); moved to {spoiled.name} and fetched anew",
                DataWarning,
                stacklevel=2,
            )
        return found

    def _checked(self, path: Path, wanted: Wanted, source: str) -> Got | None:
        size, found = path.stat().st_size, file_hash(path)
        recorded = self._record().get(wanted.name, {}) if source == "cache" else {}
        expected = wanted.sha256 or recorded.get("sha256")
        if expected is not None and found != expected:
            known = wanted.size or recorded.get("bytes")
            self._note(f"{source} {path}: sha256 {found[:12]}… of {size:,} bytes, not {expected[:12]}… of {known:,}")
            return None
        if wanted.sha256 is None and source == "cache" and not recorded:  # put there by hand
            self._remember(wanted.name, found, size, "put there by hand")
        return Got(path, source, found, verified=wanted.sha256 is not None)

    def _from_source(self, wanted: Wanted, source: str) -> Got:
        target = self.cache / wanted.name
        make_folder(target.parent)
        with _lock(target):
            if target.is_file() and (found := self._checked(target, wanted, "cache")):  # another process was faster
                return found
            print(f"fetching {wanted.name} of {self.name} from {source}", file=sys.stderr, flush=True)
            address, _, member = source.partition("!")
            if member:
                unzip_member(self._archive(address), member, target.with_name(target.name + ".partial"))
            else:
                download(address, target.with_name(target.name + ".partial"), size=wanted.size)
            return self._accept(wanted, target, source)

    def _archive(self, address: str) -> Path:
        """The archive at ``address``: from the mirror, kept from an earlier member, or downloaded."""
        make_folder(self.downloads)
        if address.startswith("pypi:"):
            return download_wheel(address.removeprefix("pypi:"), self.downloads)
        file_name = address.rsplit("/", 1)[-1]
        if self.mirror is not None and zipfile.is_zipfile(self.mirror / file_name):
            return self.mirror / file_name
        kept = self.downloads / f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{file_name}"
        with _lock(kept):
            if not kept.is_file():
                partial = kept.with_name(kept.name + ".partial")
                download(address, partial)
                os.replace(partial, kept)
        return kept

    def _accept(self, wanted: Wanted, target: Path, source: str) -> Got:
        partial = target.with_name(target.name + ".partial")
        size, found = partial.stat().st_size, file_hash(partial)
        if wanted.sha256 is not None and found != wanted.sha256:
            partial.unlink()
            raise SourceError(
                f"arrived damaged or is another edition: {size:,} bytes with sha256 {found[:12]}…, "
                f"the card says {wanted.size:,} with {wanted.sha256[:12]}… (deleted)"
            )
        if wanted.sha256 is None:
            self._remember(wanted.name, found, size, source)
        os.replace(partial, target)
        return Got(target, source, found, verified=wanted.sha256 is not None)

    def _record(self) -> dict[str, dict[str, Any]]:
        path = self.cache / RECORD
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except ValueError:
            return {}

    def _remember(self, name: str, sha256: str, size: int, source: str) -> None:
        entry = {"sha256": sha256, "bytes": size, "source": source, "date": time.strftime("%Y-%m-%d")}
        make_folder(self.cache)
        path = self.cache / RECORD
        write_text(path, json.dumps({**self._record(), name: entry}, indent=1))

    def _note(self, line: str) -> None:
        if line not in self.tried:
            self.tried.append(line)


def unavailable(fetcher: Fetcher, missing: list[str]) -> DataError:
    """The error for files that no source gave: what was tried, why each failed, and what to do."""
    tried = "\n".join(f"  {number}. {line}" for number, line in enumerate(fetcher.tried, 1))
    return DataError(
        f"{fetcher.name}: could not get {', '.join(missing)}. Tried, in this order:\n{tried}\n"
        f"Without a network, either put {'it' if len(missing) == 1 else 'them'} into {fetcher.cache}, or set "
        f"RECSYS_MIRROR to a folder that holds {fetcher.folder}/{missing[0]}. Otherwise check the connection (or the "
        "proxy, or pip's index) and run it again: what had already arrived is kept."
    )


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unzip_member(archive: Path, member: str, target: Path) -> None:
    """Write one member of a zip file (a wheel is one) to ``target``; its checksum is verified on the way.

    Raises:
        SourceError: the archive is damaged (and deleted if it is ours), or has no such member.
    """
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
    except KeyError:
        raise SourceError(f"{archive.name} has no member {member!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        if archive.is_relative_to(cache_folder()):
            archive.unlink()
        raise SourceError(f"{archive.name} is not a whole zip file ({problem})") from None
    except OSError as problem:
        target.unlink(missing_ok=True)
        if problem.errno in FULL:
            raise OSError(problem.errno, f"the disk is full: free some space and run it again ({target})") from None
        raise


def download_wheel(requirement: str, downloads: Path) -> Path:
    """The wheel of ``name==version`` in a folder of its own below ``downloads``, through pip, without dependencies.

    Raises:
        SourceError: pip is missing or could not get it.
    """
    home = downloads / requirement
    with _lock(home):
        for wheel in home.glob("*.whl"):
            return wheel
        beside = downloads / f"{requirement}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        options = ("--no-deps", "--only-binary=:all:", "--retries=2", "--disable-pip-version-check", "--no-input")
        command = (sys.executable, "-m", "pip", "download", *options, "--dest", str(beside), requirement)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(beside.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            shutil.rmtree(beside, ignore_errors=True)
            if "No space left on device" in done.stderr:
                raise OSError(errno.ENOSPC, f"the disk is full: free some space and run it again ({downloads})")
            raise SourceError(f"pip could not download it: {_reason(done.stderr or done.stdout)}")
        shutil.rmtree(home, ignore_errors=True)
        os.replace(beside, home)
        return home / wheels[0].name


def _reason(output: str) -> str:
    """The line of pip's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
    return (errors or lines or ["no output"])[0][:300]


def _lock(path: Path) -> Any:
    """Held by one process at a time, so that two do not write the same partial file."""
    from filelock import FileLock

    return FileLock(path.with_name(path.name + ".lock"))
