"""A queue before a model: requests that wait are answered together.

Nothing waits for company that is not there yet: as soon as the model is free it gets all that came meanwhile, up to
``most`` histories, so a lone request is answered at once and under load the batches grow by themselves (adaptive
batching as in Clipper, Crankshaw et al. 2017, without a time to wait). The queue has an end: what would come behind it
is refused with an estimate of when to ask again, so that waiting times are bounded.

Where batches take milliseconds they are ranked in the thread of the event loop, between two rounds of it: two threads
that both run Python take turns at its lock, which cost more than a third of the requests per second when it was
measured. Where batches take longer, as those of language models do, a thread of its own ranks them, and the loop goes
on answering everything else. Which of the two is decided by what the last batches took.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

MEMORY = 0.8  # of the moving averages
LEAST_WAIT = 1.0  # seconds told to who is refused
CLOSING = 10.0  # seconds in which what is at work may end
SHORT = 0.02  # seconds of a batch up to which the event loop may stand still for it


class Sized(Protocol):
    """What is asked: ``len`` is the number of its histories."""

    def __len__(self) -> int: ...


class Full(Exception):
    """The queue is full; ``retry_after`` are seconds after which it has probably been worked off."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many requests are waiting: ask again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Batcher:
    """Answers asks in batches, one batch at a time.

    Args:
        answer: asks -> answers in their order; what it raises is the answer to all of them.
        deliver: takes (ticket, answer) of each ask of a batch, in whichever thread ranked it.
        most: histories in a batch; an ask with more is a batch of its own.
        waiting: histories that may wait.
        soon: has the event loop call something soon (``loop.call_soon``; :meth:`submit` is called in its thread then);
            None: a thread ranks everything.

    Use it as a context, or call :meth:`close`; what waits then is answered first.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        deliver: Callable[[list[tuple[Any, Any]]], None],
        most: int = 64,
        waiting: int = 1024,
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        if most < 1 or waiting < 1:
            raise ValueError(f"batches and queue hold at least one history, found {most} and {waiting}")
        self._answer, self._deliver, self._soon, self.most, self.waiting = answer, deliver, soon, most, waiting
        self._queue: deque[tuple[Any, int, Any]] = deque()  # what is asked, its size, its ticket
        self._size, self._closing, self._called = 0, False, False
        self._changed = threading.Condition()
        self._at_work = threading.Lock()  # held by who asks the model
        self._seen = 0  # histories that waited a round ago
        self._rate, self._seconds = 0.0, 0.0  # histories per second while at work, seconds of a batch
        self._threaded = soon is None
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

    def submit(self, ask: Sized, ticket: Any) -> None:
        """Queue an ask; its answer is delivered with ``ticket``.

        Raises:
            Full: the queue has no room for it.
            RuntimeError: it is closed.
        """
        size = max(len(ask), 1)
        with self._changed:
            self._admit(size)
            self._queue.append((ask, size, ticket))
            self._size += size
            self._wake()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Do ``work`` in the thread, in its turn: for what changes a model, or is no list; it counts as a history.

        Raises:
            Full: the queue has no room for it.
            RuntimeError: it is closed.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._admit(1)
            self._queue.append((_Call(work), 1, future))
            self._size += 1
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, take nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSING)

    def _admit(self, size: int) -> None:
        """Refuse what has no room; the lock of the queue is held."""
        if self._closing:
            raise RuntimeError("no more requests are taken: the server is stopping")
        if self._size and self._size + size > self.waiting:
            raise Full(max(LEAST_WAIT, self._size / self._rate if self._rate else 0.0))

    def _wake(self) -> None:
        """Have what waits ranked, by whom it suits; the lock of the queue is held."""
        if self._threaded or self._soon is None:
            self._changed.notify()
        elif not self._called:
            self._called = True
            self._soon(self._in_loop)

    def _in_loop(self) -> None:
        """Rank a batch in the thread of the event loop, once a round of it has brought nothing more."""
        if self._soon is not None and self._seen < self._size < self.most:
            self._seen = self._size
            self._soon(self._in_loop)
            return
        self._seen = 0
        if not self._at_work.acquire(blocking=False):  # a call is being done
            with self._changed:
                self._called = False
                self._changed.notify()
            return
        try:
            with self._changed:
                self._called = False
                theirs = not self._queue or isinstance(self._queue[0][0], _Call)
                batch = [] if theirs else self._take()
            if batch:
                self._rank(batch)
        finally:
            self._at_work.release()
        with self._changed:
            if self._queue:
                self._wake()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
            with self._at_work:
                with self._changed:
                    batch = self._take() if self._queue else []
                if not batch:
                    continue
                if isinstance(batch[0][0], _Call):
                    _fulfil(batch[0][2], batch[0][0].work)
                else:
                    self._rank(batch)

    def _rank(self, batch: list[tuple[Any, int, Any]]) -> None:
        started = time.perf_counter()
        try:
            answers = self._answer([ask for ask, _, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        seconds, histories = time.perf_counter() - started, sum(size for _, size, _ in batch)
        self._rate = _averaged(self._rate, histories / max(seconds, 1e-6))
        self._seconds = _averaged(self._seconds, seconds)
        self._threaded = self._soon is None or self._seconds > (SHORT / 2 if self._threaded else SHORT)
        self._deliver([(ticket, answer) for (_, _, ticket), answer in zip(batch, answers, strict=True)])
        if self.observe is not None:
            self.observe(len(batch), histories, seconds)

    def _take(self) -> list[tuple[Any, int, Any]]:
        """What is answered next, taken out of the queue, whose lock is held."""
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


def _averaged(before: float, new: float) -> float:
    return MEMORY * before + (1 - MEMORY) * new if before else new


def _fulfil(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():  # whoever asked has gone
        return
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
