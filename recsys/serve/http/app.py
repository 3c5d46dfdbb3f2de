"""The application: limits and keys outside, routes inside, the server behind them.

It is built of Starlette's routes and pydantic's messages. FastAPI, which puts more on the same two, was measured as
well: its layers take 20 of the 26 microseconds of an empty request, and it reads bodies without a limit of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from recsys.serve.feedback import FeedbackLog
from recsys.serve.http.gate import Gate
from recsys.serve.http.routes import routes
from recsys.serve.http.server import Limits, Server
from recsys.serve.service import Service


def make_app(
    service: Service,
    limits: Limits | None = None,
    key: str | None = None,
    hosts: tuple[str, ...] | None = None,
    feedback: FeedbackLog | None = None,
    watch: float | None = None,
    log: Callable[[str], object] | None = None,
    failed: Callable[[Exception], object] | None = None,
) -> Gate:
    """The ASGI application of a service, which loads its bundles when it starts.

    Args:
        key, hosts, log: as :class:`recsys.serve.http.gate.Gate` takes them.
        feedback: the log of events; None: ``POST /feedback`` is refused.
        watch: seconds between two looks at whether a folder was written anew; None: only when asked to.
        failed: is told why a bundle could not be loaded at the start; until then nothing is answered.
    """
    limits = limits or Limits()
    server = Server(service, limits, feedback, watch, failed)
    gate = Gate(_Straight(routes(server), server.lifespan), key, hosts, limits.in_flight, server.metrics.request, log)
    server.in_flight, gate.load_all = lambda: gate.in_flight, server.load_all
    return gate


class _Straight:
    """A router that finds a route by its exact path first, which nearly all requests have."""

    def __init__(self, routes: Sequence[Route], lifespan: Any) -> None:
        self._router = Router(routes, redirect_slashes=False, lifespan=lifespan)
        self._known = {(method, one.path): one for one in routes for method in one.methods or () if "{" not in one.path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._known.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._router(scope, receive, send)
            return
        scope["route"] = route
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
