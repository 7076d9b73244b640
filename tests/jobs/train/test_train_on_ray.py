"""Training under Ray Train, by the command that a user starts; faults of nodes are in tests/faults."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs as pafs
import pytest

import jobs.train.ray_trainer
from aecore.config import load_recipe
from cluster import tracking
from cluster.signals import interruptible
from cluster.storage import open_uri
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, find_run
from jobs.train import placement
from serving.runtime.registry import find_model_version, read_model
from tests.jobs.runs import has_checkpoint, logged_epochs, model_bytes
from tests.sockets import command_line, descendants, listening_addresses

TWO_WORKERS = ("scale.workers=2", "optim.epochs=4", "checkpoint.every=4", "name=two")


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_two_workers_train_as_one(zpoint, wait_until, tiny: str, faces: Path):
    """Compare losses of two workers and one to 1e-4; look at listening sockets.

    Group norm does not depend on the batch, and the noise is that of the global batch: only the order of float32 sums
    differs between the worlds. Relative errors of 1e-7 a sum grow over 24 steps of Adam, which divides by the
    gradient's size, to about 1e-5 of the weights; 1e-4 of the losses leaves a margin.
    """
    exposed_pids: list[int] = []

    def record_sockets() -> None:
        wait_until(lambda: has_checkpoint("two", 4), 300)
        exposed_pids.extend(pid for pid in descendants(os.getpid()) if {*listening_addresses([pid])} - {"127.0.0.1"})

    recorder = threading.Thread(target=record_sockets)
    recorder.start()
    two = zpoint("train", tiny, f"data.uri={faces}", *TWO_WORKERS)
    recorder.join()
    # The one socket that is not on loopback: torch's TCPStore in the worker of rank 0, which takes no address to bind.
    assert len(exposed_pids) <= 1
    assert logged_epochs(two["run_id"]) == [1, 2, 3, 4]
    one = zpoint("train", tiny, f"data.uri={faces}", *TWO_WORKERS, "name=one", "scale.workers=0")["metrics"]
    losses = [key for key in one if key.startswith(("train_", "valid_"))]
    assert {key: two["metrics"][key] for key in losses} == pytest.approx({key: one[key] for key in losses}, rel=1e-4)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_killed_worker_changes_no_bit_of_the_model(zpoint, wait_until, tiny: str, faces: Path):
    def kill_a_worker() -> None:
        wait_until(lambda: has_checkpoint("killed", 8), 300)  # in the second epoch of four
        os.kill(min(training_workers()), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    killed = zpoint("train", tiny, f"data.uri={faces}", *TWO_WORKERS, "name=killed")
    killer.join()
    assert logged_epochs(killed["run_id"]) == [1, 2, 3, 4]
    zpoint("train", tiny, f"data.uri={faces}", *TWO_WORKERS)
    assert model_bytes("killed") == model_bytes("two")


def training_workers() -> list[int]:
    """Return the process ids of the training workers that this process has started."""
    return [pid for pid in descendants(os.getpid()) if command_line(pid).startswith("ray::RayTrainWorker")]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_dataset_run_and_model_version_are_on_s3(zpoint, tiny: str, written_faces: Path, s3: str, monkeypatch):
    fs, root = open_uri(f"{s3}/faces")
    pafs.copy_files(str(written_faces), root, destination_filesystem=fs)
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    # Synchronised batch norm is a collective, and rank 0 alone computes the latent statistics at the end.
    command = ("train", tiny, f"data.uri={s3}/faces", "scale.workers=2", "name=on-s3", "model.norm=sync_batch")
    result = zpoint(*command)
    assert result["uri"] == f"{s3}/store/runs/on-s3"
    assert logged_epochs(result["run_id"]) == [1, 2]
    version = find_model_version(zpoint("promote", "on-s3", "--alias", "on-s3")["alias"])
    assert version.source.startswith(f"{s3}/store/mlflow-artifacts/")
    assert read_model(version.source, version.tracking_uri).model.z_dim == 3
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=s3[5:])["Contents"]]
    assert any(key.startswith("store/runs/on-s3/checkpoints/step-00000012/") for key in keys)
    assert zpoint(*command)["already_finished"]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_damaged_shard_is_refused_without_a_retry(refused, tiny: str, faces: Path, monkeypatch):
    (faces / "train-00001.parquet").write_bytes(b"X" * (faces / "train-00001.parquet").stat().st_size)
    monkeypatch.setenv("ZPOINT_CACHE", str(faces / "cache"))  # an empty one
    message = refused("train", tiny, f"data.uri={faces}", "scale.workers=1", "name=damaged")
    assert "train-00001.parquet is damaged: its sha256 differs" in message
    assert not Path(os.environ["ZPOINT_HOME"], "runs", "damaged").exists()
    assert tracking.find_runs("tags.`zpoint.run` = 'damaged'") == []


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_more_workers_than_a_local_ray_can_start_are_refused(refused, tiny: str, faces: Path):
    message = refused("train", tiny, f"data.uri={faces}", "scale.workers=99", "name=wide")
    assert "99 workers with 1 CPU each: this machine has resources for" in message


def test_capacity_is_one_worker_per_gpu(monkeypatch):
    node = {"NodeID": "a", "Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}}
    nodes = [node, node | {"NodeID": "b", "Alive": False}, {"NodeID": "c", "Alive": True, "Resources": {"CPU": 4}}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.util.list_named_actors", lambda all_namespaces: [])
    gpu_worker = {"GPU": 1.0, "CPU": 1.0}
    assert placement.worker_capacity(gpu_worker) == 1
    assert placement.worker_capacity({"CPU": 0.5}) == 40
    with pytest.raises(ValueError, match=r"2 workers with 1 GPU and 1 CPU each: .* set scale.workers=1"):
        placement.wait_for_resources(2, gpu_worker)


@pytest.fixture
def all_cpus(ray_cluster: None) -> Iterator[Any]:
    """Hold all CPUs of the session's Ray by a placement group, which a test may remove earlier."""
    from ray.util.placement_group import placement_group, remove_placement_group

    resources = {"CPU": 1.0}
    group = placement_group([resources] * placement.worker_capacity(resources))
    assert group.wait(60)
    yield group
    remove_placement_group(group)


