"""Ray Jobs on a head node that this module starts and stops."""

import asyncio
import gc
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import BadStatusLine
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from ray.exceptions import AuthenticationError, RpcError

from cluster import dashboard
from cluster.ray_compat import ray_api_address
from cluster.ray_connection import runtime_env
from cluster.settings import EXPORTED_VARIABLES
from jobs.commands import submit as submit_module
from jobs.commands.printing import format_jobs
from jobs.commands.submit import _connect, job_logs, list_jobs, stop_job, submit
from tests.conftest import free_port, wait_until_it_answers

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Free ports for the head node: GCS, dashboard, client server, agent HTTP, agent gRPC."""
    ports: set[int] = set()
    while len(ports) < 5:
        ports.add(free_port())
    return [*ports]


@pytest.fixture(scope="module")
def head(session_environment: None, ports: list[int]) -> Iterator[str]:
    """Start `ray start --head` with ports and a folder of its own; yield the URL of its dashboard."""
    folder = tempfile.mkdtemp(prefix="zray", dir="/tmp")  # short: the length of a socket's path is limited
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
        wait_until_it_answers(f"{url}/api/version", process, timeout_s=180)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # `ray start` sometimes waits 30 s for a process that has exited
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("argv", [[], ["serve"], ["doctor"], ["rm", "-rf"]])
def test_an_unknown_job_kind_is_refused(argv: list[str]):
    with pytest.raises(ValueError, match="submit takes ingest, train, tune, study, claims, promote, not"):
        submit(argv)


def test_a_missing_recipe_file_is_refused():
    with pytest.raises(ValueError, match=r"no recipe at mine\.yaml"):
        submit(["train", "mine.yaml"])


@pytest.mark.parametrize(
    ("on_this_machine", "command"),
    [
        (True, "cd {folder} && exec {python} -P -m jobs.cli train \"$uploaded\"/'my recipe.yaml' 'name=a b; rm'"),
        (False, "exec python -P -m jobs.cli train \"$uploaded\"/'my recipe.yaml' 'name=a b; rm'"),
    ],
)
def test_entrypoint_quotes_its_words_and_uploads_the_recipe(tmp_path: Path, on_this_machine: bool, command: str):
    Path("sub").mkdir()
    recipe = Path("sub/my recipe.yaml")
    recipe.write_text("name: mine")
    argv = ["train", str(recipe), "name=a b; rm"]
    entrypoint = submit_module._make_entrypoint(argv, tmp_path, on_this_machine, secrets={})
    folder, python = shlex.quote(os.getcwd()), shlex.quote(sys.executable)
    assert entrypoint == f"uploaded=$PWD; {command.format(folder=folder, python=python)}"
    assert (tmp_path / "my recipe.yaml").read_text() == "name: mine"


def test_secrets_go_to_a_file_that_the_command_reads_and_deletes(tmp_path: Path):
    text = "it's $HOME"
    entrypoint = submit_module._make_entrypoint(["doctor"], tmp_path, False, secrets={"MLFLOW_TRACKING_TOKEN": text})
    assert text not in entrypoint
    assert [file.stat().st_mode & 0o777 for file in tmp_path.iterdir()] == [0o600]  # kept by Ray's zip
    command = entrypoint.partition("exec ")[0] + 'printf %s "$MLFLOW_TRACKING_TOKEN"'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True).stdout == text
    assert not list(tmp_path.iterdir())


def test_workers_get_the_secrets_that_the_option_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The driver passes on what `exported_env` returns."""
    secrets = {"HF_TOKEN": "not for all", "MLFLOW_TRACKING_TOKEN": "t"}
    entrypoint = submit_module._make_entrypoint(["doctor"], tmp_path, False, secrets)
    code = "import json; from cluster.settings import exported_env; print(json.dumps(exported_env()))"
    command = entrypoint.partition("exec ")[0] + shlex.join([sys.executable, "-c", code])
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    process = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert secrets.items() <= json.loads(process.stdout).items()


