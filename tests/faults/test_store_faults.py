"""A training whose storage or MLflow is gone for a while, or that is asked to stop: in this process.

It goes on where it can, says what it could not do, and ends bit-identical to a run that nothing befell.
"""

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aecore.config import Recipe, check_recipe
from aecore.training.checkpoint import list_checkpoints
from cluster import tracking as mlflow
from jobs import run_store
from jobs.run_store import find_run
from jobs.train import stopping
from jobs.train.job import train
from tests.faults.bad_proxy import BadProxy, Fault
from tests.synthetic_dataset import make_dataset

STEPS, EPOCHS = 6, 6  # of an epoch, 6 steps of 8 images
At = dict[int, Callable[[], Any]]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    """Functions, each called after the step of its number; the training looks for wishes after each step."""
    todo, after = {}, stopping.StopConsensus.after_step

    def note(self: stopping.StopConsensus, step: int) -> int:
        todo.pop(step, lambda: None)()
        return after(self, step)

    monkeypatch.setattr(stopping.StopConsensus, "after_step", note)
    monkeypatch.setattr(stopping, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr("aecore.metrics.pixel.MAX_PATCHES", 256)
    return todo


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Recipe]:
    make_dataset(tmp_path / "data", {"train": [STEPS * 8], "valid": [8]}, 16)

    def named(name: str) -> Recipe:
        return check_recipe({
            "name": name, "data": {"uri": str(tmp_path / "data")}, "scale": {"workers": 0},
            "model": {"z_dim": 3, "channels": [4, 4, 4, 4]}, "optim": {"epochs": EPOCHS, "batch": 8},
            "checkpoint": {"every": 4, "minutes": 0},
        })  # fmt: skip

    return named


@pytest.fixture
def whole(recipe: Callable[[str], Recipe], tracking: None) -> bytes:
    """The weights of an undisturbed run."""
    train(recipe("whole"), "t")
    return weights("whole")


def weights(run: str) -> bytes:
    fs, root = find_run(run).folder
    with fs.open_input_file(f"{root}/model/model.safetensors") as file:
        return file.read()


def steps_of(run: str) -> list[int]:
    """The steps of its checkpoints, the newest first."""
    fs, root = find_run(run).folder
    return [int(path[-8:]) for path in list_checkpoints(fs, f"{root}/checkpoints")]


def points(run: str) -> list[int]:
    """The epochs that MLflow holds of it, in the one run that it has there."""
    (found,) = mlflow.find_runs(f"tags.`zpoint.run` = '{run}'")
    return [point.step for point in mlflow.client().get_metric_history(found.info.run_id, "valid_loss")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_before_they_stop(number: signal.Signals, at: At, recipe, whole: bytes):
    before = signal.getsignal(number)
    at[STEPS + 5] = lambda: os.kill(os.getpid(), number)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("stopped"), "t")
    assert signal.getsignal(number) is before
    assert steps_of("stopped")[0] == STEPS + 5
    assert points("stopped") == [1]
    assert mlflow.client().get_run(find_run("stopped").run_id).info.status == "KILLED"
    train(recipe("stopped"), "t")
    assert weights("stopped") == whole
    assert points("stopped") == list(range(1, EPOCHS + 1))


def test_another_ctrl_c_stops_at_once(at: At, recipe, tracking: None):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at[STEPS + 5] = twice
    with pytest.raises(KeyboardInterrupt):
        train(recipe("stopped"), "t")
    assert steps_of("stopped")[0] == STEPS + 4 - 2  # 8, the last one of every 4


def test_s3_answers_503_for_a_while(at: At, recipe, whole: bytes, s3: str, s3_server, monkeypatch, caplog):
    proxy = BadProxy(s3_server["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")

    def back() -> None:  # three epochs on, and not before the first try has failed
        until = time.monotonic() + 60
        while "cannot write a checkpoint" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.05)
        proxy.faults.clear()

    at[STEPS + 1] = lambda: proxy.faults.append(Fault("503", "", 1e9))
    at[4 * STEPS] = back
    try:
        train(recipe("on-s3"), "t")
        assert proxy.befell["503"] >= 3
        assert weights("on-s3") == whole
        assert points("on-s3") == list(range(1, EPOCHS + 1))
        assert steps_of("on-s3")[0] == EPOCHS * STEPS
    finally:
        proxy.stop()


def fill(disk: Path) -> None:
    subprocess.run(["dd", "if=/dev/zero", f"of={disk}/big", "bs=4k"], capture_output=True)


def test_a_full_disk_keeps_no_training_from_going_on(at: At, recipe, whole: bytes, small_disk, monkeypatch, caplog):
    disk = small_disk("2m")
    monkeypatch.setenv("ZPOINT_STORE", str(disk))

    def look() -> None:
        assert "cannot write a checkpoint" in caplog.text
        assert steps_of("full")[-1] <= STEPS
        (disk / "big").unlink()

    at[STEPS + 1], at[5 * STEPS + 1] = lambda: fill(disk), look
    train(recipe("full"), "t")
    assert weights("full") == whole
    assert points("full") == list(range(1, EPOCHS + 1))


def test_a_disk_that_stays_full_fails_after_a_while_and_the_command_goes_on(
    at: At, recipe, whole: bytes, small_disk, monkeypatch
):
    monkeypatch.setattr("aecore.training.checkpoint.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("aecore.training.checkpoint.RETRY_PAUSE_SECONDS", 0.1)
    disk = small_disk("2m")
    monkeypatch.setenv("ZPOINT_STORE", str(disk))

    at[3 * STEPS + 1] = lambda: fill(disk)
    with pytest.raises(OSError, match="No space left on device"):
        train(recipe("full"), "t")
    (disk / "big").unlink()
    train(recipe("full"), "t")
    assert weights("full") == whole
    assert points("full") == list(range(1, EPOCHS + 1))


def test_mlflow_is_back_while_it_trains(at: At, recipe, mlflow_template: Path, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_store, "SYNC_SECONDS", 0.05)
    monkeypatch.setattr(run_store, "MAX_SYNC_SECONDS", 0.1)
    gone = tmp_path / "server"
    gone.write_text("no folder, and so no database below it")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{gone}/mlflow.db")

    def back() -> None:
        until = time.monotonic() + 60  # MLflow's import takes longer than these epochs
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.02)
        assert len(caplog.records) == 1  # told once, not at every try
        assert "MLflow could not open the run" in caplog.text
        gone.unlink()
        gone.mkdir()
        shutil.copy(mlflow_template, gone / "mlflow.db")

    at[2 * STEPS] = back
    with caplog.at_level(logging.WARNING):
        result = train(recipe("late"), "t")
    assert len(caplog.records) == 1
    assert result["run_id"] == find_run("late").run_id != ""
    assert points("late") == list(range(1, EPOCHS + 1))
