"""The checks of the reports that a cluster's nodes give; tests/hosts has those of a real cluster."""

import time
from typing import Any

import pytest

from jobs.commands import cluster_doctor
from jobs.commands.cluster_doctor import check_reports, doctor_cluster, probe_node


def report(host: str, **changes: Any) -> dict[str, Any]:
    versions = {"Python": "3.11.7", "torch": "2.14.0"} | changes.pop("versions", {})
    healthy = {
        "host": host, "clock_s": 0.0, "versions": versions, "interface": "eth0", "shm_free_bytes": 2e9,
        "gpus": [], "driver": "none", "store": "", "mlflow": "", "cache": "/cache", "cache_error": "",
        "cache_free_bytes": 5e11, "cache_mb_per_s": 900.0,
    }  # fmt: skip
    return healthy | changes


def test_equal_healthy_nodes_are_in_order():
    checks = check_reports([report("w1"), report("w2")])
    assert {check.ok for check in checks} == {True}
    assert [check.fix for check in checks if check.fix] == []


@pytest.mark.parametrize(
    ("changes", "name", "ok", "text"),
    [
        ({"versions": {"torch": "2.13.0"}}, "torch", False, "2.14.0 on w1; 2.13.0 on w2"),
        ({"store": "no access to s3://b"}, "store", False, "w2: no access to s3://b"),
        ({"mlflow": "refused"}, "mlflow", False, "w2: refused"),
        ({"cache_error": "Read-only"}, "cache", False, "w2: Read-only"),
        ({"cache_mb_per_s": 3.0}, "cache", None, "w2 500.0 GB free, 3 MB/s"),
        ({"cache_mb_per_s": None}, "cache", False, "w2 500.0 GB free, 0 MB/s"),
        ({"cache_free_bytes": 5e9}, "cache", None, "w2 5.0 GB free"),
        ({"cache_free_bytes": 5e7}, "cache", False, "w2 0.1 GB free"),
        ({"cache_free_bytes": None, "cache_mb_per_s": None}, "cache", False, "w2 0.0 GB free, 0 MB/s"),
        ({"shm_free_bytes": 6e7}, "shm", None, "w2 60 MB free in /dev/shm"),
        ({"clock_s": -600.0}, "clocks", False, "w2 -600 s"),
        ({"clock_s": 600.0}, "clocks", False, "w2 +600 s"),
        ({"interface": ""}, "ddp", None, "eth0 on w1; an unknown interface on w2"),
    ],
)
def test_the_node_that_differs_is_named_with_a_fix(changes: dict[str, Any], name: str, ok: bool | None, text: str):
    checks = check_reports([report("w1"), report("w2", **changes)])
    [check] = [check for check in checks if check.ok is not True]
    assert (check.name, check.ok) == (name, ok)
    assert text in check.finding
    assert check.fix


@pytest.mark.parametrize("offset_s", [-600.0, -1.0, 0.0, 1.0, 600.0])
def test_a_clock_is_off_by_at_least_what_the_way_cannot_explain(offset_s: float):
    """The task takes 30 s to start on the node, and 2 s to answer."""
    sent, arrived, finished, received = 1000.0, 1030.0 + offset_s, 1031.0 + offset_s, 1033.0
    assert cluster_doctor.clock_offset(sent, arrived, finished, received) == {600.0: 598.0, -600.0: -570.0}.get(
        offset_s, 0
    )


def test_a_node_without_an_answer_is_named():
    [check] = [check for check in check_reports([report("w1")], ["10.0.0.7"]) if not check.ok]
    assert "10.0.0.7" in check.finding


def test_without_a_cluster_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="set RAY_ADDRESS"):
        doctor_cluster()


@pytest.mark.usefixtures("tracking")
def test_the_report_of_this_machine_has_no_error():
    result = probe_node({}, time.time())
    assert (result["store"], result["mlflow"], result["cache_error"]) == ("", "", "")
    assert result["cache_mb_per_s"] > 0
    assert result["sent"] <= result["arrived"] <= result["finished"]
    assert cluster_doctor.clock_offset(result["sent"], result["arrived"], result["finished"], time.time()) == 0
    assert {"Python", "Ray", "torch", "zpoint"} <= result["versions"].keys()


def test_bytes_are_received_and_acknowledged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    assert cluster_doctor._send(cluster_doctor._Sink().listen(), 1 << 22) > 0
