"""Campaigns: every trial reports every epoch, the best run follows the rule, and no finished work is repeated."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aecore.config import load_recipe
from cluster import tracking
from jobs.dataset import open_dataset
from jobs.run_store import find_run, lock_run, run_name
from jobs.tune.campaign import campaign_file, lock_campaign, read_campaign
from jobs.tune.job import tune
from jobs.tune.lookup import expand_campaigns
from jobs.tune.selection import choose_best, score
from tests.jobs.conftest import RECIPE, small_trainings
from tests.jobs.runs import logged_epochs
from tests.sockets import command_line, descendants

on_ray = pytest.mark.usefixtures("ray_cluster", "tracking")
EPOCHS = 6


def trial_names(run_id: str) -> list[str]:
    """Return the names of the MLflow runs nested under a campaign's."""
    return [run.info.run_name for run in tracking.find_runs(f"tags.`mlflow.parentRunId` = '{run_id}'")]


def epoch_files(pattern: str = "*") -> dict[Path, int]:
    """Return the epoch files of the runs that match, with their modification times."""
    paths = Path(os.environ["ZPOINT_HOME"], "runs").glob(f"{pattern}/epochs/*")
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def tune_argv(written_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments of the finished campaign `three`; by its seed no other test trains its runs."""
    path = tmp_path_factory.mktemp("tune") / "tiny.yaml"
    path.write_text(RECIPE)
    return [str(path), f"data.uri={written_faces}", "name=three", f"optim.epochs={EPOCHS}", "optim.seed=3"]


@pytest.fixture(scope="module")
def finished_campaign(ray_cluster: None, session_tracking: None, tune_argv: list[str]) -> dict[str, Any]:
    """Run campaign `three`: three trials, two at a time; gives its result."""
    with small_trainings():
        return tune(load_recipe(Path(tune_argv[0]), tune_argv[1:]), "tiny")


@on_ray
def test_campaign_runs_and_logs_each_trial(finished_campaign: dict[str, Any]):
    runs = [trial["run"] for trial in finished_campaign["trials"]]
    assert len(set(runs)) == 3
    assert sorted(trial_names(finished_campaign["run_id"])) == sorted(runs)
    for trial in finished_campaign["trials"]:
        run_store = find_run(trial["run"])
        assert logged_epochs(run_store.run_id) == list(range(1, EPOCHS + 1))
        assert trial["point"]["model.z_dim"] in (2, 3)
        assert 0.01 <= trial["point"]["loss.kl_factor"] <= 1
        assert trial["metrics"]["valid_psnr"] == run_store.epochs()[EPOCHS]["valid_psnr"]
        assert [metrics["epoch"] for metrics in trial["judged"]] == [2, 4, 6]
        assert [span.end > span.start for span in trial["spans"]] == [True]
        assert tracking.client().get_run(run_store.run_id).info.status == "FINISHED"
    campaign_run = tracking.client().get_run(finished_campaign["run_id"])
    assert (campaign_run.info.status, campaign_run.data.params["search.trials"]) == ("FINISHED", "3")
    assert not {"model.z_dim", "loss.kl_factor"} & set(campaign_run.data.params)  # each trial has its own
    artifacts = tracking.client().list_artifacts(campaign_run.info.run_id)
    assert sorted(file.path for file in artifacts) == ["campaign.json", "report", "trials.json"]


@on_ray
def test_finished_campaign_has_its_report_and_promotes_any_of_its_runs(finished_campaign: dict[str, Any], zpoint):
    page = Path(os.environ["ZPOINT_HOME"], "campaigns", "three", "campaign.html").read_text()
    assert page.count('src="data:image/webp') == 2 * 3
    other = next(trial["run"] for trial in finished_campaign["trials"] if trial["run"] != finished_campaign["best"])
    promoted = zpoint("promote", "three", "--run", other.removeprefix("tiny-"), "--alias", "other")
    assert promoted["run"] == other
    assert expand_campaigns(["three", other]) == [*finished_campaign["pareto_front"], other]


@on_ray
def test_a_trial_is_the_run_that_zpoint_train_names(finished_campaign: dict[str, Any], tune_argv: list[str], zpoint):
    trial = finished_campaign["trials"][0]
    point = [f"{key}={value}" for key, value in trial["point"].items()]
    trained = zpoint("train", tune_argv[0], *(word for word in tune_argv[1:] if "name=" not in word), *point)
    assert (trained["run"], trained["already_finished"]) == (trial["run"], True)


@on_ray
def test_best_run_follows_the_rule(finished_campaign: dict[str, Any]):
    models = [score(trial["run"], trial["judged"][-1], "best") for trial in finished_campaign["trials"]]
    best = choose_best(models, 3.0)
    assert (finished_campaign["best"], finished_campaign["sampler"]) == (best.name, best.sampler)
    assert finished_campaign["best"] in finished_campaign["pareto_front"]
    assert "within 3 dB" in finished_campaign["rule"]


@on_ray
def test_finished_campaign_is_ranked_anew_but_not_run_again(
    finished_campaign: dict[str, Any], tune_argv: list[str], zpoint
):
    home = Path(os.environ["ZPOINT_HOME"])
    assert list((home / "ray").iterdir()) == []  # Tune's files would show the environment, with the keys of S3
    files = epoch_files()
    result = json.loads(json.dumps(finished_campaign))  # spans are lists in JSON
    assert zpoint("tune", *tune_argv) == result | {"already_finished": True}
    assert zpoint("promote", "three", "--alias", "three")["run"] == finished_campaign["best"]
    ranked = zpoint("tune", *tune_argv, "search.psnr_slack=0", "search.sampler=normal")
    alive = [trial for trial in finished_campaign["trials"] if trial["metrics"]["valid_active_units"]]
    best_psnr = max(alive, key=lambda trial: trial["metrics"]["valid_psnr"])
    assert (ranked["best"], ranked["already_finished"]) == (best_psnr["run"], True)
    result = json.loads(json.dumps(finished_campaign))  # spans are lists in JSON
    assert zpoint("tune", *tune_argv) == result | {"already_finished": True}
    assert epoch_files() == files


@on_ray
def test_campaign_is_extended_and_trains_no_point_twice(
    finished_campaign: dict[str, Any], tune_argv: list[str], zpoint
):
    """With another name and more trials it takes the runs of the first one, and trains the points that are new."""
    files = epoch_files()
    first = [trial["point"] for trial in finished_campaign["trials"]]
    argv = [*(word for word in tune_argv if "name=" not in word), "name=four", "search.trials=4"]
    campaign = zpoint("tune", *argv)
    assert [trial["point"] for trial in campaign["trials"]][:3] == first
    assert [bool(trial["spans"]) for trial in campaign["trials"]] == [False] * 3 + [True]
    assert {path: epoch_files()[path] for path in files} == files


@on_ray
def test_interrupted_campaign_resumes_and_a_changed_recipe_is_refused(
    interrupted, zpoint, refused, tiny: str, faces: Path
):
    recipe = shutil.copy(tiny, "stopped.yaml")
    argv = ["tune", recipe, f"data.uri={faces}", "name=stopped", "search.trials=2", "search.parallel=1"]
    interrupted("stopped-*", *argv)
    stopped = read_campaign("stopped")
    assert stopped is not None
    assert (stopped.state, stopped.trials[0].state) == ("unfinished", "running")
    assert "campaign 'stopped' has not finished" in refused("promote", "stopped")
    assert "made from another recipe" in refused(*argv, "optim.lr=2e-3")
    campaign = zpoint(*argv)
    assert campaign["trials"][0]["run"] == stopped.trials[0].run
    assert [logged_epochs(find_run(trial["run"]).run_id) for trial in campaign["trials"]] == [[1, 2]] * 2
    assert len(campaign["trials"][0]["spans"]) == 2


@on_ray
def test_trial_may_have_several_workers(zpoint, tiny: str, faces: Path):
    argv = ["tune", tiny, f"data.uri={faces}", "name=nested", "scale.workers=2", "search.trials=1", "optim.lr=3e-3"]
    campaign = zpoint(*argv)
    assert logged_epochs(find_run(campaign["best"]).run_id) == [1, 2]
    assert trial_names(campaign["run_id"]) == [campaign["best"]]


@on_ray
def test_damaged_shard_is_refused(refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    (faces / "train-00001.parquet").write_bytes(b"X" * (faces / "train-00001.parquet").stat().st_size)
    monkeypatch.setenv("ZPOINT_CACHE", str(faces / "cache"))
    runs = set(Path(os.environ["ZPOINT_HOME"], "runs").iterdir())
    message = refused("tune", tiny, f"data.uri={faces}", "name=damaged", "search.trials=2", "optim.lr=4e-3")
    assert "train-00001.parquet is damaged" in message
    assert set(Path(os.environ["ZPOINT_HOME"], "runs").iterdir()) == runs
    assert not campaign_file("damaged")[0].get_file_info(campaign_file("damaged")[1]).is_file
    assert [run for run in tracking.find_runs() if run.info.run_name.startswith("damaged")] == []


def test_campaign_that_another_process_runs_is_refused(refused, tiny: str, faces: Path):
    with lock_campaign("mine"):
        error = refused("tune", tiny, f"data.uri={faces}", "name=mine")
    assert f"campaign 'mine' is being run by pid {os.getpid()} on host" in error


@on_ray
def test_trial_that_another_process_trains_is_left_to_it(refused, tiny: str, faces: Path):
    argv = [tiny, f"data.uri={faces}", "search.space={'model.z_dim':[2]}".replace("'", '"'), "search.trials=1"]
    recipe = load_recipe(Path(tiny), argv[1:])
    run = run_name(recipe.at({"model.z_dim": 2}), "tiny", open_dataset(str(faces)).manifest)
    with lock_run(run):
        error = refused("tune", *argv)
    assert f"run '{run}' is being trained by pid {os.getpid()} on host" in error


def kill_trial(runs: str, wait_until: Callable[..., None]) -> None:
    """Kill -9 the process of the running trial once one of the runs has an epoch more than now."""
    folder = Path(os.environ["ZPOINT_HOME"], "runs")
    num_epochs = len(list(folder.glob(f"{runs}/epochs/*.json")))
    wait_until(lambda: len(list(folder.glob(f"{runs}/epochs/*.json"))) > num_epochs, 300)
    [trial] = [pid for pid in descendants(os.getpid()) if "ImplicitFunc" in command_line(pid)]
    os.kill(trial, signal.SIGKILL)


@pytest.mark.faults
@on_ray
def test_trial_whose_process_is_killed_resumes_and_a_lost_one_is_tried_again(tiny: str, faces: Path, wait_until):
    recipe_file = Path(shutil.copy(tiny, "killed.yaml"))
    overrides = [f"data.uri={faces}", "search.trials=1", "optim.epochs=10", "name=killed"]

    def run(*more: str) -> dict[str, Any]:
        killer = threading.Thread(target=kill_trial, args=("killed-*", wait_until))
        killer.start()
        try:
            return tune(load_recipe(recipe_file, [*overrides, *more]), "killed")
        finally:
            killer.join()

    with pytest.raises(RuntimeError, match=r"campaign 'killed' has no model to choose: .*died"):
        run("scale.max_failures=0")
    lost = read_campaign("killed")
    assert lost is not None
    assert (lost.state, lost.count("lost")) == ("unfinished", 1)
    assert tracking.client().get_run(lost.run_id).info.status == "FAILED"
    files = epoch_files("killed-*")
    campaign = run()
    trial = campaign["trials"][0]
    assert (campaign["state"], trial["state"], len(trial["spans"])) == ("finished", "finished", 3)
    assert {path: epoch_files()[path] for path in files} == files
    assert logged_epochs(find_run(trial["run"]).run_id) == list(range(1, 11))
