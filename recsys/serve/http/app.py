"""The application: limits and keys outside, routes inside, the server behind them.

It is built of Starlette's router and pydantic's messages. FastAPI, which puts more on the same two, was measured as
well: its layers take a third of the requests per second of an echo, and it reads bodies without limits of time.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Router

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
    router = Router(routes(server), redirect_slashes=False, lifespan=server.lifespan)
    gate = Gate(router, key, hosts, limits.in_flight, server.metrics.request, log)
    server.in_flight = lambda: gate.in_flight
    return gate