def test_job_gets_the_settings_and_on_another_machine_no_default_folder_of_this_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in EXPORTED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cluster.ray_connection.code_commit", lambda: "")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    monkeypatch.setenv("ZPOINT_TOKEN", "not-for-jobs")
    settings = {"AWS_SESSION_TOKEN": "session", "RAY_JOB_STOP_WAIT_TIME_S": "15"}
    home = {"ZPOINT_HOME": str(Path(".zpoint").absolute())}
    assert submit_module._job_runtime_env(True)["env_vars"] == settings | home
    assert capsys.readouterr().err == ""
    assert submit_module._job_runtime_env(False)["env_vars"] == settings
    assert "results stay in the job's folder on the cluster" in capsys.readouterr().err
    monkeypatch.setenv("ZPOINT_STORE", "s3://bucket/zpoint")
    assert submit_module._job_runtime_env(False)["env_vars"] == settings | {"ZPOINT_STORE": "s3://bucket/zpoint"}
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ZPOINT_HOME", "/shared")
    assert submit_module._job_runtime_env(False)["env_vars"]["ZPOINT_HOME"] == "/shared"


@pytest.mark.parametrize(
    ("host", "listening", "on_this_machine"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("head", True, False)],
)
def test_a_job_starts_in_the_submitters_folder_unless_loopback_is_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, host: str, listening: bool, on_this_machine: bool
):
    monkeypatch.delenv("ZPOINT_HOME")
    sent: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="session_", dir="/tmp") as session, socket.socket(socket.AF_UNIX) as raylet:
        if listening:
            raylet.bind(f"{session}/raylet")
        version = SimpleNamespace(json=lambda: {"session_name": Path(session).name})
        client = SimpleNamespace(submit_job=lambda **options: sent.update(options), _do_request=lambda *_: version)
        monkeypatch.setattr(submit_module, "_connect", lambda address: (client, f"http://{host}:8265"))
        submit(["promote", "run"])
    assert (f"cd {os.getcwd()} && " in sent["entrypoint"]) is on_this_machine
    assert ("ZPOINT_HOME" in sent["runtime_env"]["env_vars"]) is on_this_machine


def make_info(job_id: str, start_s: int, status: str = "SUCCEEDED", exit_code: int | None = 0) -> SimpleNamespace:
    """Return a fake of Ray's JobDetails, of a job of 2.5 s."""
    return SimpleNamespace(
        submission_id=job_id, status=SimpleNamespace(value=status), start_time=start_s * 1000,
        end_time=start_s * 1000 + 2500, metadata={"command": "zpoint train x.yaml"}, entrypoint="exec python",
        message="a trace\nthe cause", driver_exit_code=exit_code, error_type=None, job_id=f"{start_s:02}000000",
    )  # fmt: skip


def test_jobs_are_listed_newest_first(monkeypatch: pytest.MonkeyPatch):
    infos = [make_info("old", 100), make_info("new", 300), make_info("middle", 200), make_info("", 400)]
    client = SimpleNamespace(list_jobs=lambda: infos)  # the last one was not submitted: a driver on the cluster
    monkeypatch.setattr(submit_module, "_connect", lambda address: (client, "http://head:8265"))
    monkeypatch.setattr(submit_module, "fetch_actors", lambda client: [])
    jobs = list_jobs()
    assert [job["id"] for job in jobs] == ["new", "middle", "old"]
    assert (jobs[0]["seconds"], jobs[0]["entrypoint"]) == (2.5, "zpoint train x.yaml")
    assert (jobs[0]["status"], jobs[0]["message"]) == ("SUCCEEDED", "the cause")


