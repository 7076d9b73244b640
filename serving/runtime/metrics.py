"""What /metrics tells Prometheus of one replica."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ITEMS = (1, 2, 4, 8, 16, 32, 64)


class EndpointMetrics:
    """Counters of one process, each with the label `replica`."""

    def __init__(self, replica: str = ""):
        self._registry, self._replica = CollectorRegistry(), replica

        def make(kind: type, name: str, help: str, *labels: str, **options: object):
            return kind(f"zpoint_{name}", help, ["replica", *labels], registry=self._registry, **options)

        self._requests = make(Counter, "requests", "requests answered", "route", "status")
        self._seconds = make(Histogram, "request_seconds", "from the first byte to the last", "route", buckets=SECONDS)
        self._items = make(Counter, "items", "z-points decoded, images encoded", "work")
        self._batch = make(Histogram, "batch_items", "how many went through the model together", "work", buckets=ITEMS)
        self._busy = make(Counter, "busy_seconds", "time in the model", "work")
        self._waiting = make(Gauge, "waiting_items", "admitted and not done", "work")
        self._shed = make(Counter, "shed", "requests refused with 503 because too much waits", "work")
        self._swaps = make(Counter, "swaps", "moves of the alias that were followed")
        self._refusals = make(Counter, "refused_versions", "versions that the alias named and that did not load")
        self._model = make(Gauge, "model", "1 for what is served", "name", "version")

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(self._replica, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def observe_batch(self, work: str, items: int, seconds: float) -> None:
        self._items.labels(self._replica, work).inc(items)
        self._batch.labels(self._replica, work).observe(items)
        self._busy.labels(self._replica, work).inc(seconds)

    def set_waiting(self, work: str, items: int) -> None:
        self._waiting.labels(self._replica, work).set(items)

    def count_shed(self, work: str) -> None:
        self._shed.labels(self._replica, work).inc()

    def count_refused_version(self) -> None:
        self._refusals.labels(self._replica).inc()

    def set_served_version(self, name: str, version: str, *, swap: bool) -> None:
        self._model.clear()
        self._model.labels(self._replica, name, version).set(1)
        if swap:
            self._swaps.labels(self._replica).inc()

    def exposition(self) -> bytes:
        """The text exposition format of Prometheus, 0.0.4."""
        return generate_latest(self._registry)
