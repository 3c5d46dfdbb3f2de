"""The process that serves: bundles are checked to be there, the door is opened, then they are loaded."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from recsys.serve.bundle import FORMAT, KIND
from recsys.serve.feedback import FeedbackLog
from recsys.serve.http.app import make_app
from recsys.serve.http.gate import LOCAL, Lines
from recsys.serve.http.server import Limits
from recsys.serve.service import Service
from recsys.storage.folders import read_manifest

STOPPING = 10  # seconds in which requests are finished when the server is told to stop
IDLE = 75  # seconds a connection without a request is kept, longer than load balancers do


def run(
    folders: Mapping[str, Path],
    host: str,
    port: int,
    key: str | None,
    limits: Limits,
    chain: Sequence[str],
    lists: Mapping[str, Sequence[Any]],
    feedback: Path | None,
    watch: float | None,
    log: bool,
    threads: int,
    trust: Sequence[str],
) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT); SIGHUP reads all bundles again.

    Raises:
        FileNotFoundError, DataError, PermissionError: a bundle is missing, broken or not trusted, when it starts.
        OSError: the port is taken.
    """
    for folder in folders.values():
        read_manifest(folder, KIND, FORMAT, verify=False, apart=("index",))
    if threads:
        import torch

        torch.set_num_threads(threads)
    service = Service(folders, trust, chain, lists)
    lines = Lines(sys.__stderr__)
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = make_app(
        service,
        limits,
        key,
        (*LOCAL, host) if key is None else None,
        None if feedback is None else FeedbackLog(feedback),
        watch,
        lines if log else None,
        failed,
    )
    config = uvicorn.Config(
        app, host, port, log_config=None, access_log=False, server_header=False, timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=STOPPING, ws="none",
        proxy_headers=False,
    )  # fmt: skip
    server = _Server(config, list(folders), app.load_all)
    server.run()
    lines.flush()
    if failures:
        raise failures[0]


class _Server(uvicorn.Server):
    """Tells its address once it listens, and reads bundles again at SIGHUP."""

    def __init__(self, config: uvicorn.Config, names: Sequence[str], load_all: Callable[[], Any] | None) -> None:
        super().__init__(config)
        self._names, self._load_all = list(names), load_all

    async def startup(self, sockets: Any = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if not self.started:
            return
        for one in self.servers:
            for socket in one.sockets:
                host, port = socket.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                print(f"serving {', '.join(self._names)} at http://{shown}:{port}", file=sys.stderr)
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._again)

    def _again(self) -> None:
        assert self._load_all is not None
        self._task = asyncio.ensure_future(self._load_all())
