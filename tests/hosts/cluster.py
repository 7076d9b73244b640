"""A Ray cluster on hosts: a head without CPUs, workers, a store with S3 and MLflow, and a laptop that is no node."""

import json
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hosts.machines import Host, make_hosts

PYTHON = sys.executable
RAY = str(Path(sys.executable).with_name("ray"))
ZPOINT = (PYTHON, "-P", "-m", "jobs.cli")
BUCKET = "s3://zpoint"
END_S = 900  # for a job that goes on to end, on a slow machine too; only a hang takes as long
# A lost node is noticed after 5 s instead of 30.
HEALTH_CHECK = (
    '{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 5000,'
    ' "health_check_failure_threshold": 1}'
)
RECIPE = """
model: {z_dim: 3, channels: [8, 8, 8, 8], norm: group}
optim: {epochs: 2, batch: 16, lr: 0.01}
checkpoint: {every: 4}
loss: {kl_factor: 0.000001}
search: {trials: 2, space: {model.z_dim: [3, 4]}, stop: none}
"""


class Cluster:
    """The hosts, and what a user on them has in the environment."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts, self.redis = hosts, False
        self.token = secrets.token_hex(32)
        self.store_env = {
            "AWS_ENDPOINT_URL": f"http://{hosts['store'].address}:9000", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        # Of `ray start` on each node, with the keys and the token of the endpoint, as from a secret.
        self.node_env = {
            "AWS_ACCESS_KEY_ID": "node", "AWS_SECRET_ACCESS_KEY": "node-secret",
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "ZPOINT_TOKEN": "endpoint-token",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        }  # fmt: skip
        # Of the user's commands.
        self.env = {
            **self.store_env, "RAY_ADDRESS": f"http://{hosts['head'].address}:8265", "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token, "ZPOINT_STORE": f"{BUCKET}/store", "ZPOINT_CACHE": "/tmp/disk/cache",
            "MLFLOW_TRACKING_URI": f"http://{hosts['store'].address}:5000", "ZPOINT_TOKEN": "endpoint-token",
        }  # fmt: skip

    def start_store(self) -> None:
        store = self.hosts["store"]
        store.start(PYTHON, "-m", "moto.server", "-H", "0.0.0.0", "-p", 9000, log="s3")
        store.start(
            PYTHON, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", 5000, "--workers", 1,
            "--backend-store-uri", "sqlite:////tmp/mlflow.db", "--artifacts-destination", f"{BUCKET}/mlflow",
            "--allowed-hosts", "*", log="mlflow",
            env={
                **self.store_env, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )  # fmt: skip
        create = "import boto3; boto3.client('s3').create_bucket(Bucket='zpoint')"
        wait_until(lambda: store.run(PYTHON, "-c", create, env=self.store_env).returncode == 0, "S3")

    def start_redis(self) -> None:
        store, self.redis = self.hosts["store"], True
        store.start("redis-server", "--bind", store.address, "--protected-mode", "no", "--save", "", log="redis")

    def start_head(self) -> None:
        """Start Ray's head, which keeps its state in Redis if that was started."""
        options = ["--head", "--port", 6379, "--dashboard-host", "0.0.0.0", "--num-cpus", 0]
        env = {"RAY_REDIS_ADDRESS": f"{self.hosts['store'].address}:6379"} if self.redis else {}
        self._start_ray("head", [*options, "--system-config", HEALTH_CHECK], env)

    def start_worker(self, name: str, cpus: int = 1, **env: str) -> None:
        self._start_ray(name, ["--address", f"{self.hosts['head'].address}:6379", "--num-cpus", cpus], env)

    def _start_ray(self, name: str, options: list[object], env: dict[str, str]) -> None:
        """Run `ray start`, again if it gives up: the head is not there yet, or the machine is too busy."""
        host = self.hosts[name]
        command = [RAY, "start", *options, "--block", "--node-ip-address", host.address]
        command += ["--object-store-memory", 100_000_000]
        retry = f"until {shlex.join(map(str, command))}; do sleep 1; done"
        host.start("bash", "-c", retry, env=self.node_env | env, log="ray")

    def zpoint(self, *argv: object, timeout_s: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `zpoint` on the laptop."""
        return self.hosts["laptop"].run(*ZPOINT, *argv, env=self.env | env, timeout_s=timeout_s)

    def nodes(self) -> set[str]:
        """Return the names of the hosts that the head counts as living nodes."""
        code = (
            "import json, sys, urllib.request as r; q = r.Request(sys.argv[1], headers={'Authorization': sys.argv[2]});"
            "print(*(n['raylet']['nodeManagerAddress'] for n in json.load(r.urlopen(q, timeout=5))['data']['summary']"
            " if n['raylet']['state'] == 'ALIVE'))"
        )
        url = f"http://{self.hosts['head'].address}:8265/nodes?view=summary"
        addresses = self.hosts["laptop"].run(PYTHON, "-c", code, url, f"Bearer {self.token}").stdout.split()
        return {name for name, host in self.hosts.items() if host.address in addresses}

    def submit(self, *argv: object, status: int = 0) -> tuple[Any, str]:
        """Submit a job from the laptop and wait for it; return its result and its log."""
        process = self.zpoint("submit", "--wait", "--json", *argv)
        assert process.returncode == status, process.stderr
        return json.loads(process.stdout.splitlines()[-1])["result"], process.stderr

    def start_job(self, *argv: object, log: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Submit a job from the laptop; return the process that waits for it, and the file of its output."""
        laptop = self.hosts["laptop"]
        process = laptop.start(*ZPOINT, "submit", "--wait", "--json", *argv, env=self.env, log=log)
        return process, laptop.folder / f"{log}.log"


@contextmanager
def make_cluster(
    folder: Path, workers: Mapping[str, int], loopback_names: Collection[str] = (), *, redis: bool = False
) -> Iterator[Cluster]:  # fmt: skip
    """Boot the hosts and start everything on them; `workers` are the CPUs of the worker nodes by their names.

    The names of the hosts `loopback_names` lead to 127.0.1.1. `redis`: the head keeps its state in Redis on the store.
    """
    with make_hosts(folder, ["head", "store", "laptop", *workers], loopback_names) as hosts:
        cluster = Cluster(hosts)
        if redis:
            cluster.start_redis()
        cluster.start_head()
        cluster.start_store()
        for name, cpus in workers.items():
            cluster.start_worker(name, cpus)
        (hosts["laptop"].folder / "tmp" / "home" / "tiny.yaml").write_text(RECIPE)
        wait_until(lambda: cluster.nodes() == {"head", *workers}, "the nodes", timeout_s=300)
        yield cluster


def wait_until(condition: Callable[[], Any], subject: str, timeout_s: float = 180, interval_s: float = 0.5) -> float:
    """Wait until `condition()` is true; return for how many seconds, and print them: `pytest -rP` shows them."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout_s, f"{subject}: not there after {timeout_s:.0f} s"
        time.sleep(interval_s)
    print(f"{subject}: {(seconds := time.monotonic() - began):.1f} s")
    return seconds


def shown_epochs(log: str, epochs: int) -> list[int]:
    """Return the epochs that the lines of progress in a log name, in their order."""
    return [int(number) for number in re.findall(rf"epoch (\d+)/{epochs}\b", log)]


def wait_for_epoch(log: Path, since: str, epochs: int, subject: str) -> None:
    """Wait until the log of a training of `epochs` shows a new one behind its former text `since`.

    The first line behind that text may be of steps that were made before.
    """
    wanted = 2 if since else 1
    wait_until(lambda: len(set(shown_epochs(log.read_text()[len(since) :], epochs))) >= wanted, subject)


def train_workers(cluster: Cluster) -> dict[str, str]:
    """Return the process ids of the training workers on each worker host that has any."""
    return worker_processes(cluster, "ray::RayTrainWorker")


def worker_processes(cluster: Cluster, title: str) -> dict[str, str]:
    """Return the ids of the processes whose title has `title`, on each worker host that has any."""
    workers = {name: host for name, host in cluster.hosts.items() if name.startswith("w")}
    pids = {name: host.run("pgrep", "-f", title).stdout for name, host in workers.items()}
    return {name: text for name, text in pids.items() if text}
