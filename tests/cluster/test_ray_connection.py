import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import ray_connection
from cluster.settings import exported_env


@pytest.fixture
def port():
    """A port that takes connections and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


def test_an_address_where_no_ray_answers_is_said_soon(port: int, start_moto: Callable[..., str], monkeypatch):
    monkeypatch.setattr(ray_connection, "ANSWER_SECONDS", 2)
    closed = "127.0.0.1:1"
    for address in (
        closed,
        f"127.0.0.1:{port}",
        start_moto().removeprefix("http://"),
        "no.such.host.invalid:6379",
    ):
        began = time.monotonic()
        with pytest.raises(ValueError, match=f"no Ray answers at RAY_ADDRESS={address}"):
            ray_connection._join(address)
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "somewhere", "host:"])
def test_an_address_of_another_kind_is_refused(address: str):
    with pytest.raises(ValueError, match=r"host:6379|host:port"):
        ray_connection._join(address)


def test_what_travels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("ZPOINT_HOME", "rel")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("ZPOINT_TOKEN", "secret")
    values = ray_connection.runtime_env()["env_vars"]
    assert values == exported_env()
    assert values["ZPOINT_HOME"] == str(Path("rel").absolute())
    assert values["AWS_REGION"] == "eu-west-1"
    assert "ZPOINT_TOKEN" not in values
    assert all((Path(folder) / "__init__.py").is_file() for folder in ray_connection.runtime_env()["py_modules"])


def test_the_local_ray_has_our_cpus_and_listens_on_loopback_only(ray_cluster):
    import ray

    ray_connection.connect()  # does nothing: there is one
    assert ray.cluster_resources()["CPU"] == 2
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert ray_connection.has_gpu() == bool(ray.cluster_resources().get("GPU"))


def test_the_local_ray_seldom_measures_itself(ray_cluster):
    """By names of Ray's, which its next release may change unsaid: then the endpoint would answer late each 5 s."""
    code = """
from ray.dashboard import consts
from ray.dashboard.modules.reporter import reporter_consts
print(consts.METRICS_RECORD_INTERVAL_S, reporter_consts.REPORTER_UPDATE_INTERVAL_MS)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["86400", "60000"]


@pytest.mark.ray
def test_a_short_life_of_ray_prints_nothing_and_its_workers_are_as_nice_as_asked():
    code = (
        "from cluster.ray_connection import connect, disconnect; connect(niceness=3); import os, ray;"
        "assert ray.get(ray.remote(num_cpus=1)(lambda: os.nice(0)).remote()) == os.nice(0) + 3; disconnect()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
