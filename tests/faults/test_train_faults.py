"""What befalls a training on a cluster: nodes that come and go, killed workers and drivers, Ctrl-C.

Each time it goes on from its last checkpoint, every epoch is trained on all of its images, once, and is one point in
MLflow: its losses are those of a run that nothing befell (group norm, so the number of workers changes but the order
of float32 sums: `tests/jobs/train/test_train.py` says why 1e-4).
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
EPOCHS, STEPS, EVERY = 12, 8, 3  # of an epoch, 8 steps of 8 images
RECIPE = f"""
model: {{z_dim: 3, channels: [4, 4, 4, 4], norm: group}}
optim: {{epochs: {EPOCHS}, batch: 8}}
scale: {{workers: [1, 4]}}
checkpoint: {{every: {EVERY}}}
"""


class Nodes:
    """A cluster of several nodes, on this machine: see nodes.py."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, str(HERE / "nodes.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.address = self._answer()

    def do(self, *words: object) -> str:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
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
    """What the cluster and the commands see: a home that they share, and one thread a process."""
    ours = {
        "ZPOINT_HOME": folder / "home", "ZPOINT_CACHE": folder / "cache", "SLOW": folder / "slow",
        "STEPS": folder / "steps", "PYTHONPATH": HERE.parents[1], "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": 1,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": 1,
    }  # fmt: skip
    return {**os.environ, **{name: str(value) for name, value in ours.items()}}


@pytest.fixture(scope="module")
def nodes(environment: dict[str, str]) -> Iterator[Nodes]:
    nodes = Nodes(environment)
    yield nodes
    assert nodes.process.stdin
    nodes.process.stdin.close()
    nodes.process.wait(60)


class Driver:
    """`zpoint train` on the cluster; while the file `slow` is there, a step takes half a second."""

    def __init__(self, folder: Path, environment: dict[str, str], address: str, name: str, *more: str) -> None:
        self.run, self.notes, self.slow = folder / "home" / "runs" / name, folder / "steps", folder / "slow"
        command = [sys.executable, str(HERE / "slow.py"), "train", str(folder / "tiny.yaml"), "--json"]
        command += [f"data.uri={folder / 'data'}", f"name={name}", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**environment, "RAY_ADDRESS": address}, **pipes)

    def steps(self) -> list[tuple[int, int]]:
        """How many workers there were at each step that rank 0 did, in order, and which step of the run it was."""
        lines = [line.split() for line in self.notes.read_text().splitlines()] if self.notes.exists() else []
        return [(int(size), int(step)) for rank, size, step in lines if rank == "0"]

    def wait(self, true: Callable[[], Any], seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until, (self.steps()[-3:], self.checkpoints())
            time.sleep(0.05)

    def wait_for_steps(self, count: int, workers: int) -> None:
        """Until so many steps more have been done by so many workers."""
        before = len(self.steps())
        self.wait(lambda: [size for size, _ in self.steps()[before:]].count(workers) >= count)

    def wait_until_saved(self) -> None:
        """Until the checkpoint that is due is written, beside the steps: a kill before costs those done meanwhile."""
        self.wait(lambda: self.steps()[-1][1] - self.checkpoints()[-1] <= EVERY)

    def checkpoints(self) -> list[int]:
        """The steps of the whole checkpoints, the newest last."""
        return sorted(int(path.parent.name[5:]) for path in self.run.glob("checkpoints/*/progress.json"))

    def end(self, status: int = 0) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=180)
        assert self.process.returncode == status, err
        return json.loads(out) if out else {}

    def repeated(self) -> int:
        """How often a step was done that had been done."""
        return sum(count - 1 for count in Counter(step for _, step in self.steps()).values())


