"""Rate limits of requests: per minute, and pauses that a server asks for."""

from __future__ import annotations

import threading
import time


class Bucket:
    """Units that flow in at a steady rate, a second's worth at most; what is taken beyond them is waited for."""

    def __init__(self, per_minute: float) -> None:
        if per_minute <= 0:
            raise ValueError(f"a limit per minute must be positive, or None for none; found {per_minute}")
        self.rate = per_minute / 60
        self.size = self.level = max(1.0, self.rate)
        self.seen: float | None = None

    def take(self, units: float, now: float) -> float:
        """Take them; the seconds to wait until they are there."""
        self.level = min(self.size, self.level + self.rate * (now - (now if self.seen is None else self.seen))) - units
        self.seen = now
        return max(0.0, -self.level / self.rate)


class RateLimit:
    """When the next request may go out, for all threads together."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute)
        self._lock, self._resume = threading.Lock(), 0.0

    def wait(self, tokens: float, stop: threading.Event) -> bool:
        """Wait for one request of so many tokens; False if stopped meanwhile."""
        with self._lock:
            now = time.monotonic()
            seconds = self._resume - now
            if self._requests is not None:
                seconds = max(seconds, self._requests.take(1, now))
            if self._tokens is not None:
                seconds = max(seconds, self._tokens.take(tokens, now))
        while seconds > 0 and not stop.wait(seconds):
            seconds = self._resume - time.monotonic()
        return not stop.is_set()

    def give_back(self, tokens: float) -> None:
        """Correct what was set aside (less than nothing: it took more)."""
        if self._tokens is not None:
            with self._lock:
                self._tokens.level += tokens

    def pause(self, seconds: float) -> None:
        """Let no request out for so long."""
        with self._lock:
            self._resume = max(self._resume, time.monotonic() + seconds)
