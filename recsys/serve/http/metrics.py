"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int], in_flight: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("recsys_requests_total", "Requests", ["path", "status"], registry=registry)
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # labels are slow to look up
        self._seconds = Histogram("recsys_request_seconds", "From request to answer", ["path"], buckets=SECONDS,
                                  registry=registry)  # fmt: skip
        self._batches = Histogram("recsys_batch_histories", "Histories ranked together", buckets=SIZES,
                                  registry=registry)  # fmt: skip
        self._ranking = Histogram("recsys_batch_seconds", "Ranking of a batch", buckets=SECONDS, registry=registry)
        self._lists = Counter("recsys_lists_total", "Lists by what made them", ["bundle", "source"], registry=registry)
        self._made: dict[tuple[str, str], Counter] = {}
        self._unknown = Counter("recsys_unknown_items_total", "Unknown items of histories", ["bundle"],
                                registry=registry)  # fmt: skip
        self._swaps = Counter("recsys_swaps_total", "Bundles exchanged", ["bundle", "outcome"], registry=registry)
        self._events = Counter("recsys_feedback_events_total", "Events", ["outcome"], registry=registry)
        self._items = Gauge("recsys_items", "Items of a bundle", ["bundle", "hash"], registry=registry)
        waits = Gauge("recsys_waiting_histories", "Histories that wait to be ranked", registry=registry)
        waits.set_function(waiting)
        flying = Gauge("recsys_requests_in_flight", "Requests that are not answered yet", registry=registry)
        flying.set_function(in_flight)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        counted = self._answered.get((path, status))
        if counted is None:
            counted = self._requests.labels(path, str(status)), self._seconds.labels(path)
            self._answered[path, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def batch(self, asks: int, histories: int, seconds: float) -> None:
        """A batch was ranked."""
        self._batches.observe(histories)
        self._ranking.observe(seconds)

    def lists(self, bundle: str, sources: list[str], unknown: int) -> None:
        """Lists were made."""
        for source in set(sources):
            counted = self._made.get((bundle, source))
            if counted is None:
                counted = self._made[bundle, source] = self._lists.labels(bundle, source)
            counted.inc(sources.count(source))
        if unknown:
            self._unknown.labels(bundle).inc(unknown)

    def swap(self, bundle: str, outcome: str) -> None:
        """A bundle was exchanged, or could not be."""
        self._swaps.labels(bundle, outcome).inc()

    def items(self, bundle: str, digest: str, count: int) -> None:
        """A bundle is asked from now on."""
        for labels in [one for one in list(self._items._metrics) if one[0] == bundle]:
            self._items.remove(*labels)
        self._items.labels(bundle, digest).set(count)

    def feedback(self, written: int, repeated: int) -> None:
        """Events came."""
        self._events.labels("written").inc(written)
        self._events.labels("repeated").inc(repeated)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