@pytest.fixture
def start(folder: Path, environment: dict[str, str], nodes: Nodes, monkeypatch) -> Iterator[Callable[..., Driver]]:
    """Starts a training; at the end none is left."""
    started: list[Driver] = []

    def start(name: str, *more: str) -> Driver:
        started.append(Driver(folder, environment, nodes.address, name, *more))
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
    """The metrics of each epoch of a training that nothing befalls, in one process."""
    (folder / "slow").unlink(missing_ok=True)
    command = [sys.executable, "-m", "jobs.cli", "train", str(folder / "tiny.yaml"), f"data.uri={folder / 'data'}"]
    subprocess.run([*command, "scale.workers=0", "name=undisturbed"], env=environment, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZPOINT_HOME", environment["ZPOINT_HOME"])
        return find_run("undisturbed").epochs()


def same_curve(name: str, undisturbed: dict[int, dict[str, float]]) -> None:
    """One MLflow run with one point per epoch, of the losses that a training has which nothing befalls."""
    record = find_run(name)
    runs = tracking.find_runs(f"tags.`zpoint.run` = '{name}'")
    assert [(run.info.run_id, run.info.status) for run in runs] == [(record.run_id, "FINISHED")]
    for metric in ("train_recon", "train_kl", "valid_loss"):
        points = tracking.client().get_metric_history(record.run_id, metric)
        assert [point.step for point in points] == list(range(1, EPOCHS + 1)), metric
        wanted = [epoch[metric] for epoch in undisturbed.values()]
        assert [point.value for point in points] == pytest.approx(wanted, rel=1e-4), metric


def workers_of(driver: Driver) -> list[int]:
    """The processes of the workers; a node's are no children of ours, but have our STEPS in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_text().startswith("ray::RayTrainWorker"):
                mine = f"STEPS={driver.notes}".encode() in (path / "environ").read_bytes().split(b"\0")
                found += [int(path.name)] if mine else []
        except OSError:
            continue
    return sorted(found)


@pytest.mark.ray
def test_it_grows_and_shrinks_with_the_cluster_and_outlives_a_killed_worker(nodes: Nodes, start, undisturbed):
    first = nodes.do("add", 1)
    driver = start("elastic")
    driver.wait_for_steps(EVERY + 1, workers=1)
    second = nodes.do("add", 1)
    driver.wait_for_steps(EVERY + 1, workers=2)
    assert driver.repeated() == 0  # it saved before it grew

    workers = workers_of(driver)
    driver.wait_until_saved()
    os.kill(workers[0], signal.SIGKILL)
    driver.wait_for_steps(EVERY + 1, workers=2)
    assert driver.repeated() <= EVERY

    driver.wait_until_saved()
    nodes.do("kill", second)
    driver.wait_for_steps(1, workers=1)
    assert driver.repeated() <= 2 * EVERY
    driver.slow.unlink()
    driver.end()
    same_curve("elastic", undisturbed)
    nodes.do("kill", first)


@pytest.mark.ray
def test_a_killed_driver_a_node_that_will_end_and_ctrl_c(nodes: Nodes, start, undisturbed):
    rarely = ("checkpoint.every=0", "checkpoint.minutes=0")  # only where each epoch ends
    first, second = nodes.do("add", 1), nodes.do("add", 1)
    driver = start("shaken", *rarely)
    driver.wait_for_steps(STEPS + 2, workers=2)
    driver.process.kill()
    driver.process.wait()

    driver = start("shaken", *rarely)
    driver.wait_for_steps(2, workers=2)
    assert driver.steps()[-1][1] > STEPS
    driver.wait(lambda: driver.steps()[-1][1] % STEPS == 1)
    announced = driver.steps()[-1][1]
    nodes.do("drain", second, 10)
    driver.wait(lambda: announced < driver.checkpoints()[-1] < announced + STEPS - 1)  # not at an epoch's end
    repeated = driver.repeated()
    driver.wait(lambda: not workers_of(driver))  # the time is over
    nodes.do("kill", second)
    driver.wait_for_steps(2, workers=1)
    assert driver.repeated() <= repeated + EVERY
    repeated = driver.repeated()

    driver.process.send_signal(signal.SIGINT)
    driver.end(130)
    assert driver.checkpoints()[-1] == driver.steps()[-1][1]
    driver = start("shaken", *rarely)
    driver.slow.unlink()
    driver.end()
    assert driver.repeated() == repeated
    same_curve("shaken", undisturbed)
    nodes.do("kill", first)
