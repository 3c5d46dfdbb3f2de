"""What every request passes: who asks, how many ask at a time, and what the log and the metrics keep of it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.serve.http.problems import Refused, busy

OPEN = ("/", "/health/live", "/health/ready")  # and what the page is made of: nothing that a key protects
LOCAL = ("localhost", "127.0.0.1", "[::1]")
LOG_SECONDS = 0.2
RETRY = 1.0  # seconds, where too many ask at a time


class Gate:
    """The outermost layer of the application.

    Args:
        key: what callers must send (``Authorization: Bearer KEY``); None: nothing.
        hosts: names under which it may be asked; None: any. On loopback this keeps a website that somebody visits from
            asking the server in their place, by a name of its own that resolves to this machine.
        most: requests that are answered at a time; the others are sent away with 503.
        observe: (path, status, seconds) of each request.
        log: takes a line for each request; None: none.

    A log line has no history, no id and no query: method, path, status, milliseconds, and what the route added to
    ``request.state.log``.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None = None,
        hosts: Iterable[str] | None = None,
        most: int = 1024,
        observe: Callable[[str, int, float], None] | None = None,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.app, self.most, self._observe, self._log = app, most, observe, log
        self._key = None if key is None else key.encode()
        self._hosts = None if hosts is None else frozenset(one.lower() for one in hosts)
        self.in_flight = 0
        self.load_all: Callable[[], Any] | None = None  # has every bundle read again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, started_to_answer = time.perf_counter(), 500, False
        scope["app"] = self.app  # by which the router knows that it may raise
        state = scope.setdefault("state", {})
        state["log"] = {}

        async def watched(message: Message) -> None:
            nonlocal status, started_to_answer
            if message["type"] == "http.response.start":
                status, started_to_answer = message["status"], True
            await send(message)

        self.in_flight += 1
        try:
            refused = self._refused(scope)
            if refused is not None:
                raise refused
            await self.app(scope, receive, watched)
        except ClientDisconnect:  # nobody is there to be answered
            status = 499
        except Exception as error:
            if started_to_answer:
                raise
            await _refusal(error, scope).response()(scope, receive, watched)
        finally:
            self.in_flight -= 1
            self._tell(scope, status, time.perf_counter() - started, state["log"])

    def _refused(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        if self._hosts is not None:
            host = _name(headers.get(b"host", b"").decode("latin-1"))
            if host not in self._hosts:
                return Refused(421, "this server answers under the name it was started with: see recsys serve --host")
        origin = headers.get(b"origin")
        if self._key is None and origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b""):
            return Refused(403, "a page of another website asks, which only a server may do in its place")
        path = scope["path"]
        if path not in OPEN and not path.startswith("/page.") and self._key is not None:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._key):
                detail = "a key is needed: send Authorization: Bearer KEY"
                return Refused(401, detail, {"WWW-Authenticate": "Bearer"})
        if self.in_flight > self.most and not path.startswith("/health/"):
            return busy(f"{self.most:,} requests are being answered, which is the limit: ask again", RETRY)
        return None

    def _tell(self, scope: Scope, status: int, seconds: float, more: dict[str, Any]) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"  # the template, so that ids in paths stay out
        if self._observe is not None:
            self._observe(path, status, seconds)
        if self._log is not None:
            told = {"time": round(time.time(), 3), "method": scope["method"], "path": path, "status": status}
            self._log(json.dumps({**told, "ms": round(1000 * seconds, 2), **more}))


def _refusal(error: Exception, scope: Scope) -> Refused:
    """What is told of an error: the words of a refusal, and of anything else only that it happened."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):  # no such route, or another method
        detail = f"{scope['method']} {scope['path'][:200]} is not served here"
        return Refused(error.status_code, detail, dict(error.headers or {}))
    logging.getLogger(__name__).error("%s %s failed", scope["method"], scope["path"], exc_info=error)
    return Refused(500, f"{type(error).__name__} in the server; its log tells more")


class Lines:
    """A log on a stream, written several times a second rather than with every request.

    Lines go out as they are: JSON has no character that a terminal would obey.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._lines = stream, list[str]()

    def __call__(self, line: str) -> None:
        """Take a line; it is written soon."""
        if self._stream is None:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(LOG_SECONDS, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what was taken."""
        lines, self._lines = self._lines, []
        if lines and self._stream is not None:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def _name(host: str) -> str:
    """The host of a Host header, without its port."""
    host = host.strip().lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
