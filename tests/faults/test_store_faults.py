"""Faults of storage and MLflow, and stops, of a training in this process.

It trains on if it can, logs what failed, and ends bit-identical to an undisturbed run.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aecore.config import Recipe, check_recipe
from aecore.errors import one_line
from aecore.training.checkpoint import list_checkpoints
from cluster import tracking as mlflow
from jobs import mlflow_run
from jobs.promote import promote
from jobs.run_store import find_run
from jobs.train import stopping
from jobs.train.job import train
from tests.faults.bad_proxy import BadProxy, Fault
from tests.jobs.runs import logged_epochs, model_bytes
from tests.synthetic_dataset import make_dataset

pytestmark = pytest.mark.usefixtures("tracking")
STEPS, EPOCHS = 6, 6  # an epoch has 6 steps of 8 images
Hooks = dict[int, Callable[[], Any]]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    """Give a dict of functions by the step after which they are called; the workers sync after each step."""
    hooks, after_step = {}, stopping.StopConsensus.after_step

    def call_hook(self: stopping.StopConsensus, step: int) -> stopping.Action:
        hooks.pop(step, lambda: None)()
        return after_step(self, step)

    monkeypatch.setattr(stopping.StopConsensus, "after_step", call_hook)
    monkeypatch.setattr(stopping, "SYNC_S", 0.0)
    monkeypatch.setattr("aecore.metrics.pixel.NUM_PATCHES", 256)
    return hooks


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recipe]:
    """Write a dataset; gives a function that returns the recipe of the run of a name."""
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder, {"train": [STEPS * 8], "valid": [8]}, 16)

    def named(name: str) -> Recipe:
        return check_recipe({
            "name": name, "data": {"uri": str(folder)}, "scale": {"workers": 0},
            "model": {"z_dim": 3, "channels": [4, 4, 4, 4]}, "optim": {"epochs": EPOCHS, "batch": 8},
            "checkpoint": {"every": 4, "minutes": 0},
        })  # fmt: skip

    return named


@pytest.fixture(scope="module")
def undisturbed(
    recipe: Callable[[str], Recipe], mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """Train undisturbed, once for all tests; gives the weights."""
    home = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(mlflow_template, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZPOINT_HOME", str(home))
        patch.setenv("ZPOINT_CACHE", str(home / "cache"))
        patch.setattr("aecore.metrics.pixel.NUM_PATCHES", 256)
        train(recipe("undisturbed"), "t")
        return model_bytes("undisturbed")


def checkpoint_steps(run: str) -> list[int]:
    """Return the steps of the run's checkpoints, the newest first."""
    fs, root = find_run(run).folder
    return [int(path[-8:]) for path in list_checkpoints(fs, f"{root}/checkpoints")]


def epochs_in_mlflow(run: str) -> list[int]:
    """Return the logged epochs of the run, which has one MLflow run."""
    (logged_run,) = mlflow.find_runs(f"tags.`zpoint.run` = '{run}'")
    return logged_epochs(logged_run.info.run_id, "valid_loss")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_before_it_stops(signum: signal.Signals, hooks: Hooks, recipe, undisturbed: bytes):
    handler = signal.getsignal(signum)
    hooks[STEPS + 5] = lambda: os.kill(os.getpid(), signum)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("stopped"), "t")
    assert signal.getsignal(signum) is handler
    assert checkpoint_steps("stopped")[0] == STEPS + 5
    assert epochs_in_mlflow("stopped") == [1]
    assert mlflow.client().get_run(find_run("stopped").run_id).info.status == "KILLED"
    train(recipe("stopped"), "t")
    assert model_bytes("stopped") == undisturbed
    assert epochs_in_mlflow("stopped") == list(range(1, EPOCHS + 1))


def test_second_ctrl_c_stops_without_a_checkpoint(hooks: Hooks, recipe):
    def press_ctrl_c_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    hooks[STEPS + 5] = press_ctrl_c_twice
    with pytest.raises(KeyboardInterrupt):
        train(recipe("stopped"), "t")
    assert checkpoint_steps("stopped")[0] == STEPS + 4 - 2  # 8, the last multiple of 4


# At step 11 another process has written a checkpoint and takes the lease over.
LOST_TRAINING = """
import json, os, sys, time
import boto3
from aecore.config import check_recipe
from cluster import lock
from jobs.train import job, stopping
after_step = stopping.StopConsensus.after_step
def lose_the_lease(self, step):
    if step == 11:
        store = boto3.client("s3")
        bucket, _, key = os.environ["ZPOINT_STORE"].removeprefix("s3://").partition("/")
        owner = lock._this_process() | {"machine": "another", "pid": 77}
        store.put_object(Bucket=bucket, Key=f"{key}/runs/lost/checkpoints/step-00000100/progress.json", Body="{}")
        store.put_object(Bucket=bucket, Key=f"{key}/locks/run-lost", Body=json.dumps(owner))
        time.sleep(60)  # it exits before
    return after_step(self, step)
stopping.StopConsensus.after_step = lose_the_lease
stopping.SYNC_S, lock.RENEW_S = 0.0, 0.05
job.train(check_recipe(json.loads(sys.argv[1])), "t")
"""