def test_wait_for_resources_is_logged_and_ends_with_ctrl_c_or_resources(all_cpus, monkeypatch, caplog, wait_until):
    from ray.util.placement_group import remove_placement_group

    monkeypatch.setattr(placement, "WARN_AFTER_S", 0.2)
    message = "waiting for resources for 1 worker with 1 CPU each; the idle cluster has resources for"

    def press_ctrl_c() -> None:
        wait_until(lambda: message in caplog.text)
        signal.raise_signal(signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    presser.start()
    with pytest.raises(KeyboardInterrupt), interruptible(signal.default_int_handler):  # SIGINT may be ignored here
        placement.wait_for_resources(1, {"CPU": 1.0})
    presser.join()
    threading.Timer(1, remove_placement_group, [all_cpus]).start()
    placement.wait_for_resources(1, {"CPU": 1.0})


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_worker_that_dies_between_start_and_loop_is_replaced(zpoint, tiny: str, faces: Path, monkeypatch):
    """Ray Train gives up at such a death: it retries a worker's start and its loop only."""
    marker = Path("died").resolve()

    class DiesOnce:
        def __init__(self) -> None:
            self.marker = marker

        def __setstate__(self, state: dict[str, Any]) -> None:  # called when a worker unpickles its loop
            self.__dict__ = state
            if not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def __call__(self, **arguments: Any) -> None:
            import jobs.train.ray_trainer

            jobs.train.ray_trainer.train_loop_per_worker(**arguments)  # the worker's, which is not patched

    monkeypatch.setattr(jobs.train.ray_trainer, "train_loop_per_worker", DiesOnce())
    result = zpoint("train", tiny, "scale.workers=1", f"data.uri={faces}")
    assert marker.exists()
    assert logged_epochs(result["run_id"]) == [1, 2]


@pytest.fixture
def other_ray() -> Iterator[None]:
    """Start another Ray on this machine, after the session's."""
    command = [sys.executable, str(Path(__file__).parents[2] / "faults" / "nodes.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    assert process.stdout.readline()  # its address
    yield
    process.communicate()


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster", "tracking", "other_ray")
def test_another_ray_on_the_machine_disturbs_nothing(zpoint, tiny: str, faces: Path, caplog):
    zpoint("train", tiny, "scale.workers=1", "optim.epochs=6", f"data.uri={faces}")
    assert caplog.messages == []  # no worker died


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_ctrl_c_keeps_finished_epochs(interrupted, tiny: str, faces: Path, wait_until):
    argv = ["train", tiny, f"data.uri={faces}", "scale.workers=1", "name=stopped", "optim.epochs=5000"]
    interrupted("stopped", *argv)
    run_store = find_run("stopped")
    assert 1 <= len(run_store.epochs()) < 5000
    assert tracking.client().get_run(run_store.run_id).info.status == "KILLED"
    wait_until(lambda: training_workers() == [], 60)  # Ray does not wait for the end of a process that it kills


@pytest.mark.usefixtures("ray_cluster")
def test_keys_are_not_in_what_rays_dashboard_shows(tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-all")
    recipe = load_recipe(Path(tiny), [f"data.uri={faces}", "scale.workers=2"])
    run_store = RunStore("some-run", str(faces), run_id="")
    trainer = jobs.train.ray_trainer.make_trainer(recipe, open_dataset(str(faces)), run_store, callbacks=[])
    assert "some-run" in repr(trainer.train_run_context)
    assert "not-for-all" not in repr(trainer.train_run_context)