def test_a_job_has_held_what_its_actors_required(monkeypatch: pytest.MonkeyPatch):
    def actor(job_id: str, start_s: float, end_s: float, **resources: float) -> dict[str, Any]:
        times = {"startTime": int(start_s * 1000), "endTime": int(end_s * 1000)}
        return {"jobId": job_id, "requiredResources": resources, **times}

    now_s = time.time()
    actors = [
        actor("10000000", 1, 3601, GPU=1.0, CPU=2.0), actor("10000000", 1, 1801, GPU=0.5),
        actor("10000000", now_s - 3600, 0, CPU=1.0),  # lives
        actor("10000000", 0, 0, CPU=9.0),  # has not started
        actor("20000000", 1, 3601, CPU=7.0),
    ]  # fmt: skip
    job = submit_module._describe(make_info("a", 10), actors)
    assert (job["gpu_hours"], job["core_hours"]) == (1.25, pytest.approx(3.0, abs=0.01))
    pending = make_info("a", 10, "PENDING")
    pending.job_id = None
    assert submit_module._describe(pending, actors)["core_hours"] == 0
    text = format_jobs({"jobs": [job, submit_module._describe(make_info("train-1129-101928-c846", 30, "FAILED"), [])]})
    first, command, second, _, message = text.splitlines()
    assert first.split()[:2] == ["a", "SUCCEEDED"]
    assert first.endswith("1.25 GPU hours")
    assert command == "  zpoint train x.yaml"
    assert second.endswith("0.00 core hours")
    assert message == "  the cause"
    assert max(len(first), len(second)) <= 80


