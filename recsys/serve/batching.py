"""One thread that ranks, and a queue before it: requests that wait are answered together.

Nothing waits for company: as soon as the thread is free it takes all that came meanwhile, up to ``most`` histories, so
a lone request is answered at once and under load the batches grow by themselves (adaptive batching, as Clipper,
Crankshaw et al. 2017, and its descendants have it, without a time to wait). The queue has an end: what would come
behind it is refused with an estimate of when to ask again, so that waiting times are bounded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

RATE_MEMORY = 0.8  # of the moving average of histories per second
LEAST_WAIT = 1.0  # seconds told to who is refused


class Weighs(Protocol):
    """What is asked: ``len`` is the number of its histories."""

    def __len__(self) -> int: ...


class Full(Exception):
    """The queue is full; ``retry_after`` are seconds after which it has probably been worked off."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many requests are waiting: ask again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Batcher:
    """Answers asks in batches in a thread of its own.

    Args:
        answer: asks -> answers in their order; what it raises is the answer to all of them.
        deliver: takes (ticket, answer) of each ask of a batch, in the ranking thread.
        most: histories in a batch; an ask with more is a batch of its own.
        waiting: histories that may wait.

    Use it as a context, or call :meth:`close`; what waits then is answered first.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        deliver: Callable[[list[tuple[Any, Any]]], None],
        most: int = 64,
        waiting: int = 1024,
    ) -> None:
        if most < 1 or waiting < 1:
            raise ValueError(f"batches and queue hold at least one history, found {most} and {waiting}")
        self._answer, self._deliver, self.most, self.waiting = answer, deliver, most, waiting
        self._queue: deque[tuple[Any, int, Any]] = deque()  # what is asked, its size, its ticket
        self._size = 0
        self._closing = False
        self._changed = threading.Condition()
        self._rate = 0.0  # histories per second while at work
        self.observe: Callable[[int, int, float], None] | None = None  # (asks, histories, seconds) of each batch
        self._thread = threading.Thread(target=self._work, name="recsys ranking", daemon=True)
        self._thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Histories that wait."""
        return self._size

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def submit(self, ask: Weighs, ticket: Any) -> None:
        """Queue an ask; its answer is delivered with ``ticket``.

        Raises:
            Full: the queue has no room for it.
            RuntimeError: it is closed.
        """
        size = max(len(ask), 1)
        with self._changed:
            if self._closing:
                raise RuntimeError("no more requests are taken: the server is stopping")
            if self._size and self._size + size > self.waiting:
                raise Full(max(LEAST_WAIT, self._size / self._rate if self._rate else 0.0))
            self._queue.append((ask, size, ticket))
            self._size += size
            self._changed.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Do ``work`` in the ranking thread, between batches, ahead of what waits: for what changes a model."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closing:
                raise RuntimeError("no more work is taken: the server is stopping")
            self._queue.appendleft((_Call(work), 0, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, take nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                batch = self._take()
            if isinstance(batch[0][0], _Call):
                _fulfil(batch[0][2], batch[0][0].work)
                continue
            started = time.perf_counter()
            try:
                answers = self._answer([ask for ask, _, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            seconds, histories = time.perf_counter() - started, sum(size for _, size, _ in batch)
            rate = histories / max(seconds, 1e-6)
            self._rate = rate if not self._rate else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate
            self._deliver([(ticket, answer) for (_, _, ticket), answer in zip(batch, answers, strict=True)])
            if self.observe is not None:
                self.observe(len(batch), histories, seconds)

    def _take(self) -> list[tuple[Any, int, Any]]:
        """What is answered next, taken out of the queue; the lock is held."""
        batch = [self._queue.popleft()]
        total = batch[0][1]
        while self._queue and not isinstance(batch[0][0], _Call):
            ask, size, _ = self._queue[0]
            if isinstance(ask, _Call) or total + size > self.most:
                break
            total += size
            batch.append(self._queue.popleft())
        self._size -= total
        return batch


class _Call:
    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
