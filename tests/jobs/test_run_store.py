"""The folder of a run and its MLflow run."""

import subprocess
import sys
from pathlib import Path

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from cluster import tracking
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
            open_run(RECIPE, "t", MANIFEST).ensure_mlflow_run()
    run_store = open_run(RECIPE, "t", MANIFEST)
    run_store.ensure_mlflow_run()
    assert [run.info.run_id for run in tracking.find_runs()] == [run_store.run_id]
    fresh = open_run(RECIPE, "t", MANIFEST, fresh=True)
    fresh.ensure_mlflow_run()
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
    run_store.save_epoch(1, {"loss": 1.0}, [0.5], b"png")
    run_store.save_epoch(1, {"loss": 2.0}, [0.5], b"other")
    run_store.save_epoch(2, {"loss": 3.0}, [0.5], None)
    run_store.save_epoch(1000, {"loss": 4.0}, [0.5], None)
    assert run_store.epochs() == {1: {"loss": 1.0}, 2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert run_store.epochs(after=1) == {2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert (tmp_path / "epochs" / "epoch-001.png").read_bytes() == b"png"


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
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 2