@pytest.mark.parametrize(
    ("status", "exit_code", "exit_status"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_exit_status_of_an_awaited_job(monkeypatch, status: str, exit_code: int | None, exit_status: int):
    final = make_info("a", 1, status, exit_code)
    log = ['line\n{"run": ', '"two"}\n']
    connections = Connections([log, log], [make_info("a", 1, "RUNNING"), final, final])
    connections.install(monkeypatch)
    result = submit_module._wait(connections, "http://head", "a")  # the log may end before the job
    assert (result["exit_status"], result["status"], result["result"]) == (exit_status, status, {"run": "two"})


@pytest.mark.parametrize("log", ["", "\n", "run  two\n", "{not json}\n", '{"run": "two"}\nzpoint: failed: no space\n'])
def test_a_log_without_a_result_has_none(log: str):
    assert submit_module._parse_result(log) is None


# As Ray's client raises them; the text of the second one is a trace of the dashboard.
UNKNOWN_JOB = RuntimeError("Request failed with status code 404: Job a does not exist.")
SERVER_ERROR = RuntimeError("Request failed with status code 500: line 404, in get\nRuntimeError: x does not exist.")


class Connections:
    """A fake of Ray's client: each connection to the log gives chunks, then ends or raises its last one.

    `infos`: each an answer to `get_job_info`, or the error that it raises.
    """

    def __init__(self, logs: list[list[str | Exception]], infos: list[SimpleNamespace | Exception]) -> None:
        self.logs, self.infos = logs, infos

    async def tail_job_logs(self, job_id: str):
        for chunk in self.logs.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def get_job_info(self, job_id: str):
        info = self.infos.pop(0)
        if isinstance(info, Exception):
            raise info
        return info

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit_module, "check_answers", lambda url: None)
        monkeypatch.setattr(submit_module, "fetch_actors", lambda client: [])
        monkeypatch.setattr(submit_module.time, "sleep", lambda seconds: None)


def test_a_broken_connection_is_made_again_and_no_line_is_printed_twice(monkeypatch: pytest.MonkeyPatch, capsys):
    broken = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    final = make_info("a", 1)
    logs = [["one\ntw", broken], ["one\n", "two\nthree\n", ConnectionError()], ["one\ntwo\nthree\n", "four\n"]]
    infos = [ConnectionError("refused"), make_info("a", 1, "RUNNING"), make_info("a", 1, "RUNNING"), final, final]
    connections = Connections(logs, infos)
    connections.install(monkeypatch)
    assert submit_module._wait(connections, "http://head", "a")["exit_status"] == 0
    err = capsys.readouterr().err
    job_log = "".join(line + "\n" for line in ("one", "two", "three", "four"))
    said = [line for line in err.splitlines() if "zpoint: " in line]
    assert [line.partition("zpoint: ")[2].split(";")[0] for line in said] == [
        "lost the connection to http://head (refused)", "connected again",
    ]  # fmt: skip
    assert "job 'a' is RUNNING" in said[1]
    assert "".join(line.partition("zpoint: ")[0] for line in err.splitlines()) == job_log.replace("\n", "")


def test_a_silent_connection_to_a_dashboard_that_is_away_ends_without_a_pending_task(monkeypatch, caplog):
    async def wait_forever(job_id: str):
        yield "one\n"
        await asyncio.get_running_loop().create_future()

    def refuse(url: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(submit_module, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(submit_module, "check_answers", refuse)
    chunks = submit_module._tail(SimpleNamespace(tail_job_logs=wait_forever), "http://head", "a")
    assert next(chunks) == "one\n"
    with pytest.raises(OSError, match="no route"):
        next(chunks)
    gc.collect()
    assert caplog.messages == []  # such as "Task was destroyed but it is pending!"


def test_a_cluster_that_stays_away_ends_the_wait_with_what_is_known(monkeypatch: pytest.MonkeyPatch):
    connections = Connections([[]], [])
    connections.install(monkeypatch)
    monkeypatch.setattr(submit_module, "RECONNECT_TIMEOUT_S", 0)

    def refuse(url: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(submit_module, "check_answers", refuse)
    with pytest.raises(RuntimeError, match=r"no answer from http://head .* `zpoint logs a --follow`"):
        submit_module._wait(connections, "http://head", "a")


def test_one_answer_that_is_not_http_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch, capsys):
    """As of a proxy or a tunnel that restarts."""
    connections = Connections([[]], [make_info("a", 1), make_info("a", 1)])
    connections.install(monkeypatch)
    monkeypatch.setattr(submit_module, "check_answers", dashboard.check_answers)
    answers = [BadStatusLine("\0\0\x12"), io.BytesIO(), io.BytesIO()]

    def open_url(url: str, timeout: float) -> io.BytesIO:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(dashboard, "urlopen", open_url)
    assert submit_module._wait(connections, "http://head", "a")["status"] == "SUCCEEDED"
    assert "lost the connection to http://head (no HTTP answer: BadStatusLine)" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["died", "unknown"])
def test_a_job_whose_driver_was_lost_is_submitted_again(monkeypatch: pytest.MonkeyPatch, capsys, end: str):
    """Its node died with it, or the head was restarted and knows no jobs."""
    died = make_info("a", 1, "FAILED", None)
    died.error_type = "JOB_SUPERVISOR_ACTOR_DIED"
    lost = [died, died] if end == "died" else [UNKNOWN_JOB]
    connections = Connections([[], []], [*lost, make_info("b", 1), make_info("b", 1)])
    connections.install(monkeypatch)
    sent = []
    connections.submit_job = lambda **options: sent.append(options)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(submit_module, "_connect", lambda address: (connections, "http://head"))
    result = submit(["promote", "run"], wait=True, cpus=1, variables=["COLOUR=red"])
    assert result["exit_status"] == 0
    first, second = sent
    assert first["submission_id"] != second["submission_id"]
    assert (first["entrypoint"], first["entrypoint_num_cpus"]) == (second["entrypoint"], 1)
    assert second["runtime_env"]["env_vars"]["COLOUR"] == "red"
    assert f"{first['submission_id']} goes on as {second['submission_id']}" in capsys.readouterr().err


def test_a_job_is_not_lost_by_an_error_of_the_dashboard(monkeypatch: pytest.MonkeyPatch):
    """Submitted again it would run twice."""
    connections = Connections([[]], [SERVER_ERROR, make_info("a", 1), make_info("a", 1)])
    connections.install(monkeypatch)
    assert submit_module._wait(connections, "http://head", "a")["status"] == "SUCCEEDED"


@pytest.mark.parametrize(("error", "expected"), [(UNKNOWN_JOB, ValueError), (SERVER_ERROR, RuntimeError)])
def test_only_an_unknown_job_is_a_users_mistake(monkeypatch, error: RuntimeError, expected: type[Exception]):
    monkeypatch.setattr(submit_module, "_connect", lambda address: (Connections([], [error]), "http://head"))
    with pytest.raises(expected):
        job_logs("a")


def test_a_job_that_is_lost_each_time_is_given_up(monkeypatch: pytest.MonkeyPatch):
    connections = Connections([[] for _ in range(9)], [UNKNOWN_JOB for _ in range(9)])
    connections.install(monkeypatch)
    sent = []
    connections.submit_job = lambda **options: sent.append(options)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(submit_module, "_connect", lambda address: (connections, "http://head"))
    with pytest.raises(submit_module.LostJobError, match="its head was restarted"):
        submit(["promote", "run"], wait=True)
    assert len(sent) == 4


def test_variables_of_the_job_come_from_here_or_from_the_option(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLOUR", "red")
    assert submit_module._parse_variables(["COLOUR", "SIZE=a=b", "EMPTY="]) == {
        "COLOUR": "red", "SIZE": "a=b", "EMPTY": "",
    }  # fmt: skip
    for wrong, fix in {"NOSUCH": "not set here", "2x=1": "takes NAME=VALUE", "=x": "takes NAME=VALUE"}.items():
        with pytest.raises(ValueError, match=fix):
            submit_module._parse_variables([wrong])


def test_an_address_without_a_dashboard_fails_after_the_timeout(start_moto, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dashboard, "CONNECT_TIMEOUT_S", 1)  # Ray's own client would wait for minutes
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for address in ("http://127.0.0.1:1", "127.0.0.1:1", silent_url, "ray://127.0.0.1:1", start_moto()):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(ValueError, match=r"no Ray|take http://host:8265") as error:
                list_jobs()
            assert address in str(error.value)


def test_a_port_that_does_not_speak_http_is_named_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"\0\0\x12\4\0\0\0\0\0")  # HTTP/2, as a Ray head's port 6379

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            ValueError, match=rf"no Ray dashboard answers at {url}: no HTTP.*; give the dashboard's URL"
        ):
            list_jobs(url)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("8266", "no Ray dashboard answers at http://127.0.0.1:8266 (from 127.0.0.1:6380)"),
        ("", "has no dashboard"),
        (AuthenticationError("wrong"), "refuses the token"),
        (RpcError("Method not found!"), "no Ray head answers at 127.0.0.1:6380: Method not found!"),
    ],
)
def test_the_port_of_the_dashboard_is_the_one_that_the_head_reports(monkeypatch, answer: str | Exception, message: str):
    def fetch(address: str, timeout_s: float) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def refuse(url: str) -> None:
        raise OSError("refused")

    monkeypatch.setattr(dashboard, "check_reachable", lambda address: None)
    monkeypatch.setattr(dashboard, "fetch_dashboard_port", fetch)
    monkeypatch.setattr(dashboard, "check_answers", refuse)
    with pytest.raises(ValueError, match=re.escape(message)):
        list_jobs("127.0.0.1:6380")


