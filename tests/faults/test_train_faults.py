"""Faults of a training on a cluster: nodes that come and go, killed workers and drivers, Ctrl-C.

After each it resumes from its last checkpoint, every epoch is trained on all of its images, once, and is one point in
MLflow with the losses of an undisturbed run. With group norm the number of workers changes only the order of float32
sums; `tests/jobs/train/test_train_on_ray.py` derives the tolerance of 1e-4.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import tracking
from jobs.run_store import find_run
from tests.synthetic_dataset import make_dataset

HERE = Path(__file__).parent
EPOCHS, STEPS, EVERY = 12, 8, 3  # an epoch has 8 steps of 8 images; a checkpoint every 3 steps
RECIPE = f"""
model: {{z_dim: 3, channels: [4, 4, 4, 4], norm: group}}
optim: {{epochs: {EPOCHS}, batch: 8}}
scale: {{workers: [1, 4]}}
checkpoint: {{every: {EVERY}}}
"""


class Nodes:
    """A cluster of several nodes on this machine, the process of nodes.py."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, str(HERE / "nodes.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.address = self._read_line()

    def send(self, *command: object) -> str:
        assert self.process.stdin
        print(*command, file=self.process.stdin, flush=True)
        return self._read_line()

    def _read_line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the cluster has ended"
        return line.strip()


