"""The folder of a run and its MLflow run."""

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from cluster import tracking
from jobs import run_store as run_store_module
from jobs.run_store import RunStore, open_run

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=1, encoding="png", splits={})
RECIPE = check_recipe({"name": "mine"})


@pytest.mark.usefixtures("tracking")
def test_mlflow_run_created_just_before_a_kill_is_found_again(monkeypatch: pytest.MonkeyPatch):
    create_run = tracking.create_run

    def create_and_die(*args):
        create_run(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "create_run", create_and_die)
        with pytest.raises(KeyboardInterrupt):
            open_run(RECIPE, "t", MANIFEST).start_mlflow_run()
    run_store = open_run(RECIPE, "t", MANIFEST)
    run_store.start_mlflow_run()
    assert [run.info.run_id for run in tracking.find_runs()] == [run_store.run_id]
    fresh = open_run(RECIPE, "t", MANIFEST, fresh=True)
    fresh.start_mlflow_run()
    assert {run.info.run_id for run in tracking.find_runs()} == {run_store.run_id, fresh.run_id}


def test_worker_that_cannot_see_the_run_is_refused(tmp_path: Path):
    """It would train, and write the model where no other node finds it."""
    run_store = RunStore("mine", str(tmp_path / "elsewhere"), run_id="")
    with pytest.raises(ValueError, match=r"elsewhere: set ZPOINT_STORE"):
        run_store.check_visible()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/run.json").write_text("{}")
    run_store.check_visible()


def test_epoch_trained_again_keeps_its_first_files(tmp_path: Path):
    run_store = RunStore("mine", str(tmp_path), run_id="")
    run_store.save_epoch(1, {"loss": 1.0}, [0.5], b"png", "1 x CPU")
    run_store.save_epoch(1, {"loss": 2.0}, [0.5], b"other", "1 x CPU")
    run_store.save_epoch(2, {"loss": 3.0}, [0.5], None, "1 x CPU")
    run_store.save_epoch(1000, {"loss": 4.0}, [0.5], None, "1 x CPU")
    assert run_store.epochs() == {1: {"loss": 1.0}, 2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert run_store.epochs(after=1) == {2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert (tmp_path / "epochs" / "epoch-001.png").read_bytes() == b"png"
    assert [run_store.last_metric("loss", before=epoch) for epoch in (1, 2, 3, 1001)] == [0.0, 1.0, 3.0, 4.0]
    assert run_store.last_metric("gpu_hours", before=3) == 0.0  # of an epoch that an earlier version trained


@pytest.mark.usefixtures("tracking")
def test_experiment_created_by_another_training_meanwhile_is_used(monkeypatch: pytest.MonkeyPatch):
    experiment_id, client = tracking.experiment_id(), tracking.client()
    results = [None, client.get_experiment_by_name("zpoint")]
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: results.pop(0))
    assert tracking.experiment_id() == experiment_id


def test_two_trainings_may_create_the_embedded_database_at_once():
    code = "from cluster.tracking import create_run; input(); print(create_run('x', {}, {}))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 2


def test_name_of_another_recipe_or_dataset_is_refused():
    uri = open_run(RECIPE, "t", MANIFEST).uri
    assert open_run(RECIPE, "t", MANIFEST).uri == uri
    other_recipe = check_recipe({"name": "mine", "optim": {"lr": 1.0}})
    for recipe, manifest in ((other_recipe, MANIFEST), (RECIPE, MANIFEST.model_copy(update={"size": 17}))):
        with pytest.raises(ValueError, match="run 'mine' was made from another recipe or dataset"):
            open_run(recipe, "t", manifest)
        unnamed = recipe.model_copy(update={"name": ""})
        assert open_run(unnamed, "t", manifest).name != open_run(check_recipe({}), "t", MANIFEST).name
    (Path(uri) / "epochs").mkdir()
    assert open_run(other_recipe, "t", MANIFEST, fresh=True).uri == uri
    assert not (Path(uri) / "epochs").exists()


@pytest.mark.usefixtures("tracking")
def test_each_epoch_is_logged_once_with_the_time_of_its_file_and_its_images(monkeypatch: pytest.MonkeyPatch):
    run_store, logged = open_run(RECIPE, "t", MANIFEST), []
    run_store.save_epoch(1, {"loss": 3.0}, [0.5], b"png", "1 x CPU")
    run_store.save_epoch(2, {"loss": 2.0}, [0.5], None, "2 x CPU on 2 hosts")
    os.utime(Path(run_store.uri, "epochs", "epoch-001.json"), (1_000, 1_000))
    run_store.end_mlflow_run("FINISHED")
    client, run_id = tracking.client(), run_store.run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["zpoint.epoch"]) == ("FINISHED", "2")
    assert run.data.tags["zpoint.devices"] == "2 x CPU on 2 hosts"
    points = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 2.0)]
    assert points[0].timestamp == 1_000_000
    files = {file.path for folder in ("epochs", "pictures") for file in client.list_artifacts(run_id, folder)}
    assert files == {"epochs/epoch-001.json", "epochs/epoch-002.json", "pictures/epoch-001.png"}

    monkeypatch.setattr(tracking, "log_metrics", lambda run_id, metrics, epoch, time_ms: logged.append(epoch))
    run_store = open_run(RECIPE, "t", MANIFEST)
    run_store.save_epoch(3, {"loss": 1.0}, [0.5], None, "1 x CPU")
    assert run_store.sync_to_mlflow()
    assert run_store.sync_to_mlflow()
    assert logged == [3]


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError(), "FAILED")]
)
def test_mlflow_run_ends_as_its_training_does(error: BaseException | None, status: str):
    run_store = open_run(RECIPE, "t", MANIFEST)
    with suppress(type(error)) if error else nullcontext(), run_store.mlflow_run():
        if error:
            raise error
    assert tracking.client().get_run(run_store.run_id).info.status == status


@pytest.mark.usefixtures("tracking")
def test_run_that_has_begun_is_not_discarded():
    run_store = open_run(RECIPE, "t", MANIFEST)
    run_store.start_mlflow_run()
    (Path(run_store.uri) / "checkpoints").mkdir()
    run_store.discard()
    assert (Path(run_store.uri) / "run.json").exists()
    assert tracking.client().get_run(run_store.run_id).info.status == "FAILED"
    (Path(run_store.uri) / "checkpoints").rmdir()
    run_store.discard()
    assert not Path(run_store.uri).exists()
    assert tracking.find_runs() == []


def test_of_a_row_of_failed_syncs_only_the_first_is_logged(monkeypatch: pytest.MonkeyPatch, wait_until):
    warned, outcomes = [], iter([False, False, True, False, True])

    def sync(self: RunStore, *, warn: bool = True) -> bool:
        warned.append(warn)
        return next(outcomes, True)

    monkeypatch.setattr(RunStore, "start_mlflow_run", lambda self: None)
    monkeypatch.setattr(RunStore, "sync_to_mlflow", sync)
    monkeypatch.setattr(run_store_module, "SYNC_SECONDS", 0.001)
    monkeypatch.setattr(run_store_module, "MAX_SYNC_SECONDS", 0.002)
    with RunStore("mine", "/nowhere", run_id="1", synced_epoch=0).background_sync():
        wait_until(lambda: len(warned) > 5)
    assert warned[:6] == [True, False, False, True, False, True]
