"""The checks of the reports that a cluster's nodes give; tests/hosts has those of a real cluster."""

from typing import Any

import pytest

from jobs.commands import cluster_doctor
from jobs.commands.cluster_doctor import check_reports, doctor_cluster, probe_node


def report(host: str, **changes: Any) -> dict[str, Any]:
    versions = {"Python": "3.11.7", "torch": "2.14.0"} | changes.pop("versions", {})
    healthy = {
        "host": host, "clock_s": 1.5, "versions": versions, "name_address": "10.0.0.5", "node_address": "10.0.0.5",
        "gpus": [], "driver": "none", "store": "", "mlflow": "", "cache": "/cache", "cache_error": "",
        "cache_free_bytes": 5e11, "cache_mb_per_s": 900.0,
    }  # fmt: skip
    return healthy | changes


def test_equal_healthy_nodes_are_in_order():
    checks = check_reports([report("w1"), report("w2")])
    assert {check.ok for check in checks} == {True}
    assert [check.mend for check in checks if check.mend] == []


@pytest.mark.parametrize(
    ("changes", "name", "ok", "text"),
    [
        ({"versions": {"torch": "2.13.0"}}, "torch", False, "2.14.0 on w1; 2.13.0 on w2"),
        ({"store": "no access to s3://b"}, "store", False, "w2: no access to s3://b"),
        ({"mlflow": "refused"}, "mlflow", False, "w2: refused"),
        ({"cache_error": "Read-only"}, "cache", False, "w2: Read-only"),
        ({"cache_mb_per_s": 3.0}, "cache", None, "w2 500.0 GB free, 3 MB/s"),
        ({"cache_mb_per_s": None}, "cache", None, "w2 500.0 GB free, 0 MB/s"),
        ({"clock_s": -600.0}, "clocks", False, "w2 -600 s"),
        ({"clock_s": 600.0}, "clocks", False, "w2 +600 s"),
        ({"name_address": "127.0.1.1"}, "names", None, "w2 is 127.0.1.1, not 10.0.0.5"),
    ],
)
def test_the_node_that_differs_is_named_with_a_fix(changes: dict[str, Any], name: str, ok: bool | None, text: str):
    checks = check_reports([report("w1"), report("w2", **changes)])
    [check] = [check for check in checks if check.ok is not True]
    assert (check.name, check.ok) == (name, ok)
    assert text in check.what
    assert check.mend


def test_a_node_without_an_answer_is_named():
    [check] = [check for check in check_reports([report("w1")], ["10.0.0.7"]) if not check.ok]
    assert "10.0.0.7" in check.what


def test_without_a_cluster_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="set RAY_ADDRESS"):
        doctor_cluster()


@pytest.mark.usefixtures("tracking")
def test_the_report_of_this_machine_has_no_error():
    result = probe_node({}, cluster_doctor.time.time())
    assert (result["store"], result["mlflow"], result["cache_error"]) == ("", "", "")
    assert result["cache_mb_per_s"] > 0
    assert 0 <= result["clock_s"] < 60
    assert {"Python", "Ray", "torch", "zpoint"} <= result["versions"].keys()


def test_bytes_are_received_and_acknowledged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    assert cluster_doctor._send(cluster_doctor._Sink().listen(), 1 << 22) > 0
