"""Check what a replica copies to Ray's exporter; tests/cluster/deploy/test_services.py reads it from there."""

from typing import Any

import pytest

from serving.runtime.deployment import exporter_urls
from serving.runtime.metrics import EndpointMetrics, RayExporter

Series = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Series:
    """Record what is set in Ray's gauges: values by name and labels."""
    values: Series = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert "replica" not in tag_keys  # Serve adds its own
            self.name, self.tag_keys = name, tag_keys

        def set(self, value: float, tags: dict[str, Any]) -> None:
            assert tuple(tags) == self.tag_keys
            values[self.name, tuple(tags.values())] = value

    monkeypatch.setattr("ray.serve.metrics.Gauge", Gauge)
    return values


def test_counters_buckets_and_gauges_are_exported_with_their_labels(exported: Series):
    metrics = EndpointMetrics("replica-1")
    exporter = RayExporter(metrics)
    metrics.observe_request("/v1/decode", 200, 0.03)
    exporter.export()
    metrics.observe_request("/v1/decode", 200, 0.3)
    exporter.export()
    assert exported["zpoint_requests_total", ("/v1/decode", "200")] == 2
    assert exported["zpoint_request_seconds_bucket", ("/v1/decode", "0.05")] == 1
    assert exported["zpoint_request_seconds_bucket", ("/v1/decode", "+Inf")] == 2
    assert exported["zpoint_request_seconds_sum", ("/v1/decode",)] == pytest.approx(0.33)
    zeros = (("zpoint_shed_total", ("decode",)), ("zpoint_refused_versions_total", ()), ("zpoint_swaps_total", ()))
    assert [exported[key] for key in zeros] == [0, 0, 0]  # before the first one
    assert not [name for name, _ in exported if name.endswith("_created")]


def test_a_replaced_version_is_exported_as_0(exported: Series):
    metrics = EndpointMetrics("replica-1")
    exporter = RayExporter(metrics)
    metrics.set_served_version("champion", "zpoint", "1", swap=False)
    exporter.export()
    metrics.set_served_version("champion", "zpoint", "2", swap=True)
    exporter.export()
    assert exported["zpoint_model", ("champion", "zpoint", "1")] == 0
    assert exported["zpoint_model", ("champion", "zpoint", "2")] == 1


def test_the_export_goes_on_after_errors_and_logs_the_first_of_each_outage(monkeypatch, caplog):
    results = [OSError("lost"), OSError("lost"), None, OSError("lost again"), KeyboardInterrupt()]
    exporter = RayExporter(EndpointMetrics("replica-1"))

    def export() -> None:
        if (result := results.pop(0)) is not None:
            raise result

    monkeypatch.setattr(exporter, "export", export)
    monkeypatch.setattr("serving.runtime.metrics.EXPORT_INTERVAL_S", 0)
    with pytest.raises(KeyboardInterrupt):
        exporter.run()
    assert [record.args[0].args[0] for record in caplog.records] == ["lost", "lost again"]


def test_the_exporters_of_live_nodes_that_export_are_named(monkeypatch):
    nodes = [("127.0.0.1", 8080, True), ("10.0.0.2", 39549, True), ("10.0.0.3", -1, True), ("10.0.0.4", 8080, False)]
    keys = ("NodeManagerAddress", "MetricsExportPort", "Alive")
    monkeypatch.setattr("ray.nodes", lambda: [dict(zip(keys, node, strict=True)) for node in nodes])
    assert exporter_urls() == ["http://127.0.0.1:8080/metrics", "http://10.0.0.2:39549/metrics"]
