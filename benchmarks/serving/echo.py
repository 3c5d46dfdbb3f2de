"""The web stack alone: an application that answers with the JSON it was sent, on Starlette and uvicorn."""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    """The body again."""
    return JSONResponse(await request.json())


async def ready(request: Request) -> Response:
    """200."""
    return Response()


if __name__ == "__main__":
    routes = [Route("/recommend", echo, methods=["POST"]), Route("/health/ready", ready)]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
