"""One file over HTTP, with progress, taking up an interrupted download where it stopped."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from recsys.progress import Progress

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk, or one's share of it
_CHUNK = 1 << 18


class SourceError(Exception):
    """A source did not give the file; the message says why, and the next source is tried."""


def download(url: str, partial: Path, size: int | None = None, attempts: int = 3, timeout: float = 20.0) -> None:
    """Bring ``partial`` to the full length of the file at ``url``; what it holds already is not asked again.

    The server's mark of the version (ETag or date) is kept beside the partial file; if the file changed since, the
    download starts anew. A connection that breaks is taken up again, ``attempts`` times in a row without any byte.

    Raises:
        SourceError: the server refuses or cannot be reached, or the connection keeps breaking. The partial file stays.
        OSError: the disk is full. The partial file stays.
    """
    failures = 0
    while True:
        held = _held(partial)
        try:
            if _receive(url, partial, size, timeout):
                _mark(partial).unlink(missing_ok=True)
                return
            problem = "the connection closed before the end"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing behind what we hold: either it is all there is, or it is of something else
                if held and _content_range(error.headers.get("Content-Range", ""))[1] == held:
                    _mark(partial).unlink(missing_ok=True)
                    return
                partial.unlink(missing_ok=True)
                problem = "the server has nothing behind what was already downloaded"
            elif error.code in (429, 500, 502, 503, 504):
                problem = f"HTTP {error.code} {error.reason}"
            else:
                raise SourceError(f"HTTP {error.code} {error.reason}") from None
        except urllib.error.URLError as error:  # before the answer began
            problem = str(error.reason)
            if isinstance(error.reason, (socket.gaierror, ConnectionRefusedError, TimeoutError)):
                raise SourceError(f"cannot be reached ({problem})") from None
        except (http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
            problem = str(error) or type(error).__name__
        failures = 0 if _held(partial) > held else failures + 1
        if failures >= attempts:
            kept = f"; {_held(partial):,} bytes are kept for the next try" if _held(partial) else ""
            raise SourceError(f"{problem}, {attempts} times in a row{kept}")
        time.sleep(0.2 * failures)


def _receive(url: str, partial: Path, size: int | None, timeout: float) -> bool:
    """Ask for what is missing and append it; True when the file is whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "recsys", "Accept-Encoding": "identity"})
    mark = _read_mark(partial, url)
    held = _held(partial) if mark else 0
    if held and mark:
        request.add_header("Range", f"bytes={held}-")
        request.add_header("If-Range", mark)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        if answer.status == 206 and held:
            start, total = _content_range(answer.headers.get("Content-Range", ""))
            if start != held:
                raise SourceError(f"the server answered from byte {start} on, asked for {held}")
        else:
            held, total = 0, int(answer.headers.get("Content-Length") or 0) or size
        if size is not None and total is not None and total != size:
            raise SourceError(f"the file there has {total:,} bytes, the card says {size:,}")
        if not held:
            _write_mark(partial, url, answer.headers)
        _append(answer, partial, held, total)
    return total is None or _held(partial) == total


def _append(answer: Any, partial: Path, held: int, total: int | None) -> None:
    kilobytes = None if total is None else total // 1000
    written = held
    try:
        with (
            partial.open("ab" if held else "wb") as sink,
            Progress(kilobytes, f"downloading {partial.name.removesuffix('.partial')}", "kB") as progress,
        ):
            progress.advance(held // 1000)
            while chunk := answer.read(_CHUNK):
                sink.write(chunk)
                progress.advance((written + len(chunk)) // 1000 - written // 1000)
                written += len(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                error.errno,
                f"the disk is full: {_held(partial):,} bytes are kept in {partial}; "
                "free some space and run it again to go on from there",
            ) from None
        raise


def _content_range(header: str) -> tuple[int, int | None]:
    """``bytes 100-199/500`` as (100, 500), ``bytes */500`` as (-1, 500)."""
    try:
        span, _, total = header.removeprefix("bytes ").partition("/")
        return -1 if span == "*" else int(span.split("-")[0]), None if total in ("*", "") else int(total)
    except ValueError:
        raise SourceError(f"the server sent a range that cannot be read: {header!r}") from None


def _held(partial: Path) -> int:
    return partial.stat().st_size if partial.is_file() else 0


def _mark(partial: Path) -> Path:
    return partial.with_name(partial.name + ".mark")


def _read_mark(partial: Path, url: str) -> str | None:
    try:
        kept = json.loads(_mark(partial).read_text(encoding="utf-8"))
        return str(kept["mark"]) if kept["url"] == url and kept["mark"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_mark(partial: Path, url: str, headers: Any) -> None:
    etag = headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    _mark(partial).write_text(json.dumps({"url": url, "mark": strong}), encoding="utf-8")
