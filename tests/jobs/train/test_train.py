"""Training as a user starts it, and starts it again: in this process, and under Ray Train with a store of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.fs as pafs
import pytest
import torch

import jobs.train.placement
import jobs.train.ray_trainer
from aecore.config import load_recipe
from aecore.data.node_cache import open_cache
from aecore.data.shards import load_manifest
from aecore.metrics.pixel import psnr
from aecore.model.autoencoder import build_model, to_float
from aecore.training.checkpoint import load_checkpoint, load_model
from aecore.training.loop import make_optimizer
from cluster import tracking
from cluster.settings import settings
from cluster.storage import open_uri
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, find_run
from jobs.train.stopping import interruptible
from serving.runtime.registry import find_model_version, read_model

JUDGED = {"hog_frechet_normal", "hog_frechet_gaussian"}
METRICS = {"train_loss", "train_recon", "train_kl", "valid_loss", "valid_psnr"} | JUDGED


def curve(run_id: str, metric: str = "valid_psnr") -> list[int]:
    """The epochs of the points that MLflow holds of a metric."""
    return [point.step for point in tracking.client().get_metric_history(run_id, metric)]


def model_bytes(run: str) -> bytes:
    fs, root = find_run(run).folder
    with fs.open_input_file(f"{root}/model/model.safetensors") as file:
        return file.read()


@pytest.mark.usefixtures("tracking")
def test_a_run_is_trained_once_and_all_of_it_is_in_mlflow(zpoint, tiny: str, faces: Path):
    result = zpoint("train", tiny, f"data.uri={faces}")
    assert set(result["metrics"]) >= METRICS
    run = tracking.client().get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.z_dim"] == "3"
    assert run.data.params["data.uri"] == str(faces)
    assert run.data.tags["zpoint.dataset"] == load_manifest(pafs.LocalFileSystem(), str(faces)).digest
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


@pytest.mark.usefixtures("tracking")
def test_with_batch_norm_the_model_is_the_trained_one_and_tested_as_it_is_used(zpoint, tiny: str, faces: Path):
    """Testing it, and fitting its latent statistics, once taught its norms the test images."""
    run = zpoint("train", tiny, f"data.uri={faces}", "model.norm=sync_batch")["run"]
    fs, root = find_run(run).folder
    saved = load_model(fs, f"{root}/model")
    trained = build_model(saved.recipe, saved.model.image)
    load_checkpoint(fs, f"{root}/checkpoints", trained, make_optimizer(trained, saved.recipe))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, saved.model.state_dict()[name]), name
    images = open_cache(settings().cache, open_dataset(str(faces)), "test")
    seen = to_float(torch.from_numpy(np.array(images)))
    made = saved.model.logits(saved.model.encode(seen).mean).sigmoid()
    error = (made - seen).square().flatten(1).mean(1)
    assert saved.metrics["test_psnr"] == pytest.approx(float(psnr(error).mean()), rel=1e-4)


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
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(zpoint, wait_until, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "optim.epochs=6", "checkpoint.every=4"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *argv, "name=killed"], stderr=subprocess.PIPE)
    wait_until(lambda: process.poll() is not None or saved("killed", 16))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""

    killed = zpoint(*argv, "name=killed")
    assert not killed["already_finished"]
    assert curve(killed["run_id"]) == list(range(1, 7))
    assert len(zpoint("runs")["runs"]) == 1
    zpoint(*argv, "name=whole")
    assert model_bytes("killed") == model_bytes("whole")


def saved(run: str, step: int) -> bool:
    """Whether there is a checkpoint of this step or a later one: of those in a row, some are never written."""
    found = Path(os.environ["ZPOINT_HOME"], "runs", run, "checkpoints").glob("step-*/progress.json")
    return any(int(path.parent.name[5:]) >= step for path in found)


ON_RAY = ("scale.workers=2", "optim.epochs=4", "checkpoint.every=4", "name=two")


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_two_workers_train_what_one_does_and_a_killed_worker_changes_nothing(
    zpoint, wait_until, tiny: str, faces: Path
):
    """Group norm knows no batch, the noise is that of the global batch: only the order of float32 sums differs
    between the worlds. Relative errors of 1e-7 a sum grow over 24 steps of Adam, which divides by the gradient's
    size, to about 1e-5 of the weights; 1e-4 of the losses is left as room."""
    two = zpoint("train", tiny, f"data.uri={faces}", *ON_RAY)
    assert curve(two["run_id"]) == [1, 2, 3, 4]
    one = zpoint("train", tiny, f"data.uri={faces}", *ON_RAY, "name=one", "scale.workers=0")["metrics"]
    losses = [key for key in one if key.startswith(("train_", "valid_"))]
    assert {key: two["metrics"][key] for key in losses} == pytest.approx({key: one[key] for key in losses}, rel=1e-4)

    killed: list[int] = []

    def kill_a_worker() -> None:
        wait_until(lambda: saved("killed", 8))  # in the second epoch of four
        killed.append(min(our_processes("ray::RayTrainWorker")))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    result = zpoint("train", tiny, f"data.uri={faces}", *ON_RAY, "name=killed")
    killer.join()
    assert len(killed) == 1
    assert curve(result["run_id"]) == [1, 2, 3, 4]
    assert model_bytes("killed") == model_bytes("two")


def our_processes(title: str) -> list[int]:
    """The descendants of this process whose command line begins with `title`."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_text()
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return [pid for pid in ours if titles.get(pid, "").startswith(title)]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_all_of_it_on_s3(zpoint, tiny: str, written_faces: Path, s3: str, monkeypatch: pytest.MonkeyPatch):
    fs, root = open_uri(f"{s3}/faces")
    pafs.copy_files(str(written_faces), root, destination_filesystem=fs)
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    # With a norm that asks all workers, of which one alone sums up the finished model.
    command = ("train", tiny, f"data.uri={s3}/faces", "scale.workers=2", "name=on-s3", "model.norm=sync_batch")
    result = zpoint(*command)
    assert result["uri"] == f"{s3}/store/runs/on-s3"
    assert curve(result["run_id"]) == [1, 2]
    champion = find_model_version(zpoint("promote", "on-s3", "--alias", "on-s3")["alias"])
    assert champion.source.startswith(f"{s3}/store/mlflow-artifacts/")
    assert read_model(champion.source, champion.tracking_uri).model.z_dim == 3
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=s3[5:])["Contents"]]
    assert any(key.startswith("store/runs/on-s3/checkpoints/step-00000012/") for key in keys)
    assert zpoint(*command)["already_finished"]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_damaged_shard_is_told_once_and_not_tried_again(refused, tiny: str, faces: Path, monkeypatch):
    (faces / "train-00001.parquet").write_bytes(b"X" * (faces / "train-00001.parquet").stat().st_size)
    monkeypatch.setenv("ZPOINT_CACHE", str(faces / "cache"))  # not the other tests', which is full
    said = refused("train", tiny, f"data.uri={faces}", "scale.workers=1", "name=damaged")
    assert "train-00001.parquet is damaged: its sha256 differs" in said
    assert not Path(os.environ["ZPOINT_HOME"], "runs", "damaged").exists()
    assert tracking.find_runs("tags.`zpoint.run` = 'damaged'") == []


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_more_workers_than_ever_fit_are_refused_at_once(refused, tiny: str, faces: Path):
    said = refused("train", tiny, f"data.uri={faces}", "scale.workers=99", "name=wide")
    assert "99 workers with 1 CPU each: this machine has resources for" in said