@pytest.mark.parametrize("url", ["http://head:abc", "http://head:123456", "http://[head", "http://", "ftp://head"])
def test_a_url_that_names_no_host_and_port_is_refused(url: str):
    with pytest.raises(ValueError, match=rf"take http://host:8265 or host:6379, not '{re.escape(url)}'"):
        list_jobs(url)


def test_the_secrets_are_in_neither_the_command_nor_the_names_that_are_printed(tmp_path: Path, capsys):
    secrets = {"MLFLOW_TRACKING_PASSWORD": 'it\'s "so" $HOME', "AWS_SECRET_ACCESS_KEY": "k"}
    entrypoint = submit_module._make_entrypoint(["train", "mnist-z2"], tmp_path, True, secrets)
    assert "k" not in entrypoint.split("secrets.sh")[0]
    assert not any(text in entrypoint for text in ("so", "it's"))
    script = entrypoint.partition("exec")[0].replace(f"cd {os.getcwd()}", "true") + "env"
    process = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {f"{name}={text}" for name, text in secrets.items()} <= set(process.stdout.splitlines())
    assert list(tmp_path.iterdir()) == []
    submit_module._print_forwarded({"MLFLOW_TRACKING_URI": "http://h", "RAY_JOB_STOP_WAIT_TIME_S": "1"}, secrets)
    assert capsys.readouterr().err == (
        "zpoint: the job gets MLFLOW_TRACKING_URI; hidden from Ray's dashboard:\n"
        "  AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD\n"
    )


