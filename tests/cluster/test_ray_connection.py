import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from zipfile import ZipFile

import grpc
import pytest

from cluster import ray_compat, ray_connection
from cluster.settings import exported_env
from tests.sockets import descendants, listening_addresses

REPO = Path(__file__).parents[2]


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_an_address_without_a_ray_fails_within_seconds(silent_port: int, start_moto: Callable[..., str], monkeypatch):
    monkeypatch.setattr(ray_connection, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("`ray.init` itself retries for two minutes"))
    http_server = start_moto().removeprefix("http://")
    for address in ("127.0.0.1:1", f"127.0.0.1:{silent_port}", http_server, "no.such.host.invalid:6379"):
        with pytest.raises(ValueError, match=f"no Ray answers at RAY_ADDRESS={address}"):
            ray_connection._join(address)


def test_any_answer_of_a_grpc_server_counts_and_proxies_are_bypassed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server = grpc.server(ThreadPoolExecutor(1))  # without a health service: it answers UNIMPLEMENTED
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ray_connection.check_reachable(f"127.0.0.1:{port}")
    server.stop(None)


def test_with_tls_a_closed_port_fails_within_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with pytest.raises(ValueError, match="no Ray answers at"):
        ray_connection.check_reachable("127.0.0.1:1")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "somewhere", "host:"])
def test_an_address_of_another_kind_is_refused(address: str):
    with pytest.raises(ValueError, match=r"host:6379|host:port"):
        ray_connection._join(address)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True),
     ("10.0.0.1", False), ("head", False), ("", False)],
)  # fmt: skip
def test_which_hosts_are_loopback(host: str, loopback: bool):
    assert ray_connection.is_loopback(host) is loopback


def test_the_runtime_env_exports_code_and_settings_but_no_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_COMMIT", "abc")
    monkeypatch.setenv("ZPOINT_HOME", "relative")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("ZPOINT_TOKEN", "secret")
    runtime_env = ray_connection.runtime_env()
    env_vars = runtime_env["env_vars"]
    assert env_vars == exported_env() | {"ZPOINT_COMMIT": "abc"}
    assert env_vars["ZPOINT_HOME"] == str(Path("relative").absolute())
    assert env_vars["AWS_REGION"] == "eu-west-1"
    assert "ZPOINT_TOKEN" not in env_vars
    assert all((Path(folder) / "__init__.py").is_file() for folder in runtime_env["py_modules"])


def test_the_uploaded_code_has_nothing_of_the_folder_of_secrets(tmp_path: Path):
    """`cluster/deploy/secrets.sh` writes below cluster/deploy; Ray heeds ignore files in a module's own folder only."""
    from ray._private.runtime_env.packaging import create_package

    for folder in map(Path, ray_connection.runtime_env()["py_modules"]):
        package = tmp_path / f"{folder.name}.zip"
        create_package(str(folder), package, include_gitignore=False, include_parent_dir=True)
        names = ZipFile(package).namelist()
        assert {str(file.relative_to(folder.parent)) for file in folder.rglob("*.py")} <= set(names)
        assert [name for name in names if name.startswith("cluster/deploy")] == []


def test_workers_get_the_secrets_by_a_hook_that_ray_does_not_show(monkeypatch: pytest.MonkeyPatch):
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "session"}
    environment = {"py_modules": ["a"], "env_vars": {"AWS_REGION": "eu-west-1", **keys}}
    hidden = ray_connection._hide_secrets(environment)
    set_keys = hidden.pop("worker_process_setup_hook")
    assert hidden == {"py_modules": ["a"], "env_vars": {"AWS_REGION": "eu-west-1"}}
    for name in keys:
        monkeypatch.setenv(name, "")
    set_keys()
    assert {name: os.environ[name] for name in keys} == keys
    without_keys = {"env_vars": {"AWS_REGION": "eu-west-1"}}
    assert ray_connection._hide_secrets(without_keys) == without_keys


