"""What lives as long as the application: the ranking thread, the bundles behind it, the log of events."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from recsys.errors import DataError, UnknownItemError, printable
from recsys.serve.batching import Batcher, Full
from recsys.serve.feedback import FeedbackLog
from recsys.serve.http.metrics import Metrics
from recsys.serve.http.problems import Refused, busy
from recsys.serve.service import Ask, Served, Service
from recsys.storage.folders import MANIFEST

_LOG = logging.getLogger(__name__)
LOADING = 2.0  # seconds told to who asks while bundles are loaded


@dataclass(frozen=True)
class Limits:
    """What one server takes at a time."""

    body: int = 4 * 2**20  # bytes
    body_seconds: float = 10.0
    in_flight: int = 1024  # requests that are answered at a time
    waiting: int = 2048  # histories that wait to be ranked
    batch: int = 64  # histories ranked together; 1: no batching


class Server:
    """What lives as long as the application."""

    def __init__(
        self, service: Service, limits: Limits, feedback: FeedbackLog | None, watch: float | None, failed: Any
    ) -> None:
        self.service, self.limits, self.feedback = service, limits, feedback
        self._watch, self._failed = watch, failed
        self._read: dict[str, tuple[int, int] | None] = {}  # which writing of each folder was read last
        self.in_flight: Callable[[], int] = lambda: 0
        self.batcher: Batcher | None = None
        self.metrics = Metrics(lambda: self.batcher.size if self.batcher else 0, lambda: self.in_flight())

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Start the ranking thread, load the bundles behind the open door, and stop in order."""
        loop = asyncio.get_running_loop()

        here = threading.get_ident()

        def deliver(pairs: list[tuple[Any, Any]]) -> None:
            if threading.get_ident() == here:
                _fulfil(pairs)
            else:
                loop.call_soon_threadsafe(_fulfil, pairs)

        self.batcher = Batcher(self.service.answer, deliver, self.limits.batch, self.limits.waiting, loop.call_soon)
        self.batcher.observe = self.metrics.batch
        tasks = [asyncio.create_task(self._start())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await run_in_threadpool(self.batcher.close)
            if self.feedback is not None:
                self.feedback.close()

    async def _start(self) -> None:
        try:
            for name in self.service.folders:
                await self.load(name)
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(error)
            return
        while self._watch:
            await asyncio.sleep(self._watch)
            for name, folder in self.service.folders.items():
                stamp = _stamp(folder)
                if stamp is not None and stamp != self._read[name]:  # a broken one is not tried again as it is
                    await asyncio.gather(self.load(name), return_exceptions=True)

    async def load(self, name: str) -> Served:
        """Read a bundle; metrics tell how it went."""
        self._read[name] = _stamp(self.service.folders[name])  # before it is read: what comes meanwhile is newer
        try:
            served = await run_in_threadpool(self.service.load, name)
        except Exception as error:
            self.metrics.swap(name, "refused")
            if name in self.service.loaded:
                _LOG.warning("the bundle %s was refused, and the one before goes on: %s", name, error)
            raise
        self.metrics.swap(name, "loaded")
        gc.unfreeze()
        gc.collect()  # the bundle before, once nobody waits for its answers
        gc.freeze()  # and what lives as long as this one is not looked through in the middle of requests
        self.metrics.items(name, served.hash, len(served.vocabulary))
        return served

    async def load_all(self) -> None:
        """Read all bundles again; those that are broken leave the ones before."""
        for name in self.service.folders:
            await asyncio.gather(self.load(name), return_exceptions=True)

    def served(self, name: str | None) -> Served:
        """The bundle that is asked, or a refusal."""
        try:
            return self.service.current(name)
        except LookupError as error:
            raise busy(str(error.args[0]), LOADING) from None
        except ValueError as error:
            raise Refused(422, str(error)) from None

    def named(self, name: str) -> Served:
        """The bundle of a path, or a refusal."""
        if name not in self.service.folders:
            raise Refused(404, f"there is no bundle {printable(repr(name), 60)}: GET /bundles lists them")
        return self.served(name)

    async def ranked(self, ask: Ask) -> Any:
        """The answer to an ask, made together with those of others."""
        assert self.batcher is not None
        future = asyncio.get_running_loop().create_future()
        try:
            self.batcher.submit(ask, future)
        except Full as full:
            raise busy(str(full), full.retry_after) from None
        except RuntimeError as error:
            raise busy(str(error), LOADING) from None
        return await self.within(future)

    async def apart(self, work: Callable[[], Any]) -> Any:
        """The result of work that must not run while models are asked."""
        assert self.batcher is not None
        try:
            future = self.batcher.call(work)
        except Full as full:
            raise busy(str(full), full.retry_after) from None
        except RuntimeError as error:
            raise busy(str(error), LOADING) from None
        return await self.within(asyncio.wrap_future(future))

    async def within(self, future: Any) -> Any:
        """What a future brings; what a request is to blame for is refused in the words of the library."""
        try:
            return await future
        except (UnknownItemError, DataError, ValueError, TypeError) as error:
            raise Refused(422, printable(str(error), 1_000)) from error


def _fulfil(pairs: list[tuple[Any, Any]]) -> None:
    for future, found in pairs:
        if future.done():  # whoever asked has gone
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Changes when a folder is written anew."""
    try:
        found = os.stat(folder / MANIFEST)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
