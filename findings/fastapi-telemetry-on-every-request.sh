#!/usr/bin/env bash
# fastapi 0.165.0: OpenTelemetry is a requirement, and is looked for on every request though nobody configured it.
#
# An application of one route, called directly as ASGI (no server, no network): each request asks
# opentelemetry.trace.get_tracer_provider() and its two siblings of metrics and logs, which read os.environ each time as
# long as there is no provider. Beside Starlette 1.10.0 with the same handler a request costs a multiple of the time: the
# telemetry, a layer that limits bodies, exit stacks and the solving of dependencies. A route with 60 microseconds of work
# loses a quarter of its requests per second to that.
#
# Seen with Python 3.11 on Linux x86-64:
#   opentelemetry-api is required: yes; lookups of a provider in 100 requests: 300
#   microseconds of a request: Starlette 6, FastAPI 26 (these two vary with the machine and are not checked)
# What helps: Starlette's routes where requests are many and short; FastAPI's validation is pydantic's, which reads bytes
# by itself (model_validate_json).
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check "fastapi==0.165.0" "starlette==1.10.0"
cd "$work"
env -u OTEL_PYTHON_TRACER_PROVIDER -u OTEL_PYTHON_METER_PROVIDER -u OTEL_PYTHON_LOGGER_PROVIDER \
  "$work/env/bin/python" - <<'PY'
import asyncio
import importlib.metadata
import time

import opentelemetry._logs
import opentelemetry.metrics
import opentelemetry.trace
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

REQUESTS, lookups = 100, 0


async def hello(request: Request) -> Response:
    return Response(b"hello")


def counted(look):
    def looked():
        global lookups
        lookups += 1
        return look()

    return looked


async def ask(app):
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "root_path": "", "scheme": "http",
             "query_string": b"", "headers": [], "http_version": "1.1", "client": None, "server": ("localhost", 80)}
    told = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        told.append(message)

    await app(scope, receive, send)
    assert told[0]["status"] == 200, told


async def asked(app, count):
    for _ in range(count):
        await ask(app)


async def seconds(app):
    await asked(app, 200)
    best = []
    for _ in range(5):
        began = time.perf_counter()
        await asked(app, 2000)
        best.append((time.perf_counter() - began) / 2000)
    return min(best)


fast = FastAPI()
fast.get("/")(hello)
plain = Starlette(routes=[Route("/", hello)])
required = any("opentelemetry-api" in one for one in importlib.metadata.requires("fastapi") if "extra ==" not in one)
took = [1e6 * asyncio.run(seconds(one)) for one in (plain, fast)]
for module, name in ((opentelemetry.trace, "get_tracer_provider"), (opentelemetry.metrics, "get_meter_provider"),
                     (opentelemetry._logs, "get_logger_provider")):
    setattr(module, name, counted(getattr(module, name)))
asyncio.run(asked(fast, 1))
lookups = 0
asyncio.run(asked(fast, REQUESTS))
print(f"opentelemetry-api is required: {'yes' if required else 'no'}; lookups of a provider in {REQUESTS} requests: {lookups}")
print(f"microseconds of a request: Starlette {took[0]:.0f}, FastAPI {took[1]:.0f}")
assert required and lookups >= REQUESTS, "fastapi no longer looks for telemetry on every request"
PY
