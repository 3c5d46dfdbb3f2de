"""Progress of long work on standard error: one line rewritten in a terminal, a line now and then in a log.

Work that is silent for seconds looks hung, also when a single call does it: so the lines come from a thread of their
own, which ends with the work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from recsys.errors import printable

FIRST_SECONDS, NEXT_SECONDS = 5.0, 20.0  # until the first line in a log, and between the others
_TERMINAL_SECONDS = 0.2
_CLEAR = "\r\x1b[K"


class Progress:
    """Shows ``label: done/total unit, rate, time left`` while work goes on.

    Use as a context manager and call :meth:`advance`. In a terminal the line is rewritten at most five times a second;
    elsewhere a line is printed after ``first_seconds`` and then every ``log_seconds``, whether or not a unit was
    finished in between. Work that ends within a second shows nothing.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = "",
        enabled: bool = True,
        log_seconds: float = NEXT_SECONDS,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        self.total, self.label, self.unit, self.enabled = total, label, unit, enabled
        self.done = 0
        self._terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
        self._first = 1.0 if self._terminal else min(first_seconds, log_seconds)
        self._next = _TERMINAL_SECONDS if self._terminal else log_seconds
        self._started = time.monotonic()
        self._extra: dict[str, float | str] = {}
        self._open = False
        self._speaker = _Speaker(self._say, self._first, self._next)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self.enabled:
            self._speaker.start()
        return self

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """Count ``n`` more units as done; ``shown`` values are printed behind the rate."""
        self.done += n
        self._extra = shown

    def _say(self) -> None:
        seconds, done = time.monotonic() - self._started, self.done
        text = f"{self.label}: {done:,}"
        if self.total is not None:
            text += f"/{self.total:,}"
        text += f" {self.unit}".rstrip()
        text += f", {done / seconds:,.0f}/s" if done else f" after {seconds:.0f} s"
        if self.total is not None and done:
            left = max(self.total - done, 0) * seconds / done
            text += f", {left:.0f} s left" if left >= 1 or not left else ", less than 1 s left"
        for key, value in self._extra.items():
            text += f", {key} {value:.4g}" if isinstance(value, float) else f", {key} {value}"
        self._open = self._terminal
        text = printable(text, None)
        _write(f"{_CLEAR}{text}" if self._terminal else f"{text}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._speaker.stop()
        if self._open:
            _write(_CLEAR)


@contextmanager
def saying(
    text: str, enabled: bool = True, first_seconds: float = 2.0, every_seconds: float = NEXT_SECONDS
) -> Iterator[Callable[[str], None]]:
    """Says ``text`` once the work inside takes longer than ``first_seconds``, and how long it goes on now and then.

    For a call that counts nothing. What it gives changes the text, where the work comes to its next part::

        with saying("reading events.parquet") as now:
            events = read()
            now("sorting the events")
            events.sort()
    """
    doing = _Doing(text)
    speaker = _Speaker(doing.say, first_seconds, every_seconds)
    if enabled:
        speaker.start()
    try:
        yield doing.go_on
    finally:
        speaker.stop()


class _Doing:
    """What is being done since when, and whether that was said already."""

    def __init__(self, text: str) -> None:
        self.text, self.since, self.said = text, time.monotonic(), ""

    def go_on(self, text: str) -> None:
        self.text, self.since = text, time.monotonic()

    def say(self) -> None:
        text = self.text
        lasts = f": {time.monotonic() - self.since:.0f} s so far" if text == self.said else " ..."
        self.said = text
        _write(f"{printable(text, None)}{lasts}\n")


class _Speaker:
    """Calls ``say`` after ``first`` seconds and then every ``following``, until it is stopped."""

    def __init__(self, say: Callable[[], None], first: float, following: float) -> None:
        self._say, self._first, self._following = say, first, following
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="recsys-progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing is said any more once this returns."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        wait = self._first
        while not self._over.wait(wait):
            with suppress(OSError, ValueError):  # standard error is closed: nobody listens, and the work goes on
                self._say()
            wait = self._following


def _write(text: str) -> None:
    if sys.stderr is not None:
        print(text, end="", file=sys.stderr, flush=True)
