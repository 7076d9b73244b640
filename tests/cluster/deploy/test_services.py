"""Run the service stack for real, without containers, and let a training, a campaign and an endpoint use it.

PostgreSQL, MLflow with passwords on it, an S3 server, a Ray with a token, and Prometheus, which scrapes Ray's exporter
and is asked for every expression of the dashboard and the alert rules.
"""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from serving.client import Client
from tests.conftest import free_port, wait_until_it_answers
from tests.synthetic_dataset import make_dataset

REPO = Path(__file__).parents[3]
DEPLOY = REPO / "cluster" / "deploy"
RECIPE = """
model: {z_dim: 2, channels: [4, 4, 4, 4], norm: group}
optim: {epochs: 2, batch: 8}
search: {trials: 2, space: {loss.kl_factor: "log(0.01, 1)"}, stop: none, parallel: 1}
"""
TOKEN = "endpoint-token"


class Stack(NamedTuple):
    folder: Path  # of logs and configurations
    env: dict[str, str]  # that leads a command to the services and to Ray


@contextmanager
def process(command: list[Any], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server inside the block; its output goes to `log`."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        yield server
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def postgres(log: Path) -> Iterator[int]:
    """Start PostgreSQL with the database `mlflow` and its user, password `secret`; yield its port."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders and os.environ.get("CI") != "true":  # .ci/run installs it
        pytest.skip("no PostgreSQL (apt-get install postgresql)")
    assert folders, "no PostgreSQL"
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="zpoint-postgres-", dir="/tmp"))
    try:
        password = folder / "password"
        password.write_text("secret")
        if user:
            account = pwd.getpwnam("postgres")
            for path in (folder, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        data, port = folder / "data", free_port()
        init = [folders[-1] / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run([*init, "--no-sync"], check=True, capture_output=True, cwd=folder, **user)
        options = ["-p", port, "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        with process([folders[-1] / "postgres", "-D", data, *map(str, options)], log, cwd=folder, **user):
            import psycopg

            deadline = time.monotonic() + 120
            while True:
                try:
                    connection = f"host=127.0.0.1 port={port} user=mlflow password=secret dbname=postgres"
                    with psycopg.connect(connection, autocommit=True) as database:
                        database.execute("CREATE DATABASE mlflow")
                    break
                except psycopg.OperationalError:
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
            yield port
    finally:
        shutil.rmtree(folder)


def mlflow_command(compose: dict[str, Any], postgres_port: int, port: int, store: str) -> list[str]:
    """Return the command of compose.yaml's MLflow, with this machine's addresses."""
    replaced = {
        "postgres:5432": f"127.0.0.1:{postgres_port}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "s3://zpoint/store": store,
        "--workers=2": "--workers=1",
    }
    words = []
    for word in compose["services"]["mlflow"]["command"]:
        for old, new in replaced.items():
            word = word.replace(old, new)
        words.append(re.sub(r"\$\{\w+:-(.*)\}", r"\1", word))
    return [sys.executable, "-m", "mlflow", "server", *words]


@pytest.fixture(scope="module")
def stack(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start the services and a Ray."""
    import boto3

    folder = tmp_path_factory.mktemp("stack")
    compose = yaml.safe_load((DEPLOY / "services" / "compose.yaml").read_text())
    with ExitStack() as started, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="zpoint-stack")
        store, port = "s3://zpoint-stack/store", free_port()
        database_port = started.enter_context(postgres(folder / "postgres.log"))
        auth = (DEPLOY / "kubernetes" / "components" / "mlflow" / "basic_auth.ini").read_text()
        (folder / "basic_auth.ini").write_text(auth.replace("postgres:5432", f"127.0.0.1:{database_port}"))
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-of-the-test",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
            (jobs := "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"): compose["services"]["mlflow"]["environment"][jobs],
            "PGPASSWORD": "secret",
        }
        command = mlflow_command(compose, database_port, port, store)
        mlflow = started.enter_context(
            process(command, folder / "mlflow.log", env=os.environ | environment, cwd=folder)
        )
        ray_port, dashboard = free_port(), free_port()
        for name, value in {
            "ZPOINT_HOME": str(folder / "home"), "ZPOINT_STORE": store, "ZPOINT_CACHE": str(folder / "cache"),
            "ZPOINT_TOKEN": TOKEN, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "admin-of-the-test",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ray-token-of-the-test", "OMP_NUM_THREADS": "1",
            "RAY_metrics_report_interval_ms": "500", "PYTHONPATH": str(REPO),
        }.items():  # fmt: skip
            patch.setenv(name, value)
        temp_dir = Path(tempfile.mkdtemp(prefix="zr", dir="/tmp"))
        started.callback(shutil.rmtree, temp_dir, ignore_errors=True)
        head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=3"]
        head += [f"--port={ray_port}", f"--dashboard-port={dashboard}", f"--temp-dir={temp_dir}"]
        head += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        started.enter_context(process(head, folder / "ray.log"))
        patch.setenv("RAY_ADDRESS", f"127.0.0.1:{ray_port}")
        targets = temp_dir / "prom_metrics_service_discovery.json"
        config = (DEPLOY / "observability" / "prometheus.yml").read_text()
        assert "/tmp/ray/" in config
        shutil.copy(DEPLOY / "observability" / "rules.yaml", folder)
        config = config.replace(f"/tmp/ray/{targets.name}", str(targets)).replace(
            "scrape_interval: 15s", "scrape_interval: 1s"
        )
        (folder / "prometheus.yml").write_text(config)
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", mlflow, timeout_s=240)
        yield Stack(folder, dict(os.environ))


