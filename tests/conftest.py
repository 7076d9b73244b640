"""Fixtures of all tests: an isolated environment, one Ray, one S3 server, an MLflow database, the official data sets.

A test with the fixture `ray_cluster` uses the session's ZPOINT_HOME and ZPOINT_CACHE, since its workers have the
environment in which that Ray was started. Any other test has folders of its own.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from hypothesis import settings

# The same examples in each run, and no limit of time: a busy machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

REPO = Path(__file__).parent.parent
CLEARED_PREFIXES = ("ZPOINT_", "AWS_", "MLFLOW_TRACKING", "RAY_ADDRESS", "RAY_API_SERVER")
PRESERVED = ("ZPOINT_TEST_DATA",)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, and run the tests of Ray last, so that quick failures show first.

    If two processes share the tests (`make test`), all tests of the session's Ray run in one of them, so that only one
    Ray is started; a file of tests with a cluster of its own stays in one process too. pytest-xdist starts with the
    largest group there, the tests of Ray: the tests that follow in that process find it connected to a Ray. Groups of
    one test keep their order: the demo's, which takes minutes, must not run last, beside an idle process.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        for fixture, mark in {"ray_cluster": "ray", "s3": "s3", "real_data": "real"}.items():
            if fixture in names:
                item.add_marker(mark)
        if item.path.is_relative_to(REPO / "tests" / "faults"):
            item.add_marker("faults")
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray" if "ray_cluster" in names else item.path.stem))
    in_parallel = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=lambda item: (item.get_closest_marker("ray") is not None) != in_parallel)


@pytest.fixture(scope="session", autouse=True)
def session_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Replace the variables of the user's shell by the tests' own; Ray's workers inherit them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(CLEARED_PREFIXES) and n not in PRESERVED]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("ZPOINT_HOME", str(home))
        patch.setenv("ZPOINT_CACHE", str(home / "cache"))
        patch.setenv("ZPOINT_CPUS", "2")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        from cluster.network import configure_libraries

        configure_libraries()
        yield


@pytest.fixture(autouse=True)
def isolated_folders(request: pytest.FixtureRequest, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own home, cache and working directory; unset the S3 server unless the test uses it."""
    folder = tmp_path_factory.mktemp("test")
    monkeypatch.chdir(folder)
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setenv("ZPOINT_HOME", str(folder / "home"))
        monkeypatch.setenv("ZPOINT_CACHE", str(folder / "cache"))
    if "s3" not in request.fixturenames:
        for name in S3_VARIABLES:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def restored_auth_mode() -> Iterator[None]:
    """Restore RAY_AUTH_MODE after each test: `ray.init` reads it again only if it is unset, and else fails in 180 s."""
    mode = os.environ.get("RAY_AUTH_MODE")
    yield
    if mode is None:
        os.environ.pop("RAY_AUTH_MODE", None)
    else:
        os.environ["RAY_AUTH_MODE"] = mode


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch's default generator, so that a test has the same random tensors in each run and order."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def ray_cluster(s3_server: dict[str, str]) -> Iterator[None]:
    """Start a local Ray of two CPUs for the session, whose workers have the S3 server's variables."""
    from cluster.ray_connection import connect, disconnect

    connect(niceness=0)  # at 15 another process' tests leave its workers a fiftieth of the CPUs
    yield
    disconnect()


S3_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


# moto reads and writes an object in two steps: two conditional writes at once would both succeed, on S3 one does.
MOTO = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
lock, put_object = threading.Lock(), S3Response.put_object
def put_one_object(response):
    with lock:
        return put_object(response)
S3Response.put_object = put_one_object
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until this process ends
"""


@pytest.fixture(scope="session")
def start_moto() -> Iterator[Callable[..., str]]:
    """Return a function that starts a moto_server, with the given environment variables, and returns its URL."""
    processes: list[subprocess.Popen[str]] = []

    def start(**variables: str) -> str:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        process = subprocess.Popen([sys.executable, "-c", MOTO], env={**os.environ, **variables}, **pipes)
        processes.append(process)
        assert process.stdout
        port = process.stdout.readline().strip()
        assert port, f"moto exited with status {process.wait()}"
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def s3_server(session_environment: None, start_moto: Callable[..., str]) -> Iterator[dict[str, str]]:
    """Start the session's S3 server; set and return the variables that lead to it."""
    values = dict(zip(S3_VARIABLES, (start_moto(), "test", "test-secret", "us-east-1"), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield values


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a bucket on the S3 server; return its URI."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    bucket = f"zpoint-{uuid.uuid4().hex[:10]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def mlflow_template(session_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an empty MLflow database, to copy: creating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(isolated_folders: None, mlflow_template: Path) -> None:
    """Put an MLflow database into ZPOINT_HOME."""
    home = Path(os.environ["ZPOINT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(mlflow_template, home / "mlflow.db")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the official data sets; skip the test if there is none."""
    folder = Path(os.environ.get("ZPOINT_TEST_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no official data sets at {folder} (ZPOINT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Return a function that waits until a condition holds; only a hang takes until the timeout."""

    def wait(condition: Callable[[], Any], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not true within {timeout_s} s"
            time.sleep(0.002)

    return wait


def free_port() -> int:
    """Return a port for a server that takes no port 0, below those that the kernel gives to other sockets."""
    while True:
        port = 20_000 + int.from_bytes(os.urandom(2)) % 10_000
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server at {url} exited with status {process.returncode}"
        try:
            urlopen(url, timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {url}")
