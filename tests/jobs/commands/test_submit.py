"""Ray Jobs against a head node of our own, started and ended here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from cluster.ray_connection import ray_api_address, runtime_env
from jobs.commands.submit import _client, job_logs, list_jobs, stop_job, submit


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Free ones for the head node: its own, its dashboard's, and three that it wants too."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


@pytest.fixture(scope="module")
def head(session_environment: None, ports: list[int]) -> Iterator[str]:
    """The dashboard's URL of a `ray start --head` with its own ports and folder."""
    folder = tempfile.mkdtemp(prefix="zray", dir="/tmp")  # short: the paths of sockets have a limit
    options = {
        "port": ports[0], "dashboard-port": ports[1], "ray-client-server-port": ports[2],
        "dashboard-agent-listen-port": ports[3], "dashboard-agent-grpc-port": ports[4],
        "dashboard-host": "127.0.0.1", "num-cpus": 2, "temp-dir": folder, "object-store-memory": 200_000_000,
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--{name}={value}" for name, value in options.items()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    url = f"http://127.0.0.1:{ports[1]}"
    try:
        for _ in range(300):
            assert process.poll() is None, f"ray start ended with status {process.returncode}"
            try:
                urlopen(f"{url}/api/version", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # `ray start` now and then waits 30 s for a process that has ended
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("argv", [[], ["serve"], ["doctor"], ["rm", "-rf"]])
def test_what_is_no_job_is_refused(argv: list[str]):
    with pytest.raises(ValueError, match="submit takes ingest, train, tune, study, claims, promote, not"):
        submit(argv)


def test_a_missing_recipe_file_is_refused():
    with pytest.raises(ValueError, match=r"no recipe at mine\.yaml"):
        submit(["train", "mine.yaml"])


def test_an_address_where_nothing_answers_is_said_soon(start_moto, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        quiet = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for address in ("http://127.0.0.1:1", "127.0.0.1:1", quiet, "ray://127.0.0.1:1", start_moto()):
            monkeypatch.setenv("RAY_ADDRESS", address)
            began = time.monotonic()
            with pytest.raises(ValueError, match=r"no Ray|takes http://host:8265") as caught:
                list_jobs()
            assert address in str(caught.value)
            assert time.monotonic() - began < 10


@pytest.mark.ray
def test_a_job_runs_where_it_was_submitted_and_brings_its_data(head: str, capfd: pytest.CaptureFixture[str]):
    argv = ["ingest", "generated", "--to", "faces here", "--limit", "32", "--size", "32"]
    result = submit(argv, head, wait=True)
    assert (result["status"], result["exit_status"]) == ("SUCCEEDED", 0), capfd.readouterr().err
    assert Path("faces here").is_dir()
    assert "32/32 images" in job_logs(result["id"], head)
    assert "32/32 images" in capfd.readouterr().err
    assert list_jobs(head)[0]["id"] == result["id"]
    assert list_jobs(head)[0]["entrypoint"] == result["command"]


@pytest.mark.ray
def test_a_recipe_file_travels_and_a_users_mistake_keeps_its_status(head: str):
    Path("my recipe.yaml").write_text("nonsense: 1\n")
    result = submit(["train", "my recipe.yaml"], head, wait=True)
    assert (result["status"], result["exit_status"]) == ("FAILED", 2)
    assert "nonsense" in result["message"]


@pytest.mark.ray
def test_our_code_travels_to_the_entry_point_and_to_the_workers(head: str, tmp_path: Path):
    code = (
        "from cluster.ray_connection import connect; import aecore, ray; connect(); print('driver', aecore.__file__);"
        "where = ray.remote(lambda: __import__('aecore').__file__); print('worker', ray.get(where.remote()))"
    )
    client, _ = _client(head)
    job = client.submit_job(
        entrypoint=f'{sys.executable} -P -c "{code}"', runtime_env={**runtime_env(), "working_dir": str(tmp_path)}
    )
    log = job_logs(job, head, follow=True)
    for who in ("driver", "worker"):
        line = next(line for line in log.splitlines() if line.startswith(who))
        assert "_ray_pkg_" in line


@pytest.mark.ray
def test_a_process_joins_by_the_heads_own_address(head: str, ports: list[int], tmp_path: Path):
    address = f"127.0.0.1:{ports[0]}"
    assert list_jobs(address) == list_jobs(head)
    code = (
        "from cluster.ray_connection import connect; connect(); import ray, os;"
        "told = ('ZPOINT_HOME', 'AWS_REGION', 'AWS_SECRET_ACCESS_KEY');"
        "task = ray.remote(lambda: (__import__('aecore').__file__, *map(os.environ.get, told)));"
        "print(ray.get_runtime_context().gcs_address, *ray.get(task.remote()))"
    )
    secret = {"AWS_SECRET_ACCESS_KEY": "not-for-all", "AWS_REGION": "eu-far-9"}
    environment = {**os.environ, **secret, "RAY_ADDRESS": address, "ZPOINT_HOME": "here"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    where, code_file, home, region, key = done.stdout.split()
    assert where == address
    assert "_ray_pkg_" in code_file
    assert home == str(tmp_path / "here")
    assert done.stderr == ""
    assert (region, key) == ("eu-far-9", "not-for-all")
    shown = [
        urlopen(f"{head}/api/{what}").read() for what in ("v0/runtime_envs?detail=1", "v0/tasks?detail=1", "jobs/")
    ]
    assert b"eu-far-9" in b"".join(shown)  # it is where the rest of the environment is told
    assert b"not-for-all" not in b"".join(shown)


@pytest.mark.ray
def test_a_job_can_be_stopped(head: str):
    client, _ = _client(head)
    job = client.submit_job(entrypoint="echo begun; sleep 100")
    while "begun" not in job_logs(job, head):
        time.sleep(0.2)
    follower = threading.Thread(target=job_logs, args=(job, head, True))
    follower.start()
    assert stop_job(job, head) == {"id": job, "status": "STOPPED"}
    follower.join(20)
    assert not follower.is_alive()
    assert stop_job(job, head)["status"] == "STOPPED"  # again: nothing happens


@pytest.mark.ray
def test_an_unknown_job_is_named(head: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # --address goes before it
    for call in (job_logs, stop_job):
        with pytest.raises(ValueError, match="no job 'nosuch' at"):
            call("nosuch", head)
    with pytest.raises(ValueError, match="no job 'nosuch' at"):
        job_logs("nosuch", head, follow=True)


def test_two_threads_that_ask_leave_no_address_behind():
    entered = threading.Event()

    def ask() -> None:
        with ray_api_address("http://second"):
            entered.set()
            first_left.wait(10)

    first_left, second = threading.Event(), threading.Thread(target=ask)
    with ray_api_address("http://first"):
        second.start()
        entered.wait(0.3)
        assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://first"
    first_left.set()
    second.join()
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
