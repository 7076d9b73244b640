"""What all tests share: an environment of their own, one Ray, one S3 server, the official data sets.

A test of Ray (fixture `ray_cluster`) sees the session's ZPOINT_HOME and ZPOINT_CACHE, since its workers have
the environment in which that Ray was started. Every other test has folders of its own.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

REPO = Path(__file__).parent.parent
OURS = ("ZPOINT_", "AWS_", "MLFLOW_TRACKING", "RAY_ADDRESS", "RAY_API_SERVER")
KEPT = ("ZPOINT_TEST_DATA",)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by the fixtures used, and put the tests of Ray last, so that quick failures show first.

    Where two processes share the tests (`make test`), one of them has all that use the session's Ray, so that there is
    one; a file of tests with a cluster of its own stays together too.
    """
    for item in items:
        names = getattr(item, "fixturenames", ())
        for fixture, mark in {"ray_cluster": "ray", "s3": "s3", "real_data": "real"}.items():
            if fixture in names:
                item.add_marker(mark)
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray" if "ray_cluster" in names else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(scope="session", autouse=True)
def session_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's shell reaches the tests; Ray's workers get what is set here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(OURS) and n not in KEPT]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("ZPOINT_HOME", str(home))
        patch.setenv("ZPOINT_CACHE", str(home / "cache"))
        patch.setenv("ZPOINT_CPUS", "2")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        from cluster.settings import disable_telemetry

        disable_telemetry()
        yield


@pytest.fixture(autouse=True)
def own_folders(request: pytest.FixtureRequest, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home, a cache and a current folder for each test; the S3 server only where it is asked for."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.chdir(folder)
    if "ray_cluster" not in request.fixturenames:
        monkeypatch.setenv("ZPOINT_HOME", str(folder / "home"))
        monkeypatch.setenv("ZPOINT_CACHE", str(folder / "cache"))
    if "s3" not in request.fixturenames:
        for name in S3_NAMES:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def ray_cluster(s3_server: dict[str, str]) -> Iterator[None]:
    """One local Ray of two CPUs for the whole session. Its workers know the S3 server."""
    from cluster.ray_connection import connect, disconnect

    connect()
    yield
    disconnect()


S3_NAMES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")


@pytest.fixture(scope="session")
def start_moto() -> Iterator[Callable[..., str]]:
    """Starts a moto_server with further environment variables on a free loopback port; gives its URL."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> str:
        url = f"http://127.0.0.1:{_free_port()}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, env={**os.environ, **variables}, **quiet))
        _wait_for(f"{url}/moto-api/", started[-1])
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def s3_server(session_environment: None, start_moto: Callable[..., str]) -> Iterator[dict[str, str]]:
    """The session's S3 server, and the variables that lead to it, set."""
    values = dict(zip(S3_NAMES, (start_moto(), "test", "test-secret", "us-east-1"), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield values


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket on a real S3 server over HTTP."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    bucket = f"zpoint-{uuid.uuid4().hex[:10]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def mlflow_template(session_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(own_folders: None, mlflow_template: Path) -> None:
    """An MLflow database at the place where zpoint looks for it."""
    home = Path(os.environ["ZPOINT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(mlflow_template, home / "mlflow.db")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of official data sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ZPOINT_TEST_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no official data sets at {folder} (ZPOINT_TEST_DATA)")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, f"the server of {url} ended with status {process.returncode}"
        try:
            urlopen(url, timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {url}")