@pytest.fixture(scope="module")
def prometheus(stack: Stack, executable: Callable[[str, str], str]) -> Iterator[str]:
    """Start Prometheus with the stack's configuration; gives its URL."""
    binary, port = executable("prometheus", "apt-get install prometheus"), free_port()
    command = [binary, f"--config.file={stack.folder}/prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    with process([*command, f"--storage.tsdb.path={stack.folder}/tsdb"], stack.folder / "prometheus.log") as server:
        wait_until_it_answers(f"http://127.0.0.1:{port}/-/ready", server)
        yield f"http://127.0.0.1:{port}"


def zpoint(stack: Stack, *arguments: object) -> dict[str, Any]:
    """Run a command on the stack's Ray; return its result."""
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, env=stack.env)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def expressions() -> dict[str, str]:
    """Return each expression of the dashboard and the rules; comparisons of alerts give 0 or 1 instead of nothing."""
    dashboard = json.loads((DEPLOY / "observability" / "dashboard.json").read_text())
    rules = yaml.safe_load((DEPLOY / "observability" / "rules.yaml").read_text())
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    for rule in rules["groups"][0]["rules"]:
        queries[rule["alert"]] = re.sub(r" (==|>|<) (?=[\d.]+$)", r" \1 bool ", rule["expr"])
        assert queries[rule["alert"]] != rule["expr"]
    return queries


@pytest.mark.hosts
def test_services_serve_a_training_a_campaign_and_an_endpoint_and_every_expression_has_a_series(
    stack: Stack, prometheus: str, tmp_path: Path
):
    began = time.time()
    make_dataset(tmp_path / "faces", {"train": [512], "valid": [32], "test": [32]}, size=16)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    trained = zpoint(stack, "train", recipe, f"data.uri={tmp_path / 'faces'}", "optim.epochs=10")
    campaign = zpoint(stack, "tune", recipe, f"data.uri={tmp_path / 'faces'}", "optim.epochs=10")
    assert {trial["state"] for trial in campaign["trials"]} == {"finished"}
    zpoint(stack, "promote", trained["run"])
    port = free_port()
    command = [sys.executable, "-m", "jobs.cli", "serve", "--port", str(port)]
    log = stack.folder / "serve.log"
    with process(command, log, env=stack.env), Client(f"http://127.0.0.1:{port}", TOKEN) as client:
        deadline = time.monotonic() + 120
        while "serving" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        client.sample("normal", n=2, seed=1)
        missing = expressions()
        deadline = time.monotonic() + 120
        while missing and time.monotonic() < deadline:
            time.sleep(1)
            missing = {name: query for name, query in missing.items() if not series(prometheus, query, began)}
    assert missing == {}


def series(url: str, query: str, began: float) -> list[Any]:
    """Return the series that `query` has had since `began`."""
    parameters = urlencode({"query": query, "start": began, "end": time.time(), "step": 1})
    with urlopen(f"{url}/api/v1/query_range?{parameters}") as response:
        return json.load(response)["data"]["result"]