@pytest.fixture(scope="module")
def folder(session_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    make_dataset(folder / "data", {"train": [STEPS * 8], "valid": [8]}, 16)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the cluster and the commands: a home that they share, and one thread a process."""
    variables = {
        "ZPOINT_HOME": folder / "home", "ZPOINT_CACHE": folder / "cache", "SLOW": folder / "slow",
        "STEPS": folder / "steps", "PYTHONPATH": HERE.parents[1], "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": 1,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": 1,
    }  # fmt: skip
    return {**os.environ, **{name: str(value) for name, value in variables.items()}}


@pytest.fixture(scope="module")
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    nodes = Nodes(environment)
    yield nodes
    assert nodes.process.stdin
    nodes.process.stdin.close()
    nodes.process.wait(60)


class Driver:
    """`zpoint train` on the cluster; while the file `slow` exists, a step takes half a second."""

    def __init__(self, folder: Path, environment: dict[str, str], address: str, name: str, *overrides: str) -> None:
        self.run_folder, self.steps_file, self.slow = folder / "home" / "runs" / name, folder / "steps", folder / "slow"
        command = [sys.executable, str(HERE / "slow_training.py"), "train", str(folder / "tiny.yaml"), "--json"]
        command += [f"data.uri={folder / 'data'}", f"name={name}", *overrides]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**environment, "RAY_ADDRESS": address}, **pipes)

    def steps(self) -> list[tuple[int, int]]:
        """Return the number of workers and the step of each step that rank 0 did, in order."""
        lines = [line.split() for line in self.steps_file.read_text().splitlines()] if self.steps_file.exists() else []
        return [(int(size), int(step)) for rank, size, step in lines if rank == "0"]

    def wait(self, condition: Callable[[], Any], timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, (self.steps()[-3:], self.checkpoints())
            time.sleep(0.05)

    def wait_for_steps(self, count: int, workers: int) -> None:
        """Wait until `workers` workers have done `count` more steps."""
        num_steps = len(self.steps())
        self.wait(lambda: [size for size, _ in self.steps()[num_steps:]].count(workers) >= count)

    def wait_until_saved(self) -> None:
        """Wait for the background write of the last due checkpoint; a kill before it would cost more steps."""
        self.wait(lambda: self.steps()[-1][1] - self.checkpoints()[-1] <= EVERY)

    def checkpoints(self) -> list[int]:
        """Return the steps of the complete checkpoints, the newest last."""
        return sorted(
            int(path.parent.name.split("-")[1]) for path in self.run_folder.glob("checkpoints/*/progress.json")
        )

    def end(self, status: int = 0) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=180)
        assert self.process.returncode == status, err
        return json.loads(out) if out else {}

    def repeated(self) -> int:
        """Return how many steps were repeated."""
        return sum(count - 1 for count in Counter(step for _, step in self.steps()).values())


@pytest.fixture
def start(folder: Path, environment: dict[str, str], nodes: Nodes, monkeypatch) -> Iterator[Callable[..., Driver]]:
    """Start a training; all are ended after the test."""
    started: list[Driver] = []

    def start(name: str, *overrides: str) -> Driver:
        started.append(Driver(folder, environment, nodes.address, name, *overrides))
        return started[-1]

    (folder / "steps").unlink(missing_ok=True)
    (folder / "slow").touch()
    monkeypatch.setenv("ZPOINT_HOME", environment["ZPOINT_HOME"])
    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, environment: dict[str, str]) -> dict[int, dict[str, float]]:
    """Train undisturbed in one process; gives the metrics of each epoch."""
    (folder / "slow").unlink(missing_ok=True)
    command = [sys.executable, "-m", "jobs.cli", "train", str(folder / "tiny.yaml"), f"data.uri={folder / 'data'}"]
    subprocess.run([*command, "scale.workers=0", "name=undisturbed"], env=environment, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZPOINT_HOME", environment["ZPOINT_HOME"])
        return find_run("undisturbed").epochs()


def assert_undisturbed(name: str, undisturbed: dict[int, dict[str, float]]) -> None:
    """Check that there is one MLflow run with one point per epoch, of the losses of an undisturbed training."""
    run_store = find_run(name)
    runs = tracking.find_runs(f"tags.`zpoint.run` = '{name}'")
    assert [(run.info.run_id, run.info.status) for run in runs] == [(run_store.run_id, "FINISHED")]
    for metric in ("train_recon", "train_kl", "valid_loss"):
        points = tracking.client().get_metric_history(run_store.run_id, metric)
        assert [point.step for point in points] == list(range(1, EPOCHS + 1)), metric
        expected = [epoch[metric] for epoch in undisturbed.values()]
        assert [point.value for point in points] == pytest.approx(expected, rel=1e-4), metric


def worker_pids(driver: Driver) -> list[int]:
    """Return the process ids of the workers, which are no children of this process but have its STEPS."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_text().startswith("ray::RayTrainWorker"):
                environ = (path / "environ").read_bytes().split(b"\0")
                pids += [int(path.name)] if f"STEPS={driver.steps_file}".encode() in environ else []
        except OSError:
            continue
    return sorted(pids)


@pytest.mark.ray
def test_training_resizes_with_the_cluster_and_survives_a_killed_worker(nodes: Nodes, start, undisturbed):
    first = nodes.send("add", 1)
    driver = start("elastic")
    driver.wait_for_steps(EVERY + 1, workers=1)
    second = nodes.send("add", 1)
    driver.wait_for_steps(EVERY + 1, workers=2)
    assert driver.repeated() == 0  # it saved before it grew

    workers = worker_pids(driver)
    driver.wait_until_saved()
    os.kill(workers[0], signal.SIGKILL)
    driver.wait_for_steps(EVERY + 1, workers=2)
    assert driver.repeated() <= EVERY

    driver.wait_until_saved()
    nodes.send("kill", second)
    driver.wait_for_steps(1, workers=1)
    assert driver.repeated() <= 2 * EVERY
    driver.slow.unlink()
    driver.end()
    assert_undisturbed("elastic", undisturbed)
    nodes.send("kill", first)


@pytest.mark.ray
def test_training_survives_a_killed_driver_a_preempted_node_and_ctrl_c(nodes: Nodes, start, undisturbed):
    epochs_only = ("checkpoint.every=0", "checkpoint.minutes=0")  # checkpoints at the end of each epoch only
    first, second = nodes.send("add", 1), nodes.send("add", 1)
    driver = start("shaken", *epochs_only)
    driver.wait_for_steps(STEPS + 2, workers=2)
    driver.process.kill()
    driver.process.wait()

    driver = start("shaken", *epochs_only)
    driver.wait_for_steps(2, workers=2)
    assert driver.steps()[-1][1] > STEPS
    driver.wait(lambda: driver.steps()[-1][1] % STEPS == 1)
    drain_step = driver.steps()[-1][1]
    nodes.send("drain", second, 10)
    driver.wait(lambda: any(step > drain_step and step % STEPS for step in driver.checkpoints()))  # within an epoch
    repeated = driver.repeated()
    driver.wait(lambda: not worker_pids(driver))  # the deadline has passed
    nodes.send("kill", second)
    driver.wait_for_steps(2, workers=1)
    assert driver.repeated() <= repeated + EVERY
    repeated = driver.repeated()

    driver.process.send_signal(signal.SIGINT)
    driver.end(130)
    assert driver.checkpoints()[-1] == driver.steps()[-1][1]
    driver = start("shaken", *epochs_only)
    driver.slow.unlink()
    driver.end()
    assert driver.repeated() == repeated
    assert_undisturbed("shaken", undisturbed)
    nodes.send("kill", first)
