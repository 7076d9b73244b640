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
def test_a_run_that_mlflow_opened_but_nobody_noted_is_found_again(monkeypatch: pytest.MonkeyPatch):
    create = tracking.create_run

    def killed(*args):
        create(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "create_run", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(RECIPE, "t", MANIFEST).ensure_mlflow_run()
    record = open_run(RECIPE, "t", MANIFEST)
    record.ensure_mlflow_run()
    assert [run.info.run_id for run in tracking.find_runs()] == [record.run_id]
    again = open_run(RECIPE, "t", MANIFEST, fresh=True)
    again.ensure_mlflow_run()
    assert {run.info.run_id for run in tracking.find_runs()} == {record.run_id, again.run_id}


def test_a_node_that_does_not_see_the_run_says_so(tmp_path: Path):
    """Such a worker would train on, and leave the model where nobody finds it."""
    record = RunStore("mine", str(tmp_path / "elsewhere"), "")
    with pytest.raises(ValueError, match=r"elsewhere: set ZPOINT_STORE"):
        record.check_visible()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/run.json").write_text("{}")
    record.check_visible()


def test_an_epoch_trained_again_stays_as_it_was_written(tmp_path: Path):
    record = RunStore("mine", str(tmp_path), "")
    record.save_epoch(1, {"loss": 1.0}, [0.5], b"png")
    record.save_epoch(1, {"loss": 2.0}, [0.5], b"other")
    record.save_epoch(2, {"loss": 3.0}, [0.5], None)
    record.save_epoch(1000, {"loss": 4.0}, [0.5], None)
    assert record.epochs() == {1: {"loss": 1.0}, 2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert record.epochs(after=1) == {2: {"loss": 3.0}, 1000: {"loss": 4.0}}
    assert (tmp_path / "epochs" / "epoch-001.png").read_bytes() == b"png"


@pytest.mark.usefixtures("tracking")
def test_another_training_may_make_the_experiment_first(monkeypatch: pytest.MonkeyPatch):
    made, client = tracking.experiment_id(), tracking.client()
    answers = [None, client.get_experiment_by_name("zpoint")]
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: answers.pop(0))
    assert tracking.experiment_id() == made


def test_several_trainings_may_make_the_embedded_database_at_once():
    code = "from cluster.tracking import create_run; input(); print(create_run('x', {}, {}))"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdin
        print(file=process.stdin, flush=True)
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert len({out for out, _ in ends}) == 2
