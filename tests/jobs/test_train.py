"""Training as a user starts it, and starts it again: in this process, and under Ray Train with a store of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import tracking
from jobs.record import find_record

METRICS = {"train_loss", "train_recon", "train_kl", "valid_loss", "valid_psnr", "swd_normal", "swd_gaussian"}


def curve(run_id: str, metric: str = "valid_psnr") -> list[int]:
    """The epochs of the points that MLflow holds of a metric."""
    return [point.step for point in tracking.client().get_metric_history(run_id, metric)]


def model_bytes(run: str) -> bytes:
    fs, root = find_record(run).place
    with fs.open_input_file(f"{root}/model/model.safetensors") as file:
        return file.read()


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.002)


@pytest.mark.usefixtures("tracking")
def test_a_run_is_trained_once_and_all_of_it_is_in_mlflow(zpoint, tiny: str, faces: Path):
    result = zpoint("train", tiny, f"data.uri={faces}")
    assert set(result["metrics"]) >= METRICS
    run = tracking.client().get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.z_dim"] == "3"
    assert run.data.params["data.uri"] == str(faces)
    assert run.data.tags["zpoint.dataset"] == find_record_content(result["run"])["dataset"]
    assert run.data.metrics == {key: pytest.approx(value) for key, value in result["metrics"].items()}
    assert all(curve(result["run_id"], metric) == [1, 2] for metric in result["metrics"])
    pictures = [file.path for file in tracking.client().list_artifacts(result["run_id"], "pictures")]
    assert pictures == ["pictures/epoch-001.png", "pictures/epoch-002.png"]

    again = zpoint("train", tiny, f"data.uri={faces}")
    assert again["already_finished"]
    assert (again["run"], again["run_id"]) == (result["run"], result["run_id"])
    assert again["metrics"] == result["metrics"]
    assert curve(result["run_id"]) == [1, 2]

    fresh = zpoint("train", tiny, "--fresh", f"data.uri={faces}")
    assert not fresh["already_finished"]
    assert fresh["run"] == result["run"]
    assert fresh["run_id"] != result["run_id"]
    assert [row["run_id"] for row in zpoint("runs")["runs"]] == [fresh["run_id"], result["run_id"]]


def find_record_content(run: str) -> dict[str, Any]:
    from aecore.files import read_json

    fs, root = find_record(run).place
    return read_json(fs, f"{root}/run.json")


@pytest.mark.usefixtures("tracking")
def test_a_changed_recipe_under_a_used_name_is_refused(zpoint, refused, tiny: str, faces: Path):
    zpoint("train", tiny, f"data.uri={faces}", "name=mine")
    assert "give another name=..., or --fresh" in refused("train", tiny, f"data.uri={faces}", "name=mine", "optim.lr=1")
    fresh = zpoint("train", tiny, f"data.uri={faces}", "name=mine", "optim.epochs=1", "--fresh")
    assert curve(fresh["run_id"]) == [1]


@pytest.mark.usefixtures("tracking")
def test_without_mlflow_it_trains_and_hands_in_later(zpoint, tiny: str, faces: Path, monkeypatch, caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    began = time.monotonic()
    without = zpoint("train", tiny, f"data.uri={faces}")
    assert time.monotonic() - began < 20
    assert without["run_id"] == ""
    assert 1 <= len([r for r in caplog.records if r.name == "cluster.tracking"]) <= 3
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    later = zpoint("train", tiny, f"data.uri={faces}")
    assert later["already_finished"]
    assert curve(later["run_id"]) == [1, 2]


@pytest.mark.usefixtures("tracking")
def test_points_are_handed_in_once_even_after_a_kill_in_between(zpoint, tiny: str, faces: Path):
    result = zpoint("train", tiny, f"data.uri={faces}")
    tracking.client().set_tag(result["run_id"], "zpoint.epoch", "1")  # killed before it noted epoch 2
    zpoint("train", tiny, f"data.uri={faces}")
    assert curve(result["run_id"]) == [1, 2]


@pytest.mark.usefixtures("tracking")
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(zpoint, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "optim.epochs=12", "checkpoint.every=4"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *argv, "name=killed"], stderr=subprocess.PIPE)
    checkpoints = Path(os.environ["ZPOINT_HOME"]) / "runs" / "killed" / "checkpoints"
    wait_until(lambda: process.poll() is not None or (checkpoints / "step-00000016" / "progress.json").exists())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""

    killed = zpoint(*argv, "name=killed")
    assert not killed["already_finished"]
    assert curve(killed["run_id"]) == list(range(1, 13))
    assert len(zpoint("runs")["runs"]) == 1
    zpoint(*argv, "name=whole")
    assert model_bytes("killed") == model_bytes("whole")
