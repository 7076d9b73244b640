"""Campaigns: every trial reports every epoch, the best run follows the rule, and no finished work is repeated."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aecore.config import load_recipe
from cluster import tracking
from jobs.dataset import open_dataset
from jobs.run_store import find_run, lock_run
from jobs.tune.campaign import lock_campaign
from jobs.tune.job import optuna_search, tune
from jobs.tune.selection import ScoredModel, choose_best
from jobs.tune.trials import find_trials, trial_recipe
from tests.jobs.conftest import RECIPE, small_trainings
from tests.jobs.runs import logged_epochs

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
    """Return the arguments of the finished campaign `three`."""
    path = tmp_path_factory.mktemp("tune") / "tiny.yaml"
    path.write_text(RECIPE)
    return [str(path), f"data.uri={written_faces}", "name=three", f"optim.epochs={EPOCHS}"]


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
        assert trial["z_dim"] in (2, 3)
        assert 0.01 <= trial["kl_factor"] <= 1
        assert trial["valid_psnr"] == run_store.epochs()[EPOCHS]["valid_psnr"]
        assert tracking.client().get_run(run_store.run_id).info.status == "FINISHED"
    campaign_run = tracking.client().get_run(finished_campaign["run_id"])
    assert (campaign_run.info.status, campaign_run.data.params["search.trials"]) == ("FINISHED", "3")
    assert [file.path for file in tracking.client().list_artifacts(campaign_run.info.run_id)] == ["campaign.json"]


@on_ray
def test_epochs_without_sample_metrics_are_reported(finished_campaign: dict[str, Any]):
    epochs = find_run(finished_campaign["best"]).epochs()
    assert [epoch for epoch in epochs if "hog_frechet_normal" in epochs[epoch]] == [2, 4, 6]


@on_ray
def test_best_run_follows_the_rule(finished_campaign: dict[str, Any]):
    trials = finished_campaign["trials"]
    models = [ScoredModel(t["run"], t["valid_psnr"], t["hog_frechet_normal"]) for t in trials]
    assert finished_campaign["best"] == choose_best(models, 3.0).name
    assert finished_campaign["best"] in finished_campaign["pareto_front"]
    assert "within 3 dB" in finished_campaign["rule"]


@on_ray
def test_finished_campaign_is_not_run_again(finished_campaign: dict[str, Any], tune_argv: list[str], zpoint):
    home = Path(os.environ["ZPOINT_HOME"])
    assert list((home / "ray").iterdir()) == []  # Tune's files would show the environment, with the keys of S3
    campaign_file, files = home / "campaigns" / "three.json", epoch_files()
    stored = json.loads(campaign_file.read_text())
    assert {key: finished_campaign[key] for key in stored} == stored
    assert zpoint("tune", *tune_argv) == finished_campaign | {"already_finished": True}
    assert zpoint("promote", "three", "--alias", "three")["run"] == finished_campaign["best"]

    # Without its result the campaign is resumed, and finds its finished trials by their runs.
    campaign_file.write_text(json.dumps({key: stored[key] for key in ("campaign", "digest", "dataset", "run_id")}))
    assert zpoint("tune", *tune_argv) == finished_campaign
    assert epoch_files() == files


@on_ray
def test_interrupted_campaign_resumes_and_a_changed_recipe_is_refused(
    interrupted, zpoint, refused, tiny: str, faces: Path
):
    argv = ["tune", tiny, f"data.uri={faces}", "name=stopped", "search.trials=2", "search.parallel=1"]
    interrupted("stopped-*", *argv)
    assert "campaign 'stopped' has not finished" in refused("promote", "stopped")
    assert "made from another recipe" in refused(*argv, "optim.epochs=1")
    files = {path: time for path, time in epoch_files("stopped-*").items() if "001" in path.name}
    assert files
    recipe = load_recipe(Path(tiny), argv[2:])
    finished, unfinished = find_trials(recipe, "stopped", open_dataset(str(faces)).manifest)
    assert len(finished + unfinished) == 1
    campaign = zpoint(*argv)
    points = {(trial["z_dim"], trial["kl_factor"]) for trial in campaign["trials"]}
    assert points > {(trial["z_dim"], trial["kl_factor"]) for trial in finished + unfinished}
    assert [logged_epochs(find_run(trial["run"]).run_id) for trial in campaign["trials"]] == [[1, 2]] * 2
    assert {path: epoch_files()[path] for path in files} == files


@on_ray
def test_trial_may_have_several_workers(zpoint, tiny: str, faces: Path):
    campaign = zpoint("tune", tiny, f"data.uri={faces}", "name=nested", "scale.workers=2", "search.trials=1")
    assert logged_epochs(find_run(campaign["best"]).run_id) == [1, 2]
    assert trial_names(campaign["run_id"]) == [campaign["best"]]


@on_ray
def test_damaged_shard_is_refused(refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    (faces / "train-00001.parquet").write_bytes(b"X" * (faces / "train-00001.parquet").stat().st_size)
    monkeypatch.setenv("ZPOINT_CACHE", str(faces / "cache"))
    message = refused("tune", tiny, f"data.uri={faces}", "name=damaged", "search.trials=2")
    assert "train-00001.parquet is damaged" in message
    home = Path(os.environ["ZPOINT_HOME"])
    assert [path for folder in ("runs", "campaigns") for path in (home / folder).glob("damaged*")] == []
    assert [run for run in tracking.find_runs() if run.info.run_name.startswith("damaged")] == []


@pytest.mark.ray
def test_resumed_search_uses_the_results_of_earlier_trials():
    """With the results of 20 trials the next points lie near the optimum; without them they would be random."""
    from ray import tune as ray_tune

    space = {"z_dim": ray_tune.choice([2, 3, 4]), "kl_factor": ray_tune.loguniform(0.0123456, 100)}

    def result_at(z_dim: int, kl_factor: float) -> dict:  # both objectives are best at kl_factor 1
        distance = abs(math.log10(kl_factor))
        return {
            "z_dim": z_dim, "kl_factor": kl_factor, "valid_psnr": 30 - distance, "hog_frechet_normal": distance,
        }  # fmt: skip

    def distances_of_next_trials(finished: list[dict]) -> list[float]:
        search, results = optuna_search(space, finished, unfinished, seed=0), []
        search.set_search_properties(None, None, space)
        assert search.suggest("0") == unfinished[0]
        assert search.suggest("1") == {"z_dim": 3, "kl_factor": 0.0123456}  # rounding had moved it below the range
        for trial in range(2, 12):
            point = search.suggest(str(trial))
            assert point
            results.append(result_at(**point))
            search.on_trial_complete(str(trial), results[-1])
        return [result["hog_frechet_normal"] for result in results]

    unfinished = [{"z_dim": 2, "kl_factor": 50.0}, {"z_dim": 3, "kl_factor": 0.0123}]
    finished = [result_at(2 + i % 3, 10 ** (-1.5 + 3 * i / 19)) for i in range(20)]
    assert np.mean(distances_of_next_trials(finished)) < 0.5 * np.mean(distances_of_next_trials([]))


def test_trial_of_a_campaign_with_a_long_name_keeps_its_suffix(tiny: str):
    names = {trial_recipe(load_recipe(Path(tiny), []), "c" * 63, z, 0.012345).name for z in (2, 3)}
    assert names == {"c" * 49 + "-z2-kl1.23e-02", "c" * 49 + "-z3-kl1.23e-02"}


def test_campaign_that_another_process_runs_is_refused(refused, tiny: str, faces: Path):
    with lock_campaign("mine"):
        error = refused("tune", tiny, f"data.uri={faces}", "name=mine")
    assert f"campaign 'mine' is being run by pid {os.getpid()} on host" in error


@on_ray
def test_trial_that_another_process_trains_is_left_to_it(refused, tiny: str, faces: Path):
    argv = ("tune", tiny, f"data.uri={faces}", "name=shared", "search.z_dim=[2]", "search.kl_factor=[1,1]")
    trial = "shared-z2-kl1.00e00"
    with lock_run(trial):
        error = refused(*argv, "search.trials=1")
    assert f"run '{trial}' is being trained by pid {os.getpid()} on host" in error