def test_there_is_room_for_one_worker_on_each_gpu(monkeypatch):
    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [node, node | {"Alive": False}, {"Alive": True, "Resources": {"CPU": 4}}])
    each = {"GPU": 1.0, "CPU": 1.0}
    assert (jobs.train.placement.worker_capacity(each), jobs.train.placement.worker_capacity({"CPU": 0.5})) == (
        1,
        40,
    )
    with pytest.raises(ValueError, match=r"2 workers with 1 GPU and 1 CPU each: .* set scale.workers=1"):
        jobs.train.placement.wait_for_resources(2, each)


@pytest.mark.usefixtures("ray_cluster")
def test_a_wait_for_room_is_said_and_ends_with_room_or_ctrl_c(monkeypatch, caplog):
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(jobs.train.placement, "WARN_AFTER_SECONDS", 0.2)
    each = {"CPU": 1.0}
    taken = placement_group([each] * jobs.train.placement.worker_capacity(each))
    assert taken.wait(60)
    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), interruptible(signal.default_int_handler):  # it may be ignored here
        jobs.train.placement.wait_for_resources(1, each)
    assert "waiting for resources for 1 worker with 1 CPU each; the idle cluster has resources for" in caplog.text
    threading.Timer(1, remove_placement_group, [taken]).start()
    jobs.train.placement.wait_for_resources(1, each)


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_worker_that_dies_as_its_work_is_handed_to_it_is_replaced(zpoint, tiny: str, faces: Path, monkeypatch):
    """Ray Train itself gives the training up then: such a death is neither of its start nor in its loop."""
    died = Path("died").resolve()

    class DeadlyOnce:
        def __init__(self) -> None:
            self.died = died

        def __setstate__(self, state: dict[str, Any]) -> None:  # where a worker unpickles what it is to do
            self.__dict__ = state
            if not self.died.exists():
                self.died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def __call__(self, **told: Any) -> None:
            import jobs.train.ray_trainer

            jobs.train.ray_trainer.train_loop_per_worker(**told)  # the worker's own, not this

    monkeypatch.setattr(jobs.train.ray_trainer, "train_loop_per_worker", DeadlyOnce())
    result = zpoint("train", tiny, "scale.workers=1", f"data.uri={faces}")
    assert died.exists()
    assert curve(result["run_id"]) == [1, 2]


@pytest.fixture
def other_ray() -> Iterator[None]:
    """Another Ray on this machine, started later."""
    command = [sys.executable, str(Path(__file__).parents[2] / "faults" / "nodes.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    assert process.stdout.readline()  # its address
    yield
    process.communicate()


@pytest.mark.usefixtures("ray_cluster", "tracking", "other_ray")
def test_another_ray_on_the_machine_disturbs_nothing(zpoint, tiny: str, faces: Path, caplog):
    zpoint("train", tiny, "scale.workers=1", "optim.epochs=6", f"data.uri={faces}")
    assert caplog.messages == []  # no worker died


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_ctrl_c_keeps_what_was_done(interrupted, tiny: str, faces: Path):
    argv = ["train", tiny, f"data.uri={faces}", "scale.workers=1", "name=stopped", "optim.epochs=50"]
    interrupted("stopped", *argv)
    record = find_run("stopped")
    assert 1 <= len(record.epochs()) < 50
    assert tracking.client().get_run(record.run_id).info.status == "KILLED"
    assert our_processes("ray::RayTrainWorker") == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_keys_are_in_nothing_that_rays_dashboard_tells(tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all")
    recipe = load_recipe(Path(tiny), [f"data.uri={faces}", "scale.workers=2"])
    dataset, run_store = open_dataset(str(faces)), RunStore("some-run", str(faces), "")
    context = jobs.train.ray_trainer.make_trainer(recipe, dataset, run_store, []).train_run_context
    assert "some-run" in repr(context)
    assert "not-for-all" not in repr(context)
