"""Progress of long work on standard error: one line rewritten in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Shows ``label: done/total unit, rate, time left`` while work goes on.

    Use as a context manager and call :meth:`advance`. In a terminal the line is rewritten at most five times a second;
    elsewhere a line is printed at most every ``log_seconds``. Work that ends within a second shows nothing.
    """

    def __init__(
        self, total: int | None, label: str, unit: str = "", enabled: bool = True, log_seconds: float = 20.0
    ) -> None:
        self.total, self.label, self.unit, self.enabled = total, label, unit, enabled
        self.done = 0
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else log_seconds
        self._started = self._shown = time.monotonic()
        self._open = False

    def __enter__(self) -> Progress:
        self._started = self._shown = time.monotonic()
        return self

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """Count ``n`` more units as done; ``shown`` values are printed behind the rate."""
        self.done += n
        now = time.monotonic()
        if self.enabled and now - self._shown >= self._every and now - self._started >= 1.0:
            self._shown = now
            self._print(now, shown)

    def _print(self, now: float, shown: dict[str, float | str]) -> None:
        rate = self.done / max(now - self._started, 1e-9)
        text = f"{self.label}: {self.done:,}"
        if self.total is not None:
            text += f"/{self.total:,}"
        text += f" {self.unit}".rstrip() + f", {rate:,.0f}/s"
        if self.total is not None and rate > 0:
            text += f", {max(self.total - self.done, 0) / rate:.0f} s left"
        for key, value in shown.items():
            text += f", {key} {value:.4g}" if isinstance(value, float) else f", {key} {value}"
        self._open = self._terminal
        print(
            f"\r\x1b[K{text}" if self._terminal else text,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