def test_training_that_lost_its_lease_writes_nothing_more(recipe, s3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    command = [sys.executable, "-c", LOST_TRAINING, recipe("lost").model_dump_json()]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1, process.stderr
    assert "run-lost was taken over by pid 77" in process.stderr
    assert [step for step in checkpoint_steps("lost") if step > 8] == [100]


def test_training_survives_http_503_of_s3(
    hooks: Hooks, recipe, undisturbed: bytes, s3: str, s3_server, monkeypatch, caplog
):
    proxy = BadProxy(s3_server["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")

    def recover() -> None:  # after three epochs, and at least one failed write
        deadline = time.monotonic() + 60
        while "cannot write a checkpoint" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        proxy.faults.clear()

    hooks[STEPS + 1] = lambda: proxy.faults.append(Fault("503", "", 1e9))
    hooks[4 * STEPS] = recover
    try:
        train(recipe("on-s3"), "t")
        assert proxy.injected["503"] >= 3
        assert model_bytes("on-s3") == undisturbed
        assert epochs_in_mlflow("on-s3") == list(range(1, EPOCHS + 1))
        assert checkpoint_steps("on-s3")[0] == EPOCHS * STEPS
    finally:
        proxy.stop()


def fill(disk: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={disk}/big", "bs=4k"], capture_output=True)


def test_training_survives_a_full_disk(
    hooks: Hooks, recipe, undisturbed: bytes, small_disk, monkeypatch, caplog, wait_until
):
    disk = small_disk("2m")
    monkeypatch.setenv("ZPOINT_STORE", str(disk))

    def free_disk() -> None:
        wait_until(lambda: "cannot write a checkpoint" in caplog.text)
        assert checkpoint_steps("full")[-1] <= STEPS
        (disk / "big").unlink()

    hooks[STEPS + 1], hooks[5 * STEPS + 1] = lambda: fill(disk), free_disk
    train(recipe("full"), "t")
    assert model_bytes("full") == undisturbed
    assert epochs_in_mlflow("full") == list(range(1, EPOCHS + 1))


def test_disk_that_stays_full_fails_the_training_and_the_command_resumes(
    hooks: Hooks, recipe, undisturbed: bytes, small_disk, monkeypatch
):
    monkeypatch.setattr("aecore.training.checkpoint.RETRY_S", 0.5)
    monkeypatch.setattr("aecore.training.checkpoint.RETRY_PAUSE_S", 0.1)
    disk = small_disk("2m")
    monkeypatch.setenv("ZPOINT_STORE", str(disk))

    hooks[3 * STEPS + 1] = lambda: fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        train(recipe("full"), "t")
    (disk / "big").unlink()
    train(recipe("full"), "t")
    assert model_bytes("full") == undisturbed
    assert epochs_in_mlflow("full") == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize("variable", ["ZPOINT_HOME", "ZPOINT_STORE"])
def test_full_disk_at_the_start_is_named_by_the_file(recipe, small_disk, monkeypatch, capsys, variable: str):
    disk = small_disk("64k")
    fill(disk)
    monkeypatch.setenv(variable, str(disk))
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(recipe("full"), "t")
    assert one_line(caught.value).startswith(f"{disk}/")
    assert one_line(caught.value).endswith(": No space left on device; free some space there")


@pytest.mark.parametrize("created", [False, True])
def test_training_survives_a_full_disk_of_mlflow(
    recipe, undisturbed: bytes, small_disk, mlflow_template: Path, monkeypatch, caplog, created: bool
):
    """SQLite names no file; a database that is half created when the space ends is completed later."""
    disk = small_disk("20m" if created else "400k")
    if created:
        shutil.copy(mlflow_template, disk / "mlflow.db")
        fill(disk)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    result = train(recipe("unlogged"), "t")
    assert model_bytes("unlogged") == undisturbed
    cause = f"no space left on the disk of {disk}/mlflow.db; free some space there"
    assert caplog.messages[-1].endswith(f": {cause}")
    assert result["run_id"] == ""
    with pytest.raises(ValueError, match=f"run 'unlogged' is not in MLflow, which cannot take it now: {cause}"):
        promote("unlogged")
    (disk / "big").unlink(missing_ok=True)
    small_disk("40m")
    train(recipe("unlogged"), "t")
    assert epochs_in_mlflow("unlogged") == list(range(1, EPOCHS + 1))


def test_mlflow_that_recovers_gets_all_epochs(
    hooks: Hooks, recipe, mlflow_template: Path, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(mlflow_run, "SYNC_S", 0.05)
    monkeypatch.setattr(mlflow_run, "MAX_SYNC_S", 0.1)
    server = tmp_path / "server"
    server.write_text("a file: no database can be below it")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}/mlflow.db")

    def recover() -> None:
        deadline = time.monotonic() + 60  # MLflow's import takes longer than these epochs
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(caplog.records) == 1  # logged once, not at every attempt
        assert "MLflow could not open the run" in caplog.text
        server.unlink()
        server.mkdir()
        shutil.copy(mlflow_template, server / "mlflow.db")

    hooks[2 * STEPS] = recover
    with caplog.at_level(logging.WARNING):
        result = train(recipe("late"), "t")
    assert len(caplog.records) == 1
    assert result["run_id"] == find_run("late").run_id != ""
    assert epochs_in_mlflow("late") == list(range(1, EPOCHS + 1))
