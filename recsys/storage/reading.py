"""One error for files that are damaged, whatever the library that reads them says; no reading where none is expected.

Parsers raise what they like (``RecursionError`` for brackets, ``OverflowError`` for a size, ``struct.error`` ...).
:func:`reading` stands at the boundary where a file is read, and nowhere else, so that mistakes of our own stay visible.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from recsys.errors import DataError, printable

_allowed: ContextVar[frozenset[str] | None] = ContextVar("recsys_allowed", default=None)  # None: anything may be read
_bounded: ContextVar[bool] = ContextVar("recsys_bounded", default=True)


@contextmanager
def reading(path: Path | str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError that names ``path`` and ends with the ``remedy``.

    What is clear already passes: a DataError (which is told the path, if it lacks one), a file that may not be read,
    and a package that is not installed.
    """
    try:
        yield
    except (DataError, PermissionError, ImportError) as error:
        if str(path) in str(error) or printable(path, None) in str(error):
            raise
        if type(error) is PermissionError and error.errno is None:  # of ours, that says what to do
            raise PermissionError(f"{printable(path, None)}: {error}") from error
        if type(error) is not DataError:
            raise
        raise DataError(f"{printable(path, None)}: {error}: {remedy}") from error
    except Exception as error:
        raise DataError(f"{printable(path, None)} cannot be read ({_said(error)}): {remedy}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a Rust library, which is no Exception
            raise
        raise DataError(f"{printable(path, None)} cannot be read ({_said(error)}): {remedy}") from error


def read_json(path: Path, remedy: str, check: Callable[[Any], Any] = dict) -> Any:
    """What ``check`` makes of the contents of a JSON file (an object, by default).

    Raises:
        DataError: it is missing, damaged, or ``check`` fails on it.
    """
    with reading(path, remedy):
        found = json.loads(path.read_text(encoding="utf-8"))
        if check is dict and not isinstance(found, dict):
            raise TypeError(f"an object is expected, found {type(found).__name__}")
        return check(found)


@contextmanager
def inert(trust: Collection[str] = ()) -> Iterator[None]:
    """While a saved model is made: nothing outside of its folder is read, on the disk or by network.

    Args:
        trust: names of folders and models that may be read all the same.
    """
    token = _allowed.set(frozenset(map(str, trust)))
    try:
        yield
    finally:
        _allowed.reset(token)


def outside(name: Any, what: str) -> bool:
    """Call it before ``name``, a folder or a model of a hub, is read: whether the caller trusts it by name.

    Raises:
        PermissionError: a saved model is being made, and its file names what nobody said to trust.
    """
    allowed = _allowed.get()
    if allowed is None or str(name) in allowed:
        return True
    raise PermissionError(
        f"this folder asks for the {what} {printable(repr(str(name)))}, which lies outside of it: if you know it and "
        f"want it read, pass trust=[{printable(repr(str(name)))}]"
    )


@contextmanager
def unbounded() -> Iterator[None]:
    """While something trusted is read: it may be larger than the folder of the saved model that asks for it."""
    token = _bounded.set(False)
    try:
        yield
    finally:
        _bounded.reset(token)


def is_bounded() -> bool:
    """Whether bounds count, where there are any (:mod:`recsys.storage.bounds`)."""
    return _bounded.get()


def is_inert() -> bool:
    """Whether a saved model is being made."""
    return _allowed.get() is not None


def _said(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = " ".join(text.split())
    known = isinstance(error, (ValueError, OSError)) and text
    return printable(text if known else f"{type(error).__name__}: {text}", 300)
