"""What the shell may show: text of others without control characters, errors in one clear line, any locale."""

from __future__ import annotations

import linecache
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.errors import DataError, printable

_REWRITE = re.compile("\r?(\x1b\\[K)?")  # how a line of progress begins in a terminal

_FLAGS = {  # what messages advise in the words of Python -> how the shell says it
    r"\bresume=False": "--resume no",
    r"^sample is\b": "--users N",
    r"\bresume=\"auto\"": "--resume auto",
    r"\btrust=\[": "--trust MODULE",
    r"\baccelerator=": "--accelerator NAME",
    r"name the metrics to compare": "--metrics NAME@K",
    r"drop_missing|\.clean\(\)": "--drop-missing",
    r"\buse LeaveLast\b": "--split leave-last, or --time COLUMN",
    r"\b[Pp]ass (user|item|time)=": "--user, --item and --time",
    r"Dataset.scan\(..., items=": "--items FILE",
}


@contextmanager
def plain_output() -> Iterator[None]:
    """Within, whatever is printed shows control characters instead of obeying them."""
    before, form = (sys.stdout, sys.stderr), warnings.formatwarning
    sys.stdout, sys.stderr = _Plain(before[0]), _Plain(before[1], rewrites=True)  # type: ignore[assignment]
    warnings.formatwarning = lambda message, *_args, **_more: f"warning: {message}\n"
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        warnings.formatwarning = form


class _Plain:
    """A stream whose ``write`` escapes what a terminal would obey, and what its encoding does not have."""

    def __init__(self, stream: Any, rewrites: bool = False) -> None:
        self._stream, self._rewrites = stream, rewrites

    def write(self, text: str) -> int:
        if self._stream is None:
            return len(text)
        begin = _REWRITE.match(text) if self._rewrites else None
        kept = begin.group() if begin else ""
        shown = kept + printable(text[len(kept) :], None, lines=True)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate_any_locale() -> None:
    """Let a locale without our letters print them escaped, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def told(error: BaseException, arguments: Sequence[str]) -> str:
    """An error as the user is told it: our messages as they are, those of others with what failed and how."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = str(message).strip()
    if not text or not _is_ours(error):
        text = f"{' '.join(arguments[:3])} failed: {type(error).__name__}{f': {text}' if text else ''}"
        text += "" if arguments[:1] == ["fit"] else " (is a file of it damaged?)"
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    flags = [flag for advice, flag in _FLAGS.items() if re.search(advice, text)]
    if _in_cache(getattr(error, "filename", None)) and "RECSYS_CACHE" not in text:
        notes += "\nThat is in the cache: RECSYS_CACHE says where it is, and may name another folder"
    notes += f"\nIn the shell: {', '.join(flags)}" if flags else ""
    return printable(f"{text}{notes}", None, lines=True)


def _in_cache(name: Any) -> bool:
    from recsys.storage.cache import cache_folder

    try:
        return isinstance(name, (str, Path)) and Path(name).absolute().is_relative_to(cache_folder().absolute())
    except (DataError, OSError):
        return False


def _is_ours(error: BaseException) -> bool:
    """Whether the message was written by us, for the user, and not by a library that knows nothing of the files."""
    if isinstance(error, (DataError, PermissionError, KeyboardInterrupt)) or getattr(error, "filename", None):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return True
    frame, line = frames[-1]
    source = linecache.getline(frame.f_code.co_filename, line).strip()
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "recsys" and (
        not source or source.startswith("raise")
    )