@pytest.mark.ray
def test_a_job_gets_mlflows_variables_and_the_dashboard_no_secret(head: str, monkeypatch: pytest.MonkeyPatch, capfd):
    """The job fails at its tracking server, whose URI it names without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:not-for-all@127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all-either")
    result = submit(["promote", "0" * 32], head, wait=True)
    assert result["status"] == "FAILED"
    assert "127.0.0.1" in job_logs(result["id"], head)
    err = capfd.readouterr().err
    assert "hidden from Ray's dashboard: AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_URI" in " ".join(err.split())
    routes = ("api/v0/runtime_envs?detail=1", "api/v0/tasks?detail=1", "api/jobs/", "api/v0/actors?detail=1")
    dashboard = b"".join(urlopen(f"{head}/{route}").read() for route in routes)
    assert b"not-for-all" not in dashboard + err.encode()


@pytest.mark.ray
def test_a_job_runs_in_the_submitters_folder(head: str, capfd: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all")  # so that the job's driver hides it from Ray
    argv = ["ingest", "generated", "--to", "faces here", "--limit", "32", "--size", "32"]
    result = submit(argv, head, wait=True)
    assert (result["status"], result["exit_status"]) == ("SUCCEEDED", 0), capfd.readouterr().err
    assert Path("faces here").is_dir()
    assert "32/32 images" in job_logs(result["id"], head)
    assert "32/32 images" in capfd.readouterr().err
    assert list_jobs(head)[0]["id"] == result["id"]
    assert list_jobs(head)[0]["core_hours"] > 0
    assert list_jobs(head)[0]["entrypoint"] == result["command"]


@pytest.mark.ray
def test_a_recipe_file_is_uploaded_and_a_wrong_one_ends_in_status_2(head: str):
    Path("my recipe.yaml").write_text("nonsense: 1\n")
    result = submit(["train", "my recipe.yaml"], head, wait=True)
    assert (result["status"], result["exit_status"]) == ("FAILED", 2)
    assert "nonsense" in result["message"]


@pytest.mark.ray
def test_the_entrypoint_and_the_workers_run_the_submitters_code(head: str, tmp_path: Path):
    code = (
        "from cluster.ray_connection import connect; import aecore, ray; connect(); print('driver', aecore.__file__);"
        "task = ray.remote(lambda: __import__('aecore').__file__); print('worker', ray.get(task.remote()))"
    )
    client, _ = _connect(head)
    job_id = client.submit_job(
        entrypoint=f'{sys.executable} -P -c "{code}"', runtime_env={**runtime_env(), "working_dir": str(tmp_path)}
    )
    log = job_logs(job_id, head, follow=True)
    for process in ("driver", "worker"):
        line = next(line for line in log.splitlines() if line.startswith(process))
        assert "_ray_pkg_" in line


@pytest.mark.ray
def test_a_process_joins_the_head_and_its_workers_get_settings_but_show_no_keys(
    head: str, ports: list[int], tmp_path: Path
):
    address = f"127.0.0.1:{ports[0]}"
    code = (
        "from cluster.ray_connection import connect; connect(); import ray, os;"
        "names = ('ZPOINT_HOME', 'AWS_REGION', 'AWS_SECRET_ACCESS_KEY');"
        "task = ray.remote(lambda: (__import__('aecore').__file__, *map(os.environ.get, names)));"
        "print(ray.get_runtime_context().gcs_address, *ray.get(task.remote()))"
    )
    secret = {"AWS_SECRET_ACCESS_KEY": "not-for-all", "AWS_REGION": "eu-far-9"}
    environment = {**os.environ, **secret, "RAY_ADDRESS": address, "ZPOINT_HOME": "here"}
    command = [sys.executable, "-P", "-c", code]
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    joined_address, code_file, home, region, key = process.stdout.split()
    assert joined_address == address
    assert "_ray_pkg_" in code_file
    assert home == str(tmp_path / "here")
    assert process.stderr == ""
    assert (region, key) == ("eu-far-9", "not-for-all")
    routes = ("v0/runtime_envs?detail=1", "v0/tasks?detail=1", "jobs/")
    dashboard = b"".join(urlopen(f"{head}/api/{route}").read() for route in routes)
    assert b"eu-far-9" in dashboard  # these routes do show environment variables
    assert b"not-for-all" not in dashboard


@pytest.mark.ray
def test_the_address_of_the_head_leads_to_its_dashboard(head: str, ports: list[int]):
    assert list_jobs(f"127.0.0.1:{ports[0]}") == list_jobs(head)


@pytest.mark.parametrize(
    ("status", "hint"), [("PENDING", "as soon as a node takes it"), ("RUNNING", "`zpoint stop a` again")]
)
def test_a_stop_that_has_not_ended_the_job_says_why_and_fails(monkeypatch, capsys, status: str, hint: str):
    monkeypatch.setattr(submit_module, "STOP_TIMEOUT_S", -5)
    client = SimpleNamespace(stop_job=lambda job_id: True, get_job_status=lambda job_id: SimpleNamespace(value=status))
    monkeypatch.setattr(submit_module, "_connect", lambda address: (client, "http://head:8265"))
    assert stop_job("a") == {"id": "a", "status": status, "exit_status": 1}
    assert hint in capsys.readouterr().err


@pytest.mark.ray
def test_a_job_can_be_stopped(head: str, wait_until):
    client, _ = _connect(head)
    job_id = client.submit_job(entrypoint="echo begun; sleep 100")
    wait_until(lambda: "begun" in job_logs(job_id, head))
    follower = threading.Thread(target=job_logs, args=(job_id, head, True))
    follower.start()
    assert stop_job(job_id, head) == {"id": job_id, "status": "STOPPED"}
    follower.join(120)
    assert not follower.is_alive()
    assert stop_job(job_id, head)["status"] == "STOPPED"  # a second time it changes nothing


@pytest.mark.ray
def test_an_unknown_job_is_named(head: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # --address takes precedence
    for call in (job_logs, stop_job):
        with pytest.raises(ValueError, match="no job 'nosuch' at"):
            call("nosuch", head)
    with pytest.raises(ValueError, match="no job 'nosuch' at"):
        job_logs("nosuch", head, follow=True)


def test_two_threads_leave_no_api_address_behind():
    entered = threading.Event()

    def enter() -> None:
        with ray_api_address("http://second"):
            entered.set()
            first_left.wait(60)

    first_left, second = threading.Event(), threading.Thread(target=enter)
    with ray_api_address("http://first"):
        second.start()
        assert not entered.wait(0.3)
        assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://first"
    first_left.set()
    second.join()
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