@pytest.fixture
def init_options(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Replace `ray.init` by a function that appends its arguments to the list; no Ray answers or starts."""
    import ray

    calls: list[dict] = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", list)
    for name in ("use_loopback", "slow_down_metrics", "log_ray_messages"):
        monkeypatch.setattr(ray_connection.ray_compat, name, lambda *_: None)
    monkeypatch.setattr(ray_connection, "check_reachable", lambda address: None)
    monkeypatch.setenv("RAY_worker_niceness", "")  # restored after the test
    return calls


@pytest.mark.parametrize(
    ("address", "tls", "message"),
    [
        ("127.0.0.1:6379", "0", "answers, but perhaps refuses the token"),
        ("127.0.0.1:6379", "1", "no Ray answers at RAY_ADDRESS=127.0.0.1:6379"),  # only its port has answered
        ("auto", "0", "no Ray answers at RAY_ADDRESS=auto"),
    ],
)
def test_a_cluster_that_answers_and_lets_nobody_in_may_refuse_the_token(
    init_options: list[dict], monkeypatch: pytest.MonkeyPatch, address: str, tls: str, message: str
):
    """Ray 2.60 raises ConnectionError for a wrong token, after 20 s; before, the head was said to be down."""
    monkeypatch.setenv("RAY_USE_TLS", tls)
    monkeypatch.setattr("ray.init", Mock(side_effect=ConnectionError("Failed to connect to Ray cluster")))
    with pytest.raises(ValueError, match=message):
        ray_connection._join(address)


@pytest.mark.parametrize("address", ["", "local"])
def test_a_local_ray_is_started_on_loopback_and_joins_no_other(init_options: list[dict], monkeypatch, address: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("ZPOINT_CPUS", "3")
    ray_connection.connect(niceness=7)
    [options] = init_options
    assert (options["address"], options["num_cpus"], options["dashboard_host"]) == ("local", 3, "127.0.0.1")
    assert options["include_dashboard"]
    assert "runtime_env" not in options
    assert os.environ["RAY_worker_niceness"] == "7"  # noqa: SIM112


@pytest.mark.parametrize(
    ("errors", "starts"),
    [
        ([ChildProcessError] * 2, 3),
        ([ChildProcessError] * 3, 3),
        ([TimeoutError], 1),
        ([ChildProcessError, OSError], 2),
    ],
)
def test_a_local_ray_whose_node_process_exits_is_started_again(
    init_options: list[dict], monkeypatch, caplog, errors: list[type[Exception]], starts: int
):
    failures = [error("reason") for error in errors]

    def init(**options):
        init_options.append(options)
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    starts_at_last = starts > len(errors)
    with nullcontext() if starts_at_last else pytest.raises(RuntimeError, match="Ray did not start here: reason; its"):
        ray_connection.connect()
    assert len(init_options) == starts
    assert caplog.text.count("starting it again") == starts - 1


def test_a_cluster_is_joined_with_our_code_except_inside_a_job(init_options: list[dict], monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all")
    ray_connection.connect()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    ray_connection.connect()
    joined, inside_job = init_options
    assert joined["address"] == inside_job["address"] == "127.0.0.1:6379"
    modules = [Path(module).name for module in joined["runtime_env"]["py_modules"]]
    assert modules == ["aecore", "cluster", "jobs", "serving"]
    assert "not-for-all" not in str(joined)
    assert list(inside_job["runtime_env"]) == ["worker_process_setup_hook"]  # the rest is the job's
    assert "not-for-all" not in str(inside_job)


@pytest.mark.parametrize(
    ("addresses", "hosts", "refused"),
    [
        (("10.0.0.5", "10.0.0.6"), ("h0", "h1"), False),
        (("127.0.0.1", "127.0.0.1"), ("h0", "h1"), False),
        (("127.0.0.1", "10.0.0.6"), ("h0", "h1"), True),
        (("127.0.0.2", "10.0.0.6"), ("h0", "h0"), False),  # several nodes on one host
    ],
)
def test_a_node_that_the_others_do_not_reach_is_refused_by_name(
    init_options: list[dict], monkeypatch, addresses: tuple[str, ...], hosts: tuple[str, ...], refused: bool
):
    nodes = [
        {"Alive": True, "NodeManagerAddress": address, "NodeManagerHostname": host}
        for address, host in zip(addresses, hosts, strict=True)
    ]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, nodes[0] | {"Alive": False, "NodeManagerAddress": "127.0.0.1"}])
    left: list[bool] = []
    monkeypatch.setattr(ray_connection, "disconnect", lambda: left.append(True))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with pytest.raises(ValueError, match=r"host h0 .* loopback .*--node-ip-address") if refused else nullcontext():
        ray_connection.connect()
    assert left == [True] * refused


@pytest.mark.parametrize(("host", "mode"), [("127.0.0.1", "token"), ("head", None)])
def test_only_a_ray_on_this_machine_gets_the_token(host: str, mode: str | None, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # restored after the test
    monkeypatch.delenv("RAY_AUTH_MODE")
    ray_connection.use_token(host)
    assert "RAY_AUTH_MODE" not in os.environ  # there is no token yet
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    ray_connection.use_token(host)
    assert os.environ.get("RAY_AUTH_MODE") == mode


def limit_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    limits = [(soft, hard)]
    monkeypatch.setattr("resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    return limits


@pytest.mark.parametrize(("cpus", "needed"), [(1, 208), (2, 216), (64, 712)])
def test_too_few_open_files_are_raised_or_refused_before_ray_starts(init_options, monkeypatch, cpus, needed):
    monkeypatch.setenv("ZPOINT_CPUS", str(cpus))
    fewer = f", or set ZPOINT_CPUS={cpus - 1}" if cpus > 1 else ""
    for hard, fix in ((64, "raise it"), (needed - 1, f"raise it{fewer}")):
        limit_open_files(monkeypatch, 64, hard)
        with pytest.raises(ValueError, match=f"needs {needed} open files, `ulimit -n` allows {hard}: {fix}$"):
            ray_connection.connect()
    assert not init_options
    for hard in (needed, 65536, resource.RLIM_INFINITY):
        limits = limit_open_files(monkeypatch, 64, hard)
        assert ray_connection.raise_open_files_limit() == needed
        assert limits[-1] == (needed, hard)
    for soft in (needed, 1024, resource.RLIM_INFINITY):
        limits = limit_open_files(monkeypatch, soft, resource.RLIM_INFINITY)
        assert ray_connection.raise_open_files_limit() == soft
        assert len(limits) == 1


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp/ray"),
        ({"TMPDIR": "/dev/shm/zpoint-test"}, "/dev/shm/zpoint-test/ray"),
        ({"TMPDIR": "/dev/shm", "RAY_TMPDIR": "/tmp"}, "/tmp/ray"),
        ({"TMPDIR": "/scratch/local/slurm-job-1234567/tmp"}, "/tmp/ray"),
        ({"RAY_TMPDIR": "/dev/shm/" + "x" * 60}, "/tmp/ray"),
        ({"TMPDIR": "/dev/shm/" + "ä" * 13}, "/tmp/ray"),  # its bytes count
        ({"TMPDIR": "/proc/missing"}, "/tmp/ray"),
    ],
)
def test_the_folder_of_ray_fits_a_socket_and_is_writable(monkeypatch, caplog, variables: dict, folder: str):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(ray_connection.choose_ray_folder()) == folder
    moved = [value for value in variables.values() if not folder.startswith(value)]
    assert bool(caplog.text) == ((bool(moved) and "RAY_TMPDIR" not in variables) or "x" * 60 in str(variables))
    if caplog.text:
        assert moved[0] in caplog.text
        assert os.environ["RAY_TMPDIR"] == os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"


def test_a_full_folder_of_ray_is_named(init_options: list[dict], monkeypatch: pytest.MonkeyPatch, caplog):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "/dev/shm")
    full = ["/dev/shm"]
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: SimpleNamespace(free=4e5 if str(path).startswith(tuple(full)) else 1e9)
    )
    assert str(ray_connection.choose_ray_folder()) == "/tmp/ray"
    assert caplog.messages == ["/dev/shm/ray is full (0.4 MB free): Ray's folder is /tmp/ray"]
    full.append("/tmp")
    with pytest.raises(ValueError, match=r"folder for its logs: /tmp/ray is full \(0.4 MB free\); .* set RAY_TMPDIR"):
        ray_connection.connect()
    assert not init_options


def test_a_folder_of_ray_that_another_user_made_is_named(init_options: list[dict], monkeypatch, caplog):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as parent:
        (Path(parent) / "ray").symlink_to("/proc")  # not writable for root either
        for name in ("TMPDIR", "RAY_TMPDIR"):
            monkeypatch.setenv(name, parent)
        assert str(ray_connection.choose_ray_folder()) == "/tmp/ray"
    assert caplog.messages == [f"{parent}/ray is not writable: Ray's folder is /tmp/ray"]
    monkeypatch.setattr(ray_connection, "_is_writable", lambda _: False)
    with pytest.raises(ValueError, match=r"no folder for its logs: /tmp/ray is not writable; .* set RAY_TMPDIR"):
        ray_connection.connect()
    assert not init_options


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of Ray's token in an empty home folder; no variable names a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def test_a_new_token_of_a_local_ray_is_readable_for_its_owner_alone(no_token: Path, monkeypatch):
    """Ray itself would create it for every user of the machine to read."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray_connection._provide_token()
    assert not no_token.exists()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    ray_connection._provide_token()
    token = no_token.read_text()
    assert len(token) == 64
    assert no_token.stat().st_mode & 0o777 == 0o600
    ray_connection._provide_token()
    assert no_token.read_text() == token
    assert list(no_token.parent.iterdir()) == [no_token]
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize(("mode", "private"), [(0o644, 0o600), (0o440, 0o400), (0o600, 0o600)])
def test_an_existing_token_is_made_readable_for_its_owner_alone(no_token: Path, mode: int, private: int):
    no_token.parent.mkdir()
    no_token.write_text("mine")
    no_token.chmod(mode)
    ray_connection._provide_token()
    assert no_token.stat().st_mode & 0o777 == private
    assert no_token.read_text() == "mine"


def test_two_processes_that_start_at_once_have_one_token(no_token: Path, monkeypatch):
    def link(_source: str, path: Path) -> None:
        path.write_text("of the other process")
        raise FileExistsError

    monkeypatch.setattr("os.link", link)
    ray_connection._provide_token()
    assert no_token.read_text() == "of the other process"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_home_that_cannot_hold_the_token_is_no_obstacle(no_token: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/proc/missing")
    ray_connection._provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    ray_connection._provide_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"


def test_a_slow_start_is_waited_for_and_logged(monkeypatch: pytest.MonkeyPatch, caplog):
    from ray._private import services

    now = [0.0]
    monkeypatch.setattr(ray_compat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray_compat.time, "sleep", lambda s: now.__setitem__(0, now[0] + 10 * s))

    def get_node(_address, _node_id):
        if now[0] < ready_at:
            raise RuntimeError("no such node")
        return {"node": 1}

    monkeypatch.setattr(services, "get_node", get_node)
    for ready_at, messages in ((29, 0), (100, 1)):
        now[0] = 0
        caplog.clear()
        with ray_compat.wait_longer_for_start(180):
            assert services.get_node("address", "node") == {"node": 1}
        assert now[0] >= ready_at
        assert len(caplog.messages) == messages
        assert all("waiting up to 180 s" in message for message in caplog.messages)
    ready_at = 1000
    with ray_compat.wait_longer_for_start(180), pytest.raises(TimeoutError, match="within 180 s"):
        services.get_node("address", "node")
    assert services.get_node is get_node


def test_a_node_process_that_exits_ends_the_wait(monkeypatch: pytest.MonkeyPatch):
    from ray._private import services

    def get_node(_address, _node_id):
        raise RuntimeError("no such node")

    process = SimpleNamespace(process=SimpleNamespace(poll=lambda: 1))
    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(services, "start_ray_process", lambda *_, **__: process)
    with ray_compat.wait_longer_for_start(180):
        services.start_ray_process(["raylet"], "raylet")
        with pytest.raises(ChildProcessError, match="exited"):
            services.get_node("address", "node")


def test_a_parent_process_uv_run_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Ray finds `uv run` among the command lines of this process' ancestors; here one is called so."""
    (tmp_path / "uv").symlink_to(shutil.which("bash") or "/bin/bash")
    code = (
        "from cluster import ray_compat; ray_compat.ignore_uv_run(); import ray; ray_compat.ignore_uv_run();"
        "from ray._private import worker; print(worker._maybe_modify_runtime_env({'env_vars': {}}, False))"
    )
    (tmp_path / "run").write_text(f'{sys.executable} -c "$CODE"; exit $?')
    environment = {**os.environ, "CODE": code, "PYTHONPATH": str(REPO)}
    environment.pop("RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "uv"), "run"]
        return subprocess.run(command, env={**environment, **variables}, cwd=tmp_path, capture_output=True, text=True)

    assert run().stdout == "{'env_vars': {}}\n"
    assert "py_executable" in run(RAY_ENABLE_UV_RUN_RUNTIME_ENV="1").stdout  # as the user asked


def test_the_local_ray_has_the_cpus_of_the_settings(ray_cluster):
    import ray

    ray_connection.connect()  # a second call changes nothing
    assert ray.cluster_resources()["CPU"] == 2
    assert ray_connection.has_gpu() == bool(ray.cluster_resources().get("GPU"))


def test_a_local_ray_listens_on_loopback_only(ray_cluster):
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote())  # at least one worker process
    addresses = listening_addresses(descendants(os.getpid()))
    assert len(addresses) >= 6  # GCS, raylet, object manager, dashboard, its agent, a worker
    assert [address for address in addresses if not ip_address(address).is_loopback] == []


def test_the_local_ray_rarely_measures_itself(ray_cluster):
    code = """
from ray.dashboard import consts
from ray.dashboard.modules.reporter import reporter_consts
print(consts.METRICS_RECORD_INTERVAL_S, reporter_consts.REPORTER_UPDATE_INTERVAL_MS)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["86400", "60000"]


@pytest.mark.ray
def test_a_local_ray_prints_nothing_and_its_workers_have_the_given_niceness():
    code = """
import os, time
from cluster import ray_compat
from cluster.ray_connection import connect, disconnect
ray_compat.SLOW_START_S = 600  # a busy machine's slow start would be logged
connect(niceness=3)
import ray

class Actor:
    def read_niceness(self):
        return os.nice(0)
    def sleep(self):
        time.sleep(60)

actor = ray.remote(Actor).options(num_cpus=1, max_restarts=1, max_task_retries=1).remote()
assert ray.get(actor.read_niceness.remote()) == os.nice(0) + 3
interrupted = actor.sleep.remote()
ray.kill(actor)  # Ray has a message for its retries
time.sleep(2)
disconnect()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
