"""Prometheus metrics of one replica, served at /metrics, and on a cluster by Ray's exporter on each node."""

import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

log = logging.getLogger(__name__)
SECONDS_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
EXPORT_INTERVAL_S = 5.0


class EndpointMetrics:
    """The metrics of one process, all with the label `replica`; an `operation` is decode, encode, faces or
    neighbours.
    """

    def __init__(self, replica: str = ""):
        self._registry, self._replica = CollectorRegistry(), replica

        def make(kind: type, name: str, help: str, *labels: str, **options: object):
            return kind(f"zpoint_{name}", help, ["replica", *labels], registry=self._registry, **options)

        self._requests = make(Counter, "requests", "requests answered", "route", "status")
        self._seconds = make(
            Histogram, "request_seconds", "from the first byte to the last", "route", buckets=SECONDS_BUCKETS
        )
        self._items = make(
            Counter, "items", "z-points decoded, images encoded or searched for faces, neighbours found", "operation"
        )
        self._batch_items = make(
            Histogram, "batch_items", "items in one batch", "operation", buckets=BATCH_SIZE_BUCKETS
        )
        self._busy_seconds = make(Counter, "busy_seconds", "time in the models, face detector and search", "operation")
        self._waiting_items = make(Gauge, "waiting_items", "items of requests that are not answered yet", "operation")
        self._shed = make(Counter, "shed", "requests refused with 503 because the server is overloaded", "operation")
        self._swaps = make(Counter, "swaps", "swaps of the model after the alias moved")
        self._refused_versions = make(Counter, "refused_versions", "versions of the alias that did not load")
        self._model = make(Gauge, "model", "1 for the version that is served", "alias", "name", "version")
        self._served_versions: dict[str, tuple[str, str]] = {}  # name and version by alias
        # An alert and a rate need the zero before the first one.
        for counter in (self._swaps, self._refused_versions):
            counter.labels(replica)
        for operation in ("decode", "encode", "faces", "neighbours"):
            self._shed.labels(replica, operation)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(self._replica, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)

    def observe_batch(self, operation: str, items: int, seconds: float) -> None:
        self._items.labels(self._replica, operation).inc(items)
        self._batch_items.labels(self._replica, operation).observe(items)
        self._busy_seconds.labels(self._replica, operation).inc(seconds)

    def add_waiting(self, operation: str, items: int) -> None:
        """Add `items` to those of all models that wait, or take them away if negative."""
        self._waiting_items.labels(self._replica, operation).inc(items)

    def count_shed(self, operation: str) -> None:
        self._shed.labels(self._replica, operation).inc()

    def count_refused_version(self) -> None:
        self._refused_versions.labels(self._replica).inc()

    def set_served_version(self, alias: str, name: str, version: str, *, swap: bool) -> None:
        if alias in self._served_versions:
            self._model.remove(self._replica, alias, *self._served_versions[alias])
        self._served_versions[alias] = (name, version)
        self._model.labels(self._replica, alias, name, version).set(1)
        if swap:
            self._swaps.labels(self._replica).inc()

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text exposition format, 0.0.4."""
        return generate_latest(self._registry)

    def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return the values of `exposition` by name and labels, without the label `replica`."""
        return {
            (sample.name, tuple(pair for pair in sample.labels.items() if pair[0] != "replica")): sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }


class RayExporter:
    """Copies the metrics of a Serve replica to Ray's exporter, with the prefix `ray_` and Serve's own labels.

    Behind HAProxy /metrics answers for one replica of several; Ray's exporters have all of them. Values are copied
    every few seconds, since recording each request in Ray too would cost it time. Each value is a gauge, also counters
    and buckets: Ray has no counter of zero, and its histogram takes only single observations.
    """

    def __init__(self, metrics: EndpointMetrics) -> None:
        self._metrics = metrics
        self._gauges: dict[str, Any] = {}
        self._exported: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def export(self) -> None:
        """Copy all values once; a series that is gone, such as a replaced version's, becomes 0."""
        from ray.serve.metrics import Gauge

        samples = self._metrics.samples()
        for (name, labels), value in (dict.fromkeys(self._exported, 0.0) | samples).items():
            if name not in self._gauges:
                keys: Any = tuple(key for key, _ in labels)  # Ray annotates one key
                self._gauges[name] = Gauge(name, f"{name} of /metrics", tag_keys=keys)
            self._gauges[name].set(value, dict(labels))
        self._exported = set(samples)

    def run(self) -> None:
        """Copy all values every EXPORT_INTERVAL_S, in a thread that never ends; log the first of several errors."""
        failed = False
        while True:
            try:
                self.export()
                failed = False
            except Exception as error:
                if not failed:
                    log.warning("cannot copy the metrics to Ray's exporter, which keeps the last ones: %s", error)
                failed = True
            time.sleep(EXPORT_INTERVAL_S)
