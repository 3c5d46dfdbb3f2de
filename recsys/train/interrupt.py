"""Ctrl-C that waits for the end of an update, so that what is saved is never half an update."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While active, the first Ctrl-C only sets ``requested``; a second one, or ``immediate``, interrupts at once.

    Does nothing outside the main thread, or where a program has its own handler.
    """

    def __init__(self) -> None:
        self.requested = False
        self.immediate = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self.immediate:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this update (Ctrl-C again: at once)", file=sys.stderr, flush=True)
