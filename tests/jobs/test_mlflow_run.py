"""The MLflow run of a training: created once, each epoch logged once, ended as the training ends."""

import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from cluster import tracking
from jobs import mlflow_run as mlflow_run_module
from jobs.mlflow_run import MlflowRun
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
            MlflowRun(open_run(RECIPE, "t", MANIFEST)).start()
    again = MlflowRun(open_run(RECIPE, "t", MANIFEST))
    again.start()
    assert [run.info.run_id for run in tracking.find_runs()] == [again.run_id]
    fresh = MlflowRun(open_run(RECIPE, "t", MANIFEST, fresh=True))
    fresh.start()
    assert {run.info.run_id for run in tracking.find_runs()} == {again.run_id, fresh.run_id}


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


@pytest.mark.usefixtures("tracking")
def test_each_epoch_is_logged_once_with_the_time_of_its_file_and_its_images(monkeypatch: pytest.MonkeyPatch):
    run_store, logged = open_run(RECIPE, "t", MANIFEST), []
    run_store.save_epoch(1, {"loss": 3.0}, [0.5], b"png", "1 x CPU")
    run_store.save_epoch(2, {"loss": 2.0}, [0.5], None, "2 x CPU on 2 hosts")
    os.utime(Path(run_store.uri, "epochs", "epoch-001.json"), (1_000, 1_000))
    MlflowRun(run_store).end("FINISHED")
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
    mlflow_run = MlflowRun(run_store)
    assert mlflow_run.sync()
    assert mlflow_run.sync()
    assert logged == [3]


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError(), "FAILED")]
)
def test_mlflow_run_ends_as_its_training_does(error: BaseException | None, status: str):
    run_store = open_run(RECIPE, "t", MANIFEST)
    with suppress(type(error)) if error else nullcontext(), MlflowRun(run_store).log_training():
        if error:
            raise error
    assert tracking.client().get_run(run_store.run_id).info.status == status


@pytest.mark.usefixtures("tracking")
def test_run_that_has_begun_is_not_discarded():
    run_store = open_run(RECIPE, "t", MANIFEST)
    mlflow_run = MlflowRun(run_store)
    mlflow_run.start()
    (Path(run_store.uri) / "checkpoints").mkdir()
    mlflow_run.discard()
    assert (Path(run_store.uri) / "run.json").exists()
    assert tracking.client().get_run(run_store.run_id).info.status == "FAILED"
    (Path(run_store.uri) / "checkpoints").rmdir()
    mlflow_run.discard()
    assert not Path(run_store.uri).exists()
    assert tracking.find_runs() == []


def test_of_a_row_of_failed_syncs_only_the_first_is_logged(monkeypatch: pytest.MonkeyPatch, wait_until):
    warned, outcomes = [], iter([False, False, True, False, True])

    def sync(self: MlflowRun, *, warn: bool = True) -> bool:
        warned.append(warn)
        return next(outcomes, True)

    monkeypatch.setattr(MlflowRun, "start", lambda self: setattr(self, "synced_epoch", 0))
    monkeypatch.setattr(MlflowRun, "sync", sync)
    monkeypatch.setattr(mlflow_run_module, "SYNC_S", 0.001)
    monkeypatch.setattr(mlflow_run_module, "MAX_SYNC_S", 0.002)
    with MlflowRun(RunStore("mine", "/nowhere", run_id="1")).background_sync():
        wait_until(lambda: len(warned) > 5)
    assert warned[:6] == [True, False, False, True, False, True]
