"""Files that are whole or absent: written under a fresh name beside their own, flushed, and renamed.

A fresh name is random and the file or folder is made by the call that finds it free, so no link that lies there is
followed and nobody's file is overwritten. What is being written as a folder holds a file ``.recsys``, which its writer
keeps locked: that is how a second process is told apart from what a killed one left behind, and the only ground on
which such a folder is deleted.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recsys.errors import printable

MARK = ".recsys"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RANDOM = r"\.[0-9a-f]{16}"
_LONGEST = 200  # bytes of a name that others are made of


def fresh(path: Path, ending: str = "partial") -> Path:
    """A name beside ``path`` that nobody has."""
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST else path.name[: _LONGEST // 4]
    return path.with_name(f"{name}.{secrets.token_hex(8)}.{ending}")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(fresh file)`` fill a file and exchange it for ``path``, whole or not at all, flushed to disk.

    A link at ``path`` is replaced, not followed. The file is readable as the umask says, whoever wrote it.

    Raises:
        OSError: it cannot be written; what was there is still there, and nothing beside it.
    """
    partial = fresh(path)
    with writing(path):
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
        mode = stat.S_IMODE(partial.lstat().st_mode)
        try:
            write(partial)
            if stat.S_IMODE(partial.lstat().st_mode) != mode:  # a library made a file of its own
                partial.chmod(mode)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole or not at all, flushed to disk."""
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_parquet(path: Path, frame: Any, **options: Any) -> None:
    """Write a Polars frame by way of memory: Polars itself does not say that a disk is full."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, **options)
    path.write_bytes(buffer.getbuffer())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what to do about a full disk, also where a library has an error of its own for it."""
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number is None or (isinstance(error, OSError) and error.errno is not None and number not in FULL):
            raise
        advice = ": make room and do it again" if number in FULL else ""
        raise OSError(number, f"{os.strerror(number)}{advice}", str(path)) from error


def flush_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a folder or a link; never what a link leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)


def is_folder(path: Path) -> bool:
    """Whether there is a real folder, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def refuse_links(folder: Path, names: tuple[str, ...] = (), others: bool = False) -> None:
    """Raise FileExistsError if a folder of our own in ``folder``, which is to be written, is a link or a file.

    Args:
        names: what folders of our own are called.
        others: refuse every link to a folder, whatever it is called: the folder is all ours.
    """
    for entry in os.scandir(folder) if folder.is_dir() else ():
        link, own = entry.is_symlink(), entry.name in names
        if (link and (own or (others and entry.is_dir()))) or (own and not entry.is_dir()):
            raise FileExistsError(
                f"{printable(entry.path, None)} is a {'link' if link else 'file'}, and a folder of our own is "
                "expected: delete it, or name another folder"
            )


def sweep(folder: Path) -> None:
    """Delete the files that killed writers left in a folder of ours; hold its lock meanwhile."""
    for entry in os.scandir(folder):
        if re.search(rf"{_RANDOM}\.partial$", entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def hold(path: Path, what: Path) -> Any:
    """A lock on the file ``path``, held until it is released or its process ends.

    Raises:
        BlockingIOError: another process holds it, that is, it is at work in ``what``.
        FileExistsError: ``path`` is a link.
    """
    from filelock import FileLock, Timeout

    if path.is_symlink():
        raise FileExistsError(f"{printable(path, None)} is a link, which is not followed: delete it")
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(
                errno.EAGAIN, "another process is writing there: wait for it, or name another folder", str(what)
            ) from None
        if path.exists():  # else its last holder has just removed it
            return lock
        lock.release()


class Workplace:
    """A fresh folder beside ``target``, in which it is written; ``path`` is gone when the ``with`` is left.

    Folders that killed writers of the same target left behind are removed first.

    Raises:
        BlockingIOError: another process is writing the same target.
    """

    def __init__(self, target: Path, ending: str = "partial") -> None:
        self.target, self.ending = target, ending
        self.path = fresh(target, ending)

    def __enter__(self) -> Workplace:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for left in _beside(self.target, self.ending):
            mark = left / MARK
            if is_folder(left) and mark.is_file() and not mark.is_symlink():
                hold(mark, self.target).release()
                shutil.rmtree(left, ignore_errors=True)
        self.path.mkdir()
        self._lock = hold(self.path / MARK, self.target)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if is_folder(self.path):
            shutil.rmtree(self.path, ignore_errors=True)

    def exchange(self, ours: Callable[[Path], bool]) -> None:
        """Exchange the folder for the target, which is removed afterwards.

        Args:
            ours: whether a folder that an interrupted exchange left is one of this kind and may go.
        """
        self._lock.release()
        os.remove(self.path / MARK)
        old = fresh(self.target, "old")
        for _ in range(100):  # another process may do the same
            with suppress(FileNotFoundError):
                os.replace(self.target, old)
            try:
                os.replace(self.path, self.target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    with suppress(OSError):
                        os.replace(old, self.target)
                    raise
                remove(old)
        for kept in (old, *_beside(self.target, "old")):
            if kept == old or (is_folder(kept) and ours(kept)):
                remove(kept)


def kept_beside(target: Path) -> list[Path]:
    """Folders that an interrupted exchange of ``target`` left under other names."""
    return _beside(target, "old")


def _beside(target: Path, ending: str) -> list[Path]:
    if not target.parent.is_dir():
        return []
    name = fresh(target, ending).name
    form = re.compile(re.escape(name[: len(name) - len(ending) - 18]) + rf"{_RANDOM}\.{ending}")
    return [Path(entry.path) for entry in os.scandir(target.parent) if form.fullmatch(entry.name)]


def _system_error(error: Exception) -> int | None:
    """The number of the system's error behind an exception of any library."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := re.search(r"os error (\d+)", text):
        return int(found[1])
    if re.search(r"\d+ requested and \d+ written", text):  # numpy, of a disk that is full
        return errno.ENOSPC
    return next((number for number in FULL if os.strerror(number) in text), None)
