"""Where the cache and the mirror of public data are: folders named by the environment, or the platform's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from recsys.errors import DataError


def cache_folder() -> Path:
    """``RECSYS_CACHE``, or what the platform uses for caches.

    Raises:
        DataError: it is not set, and the user has no home folder.
    """
    if named := os.environ.get("RECSYS_CACHE"):
        return Path(named).expanduser()
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "recsys"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "recsys"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys"
    except RuntimeError as error:
        raise DataError(f"no folder for the cache is known ({error}): set RECSYS_CACHE to a folder") from None


def make_folder(folder: Path) -> None:
    """Make a folder in the cache.

    Raises:
        OSError: it cannot be made; the message names the variable that says where the cache is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = f"the cache cannot be written ({error.strerror}): set RECSYS_CACHE to a folder that can be"
        raise OSError(error.errno, advice, str(folder)) from error


def mirror_folder() -> Path | None:
    """``RECSYS_MIRROR``, or None where it is not set."""
    named = os.environ.get("RECSYS_MIRROR")
    return Path(named).expanduser() if named else None
