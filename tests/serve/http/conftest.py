"""Servers on free ports of loopback, in this process, and what asks them."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
import uvicorn

from recsys.data.split import Split
from recsys.recommenders.base import Ranker
from recsys.recommenders.composed import Recommender
from recsys.serve.bundle import export
from recsys.serve.http.app import make_app
from recsys.serve.service import Service


@dataclass
class Running:
    """A server, and the simplest client."""

    port: int
    service: Service
    server: uvicorn.Server

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of an answer; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{name.replace("_", "-"): one for name, one in headers.items()}}
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        text = answer.read()
        found = json.loads(text) if "json" in answer.headers.get("content-type", "") else text.decode()
        connection.close()
        return answer.status, found, {name.lower(): one for name, one in answer.headers.items()}

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and answer of a POST."""
        return self.ask("POST", path, body, **headers)[:2]

    def get(self, path: str) -> tuple[int, Any]:
        """Status and answer of a GET."""
        return self.ask("GET", path)[:2]


class Serving:
    """Starts servers, and stops all of them in the end."""

    def __init__(self) -> None:
        self._running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def __call__(self, folders: dict[str, Path], wait: bool = True, trust: Any = (), **settings: Any) -> Running:
        """A server of some bundles; ``settings`` go to ``make_app``."""
        chain, lists = settings.pop("chain", ("popular",)), settings.pop("lists", None)
        service = settings.pop("service", None) or Service(folders, trust, chain, lists)
        config = uvicorn.Config(make_app(service, **settings), "127.0.0.1", 0, log_config=None, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        self._running.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started or (wait and not service.ready):
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        return Running(server.servers[0].sockets[0].getsockname()[1], service, server)

    def stop(self) -> None:
        """Stop all."""
        for server, thread in self._running:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def serving() -> Iterator[Serving]:
    found = Serving()
    yield found
    found.stop()


@pytest.fixture
def bundle(model: Recommender, split: Split, tmp_path: Path) -> Path:
    return export(model, tmp_path / "toy", split=split).folder


@pytest.fixture
def other(counted: Ranker, split: Split, tmp_path: Path) -> Path:
    return export(counted, tmp_path / "counted", split=split).folder
