"""Campaigns: each trial reports every epoch, the best is the one of the stated rule, and nothing is done twice."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from aecore.config import load_recipe
from cluster import tracking
from jobs.dataset import open_dataset
from jobs.run_store import find_run
from jobs.tune.job import optuna_search
from jobs.tune.selection import ScoredModel, choose_best
from jobs.tune.trials import find_trials, trial_recipe

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "tracking")]


def children(run_id: str) -> list[str]:
    return [run.info.run_name for run in tracking.find_runs(f"tags.`mlflow.parentRunId` = '{run_id}'")]


def points(run: str) -> list[int]:
    return [point.step for point in tracking.client().get_metric_history(find_run(run).run_id, "valid_psnr")]


def epoch_files() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(os.environ["ZPOINT_HOME"], "runs").glob("*/epochs/*")}


def test_a_campaign_of_three_trials_two_at_a_time(zpoint, tiny: str, faces: Path):
    campaign = zpoint("tune", tiny, f"data.uri={faces}", "name=three")
    runs = [trial["run"] for trial in campaign["trials"]]
    assert len(set(runs)) == 3
    assert [points(run) for run in runs] == [[1, 2]] * 3
    assert sorted(children(campaign["run_id"])) == sorted(runs)
    for trial in campaign["trials"]:
        assert trial["z_dim"] in (2, 3)
        assert 0.01 <= trial["kl_factor"] <= 1
        assert trial["valid_psnr"] == find_run(trial["run"]).epochs()[2]["valid_psnr"]
        assert tracking.client().get_run(find_run(trial["run"]).run_id).info.status == "FINISHED"
    scored = [ScoredModel(t["run"], t["valid_psnr"], t["hog_frechet_normal"]) for t in campaign["trials"]]
    assert campaign["best"] == choose_best(scored, 3.0).name
    assert campaign["best"] in campaign["pareto_front"]
    assert "within 3 dB" in campaign["rule"]
    parent = tracking.client().get_run(campaign["run_id"])
    assert (parent.info.status, parent.data.params["search.trials"]) == ("FINISHED", "3")
    assert [file.path for file in tracking.client().list_artifacts(campaign["run_id"])] == ["campaign.json"]

    home = Path(os.environ["ZPOINT_HOME"])
    assert list((home / "ray").iterdir()) == []  # Tune's notes would tell the environment, keys of S3 among it
    path, before = home / "campaigns" / "three.json", epoch_files()
    written = json.loads(path.read_text())
    assert {key: campaign[key] for key in written} == written
    assert zpoint("tune", tiny, f"data.uri={faces}", "name=three") == campaign | {"already_finished": True}
    assert zpoint("promote", "three", "--alias", "three")["run"] == campaign["best"]

    # Its verdict lost, it goes on: finished trials are told from their records.
    path.write_text(json.dumps({key: written[key] for key in ("campaign", "digest", "dataset", "run_id")}))
    assert zpoint("tune", tiny, f"data.uri={faces}", "name=three") == campaign
    assert epoch_files() == before


def test_ctrl_c_keeps_what_was_done_and_a_changed_recipe_is_refused(
    interrupted, zpoint, refused, tiny: str, faces: Path
):
    argv = ["tune", tiny, f"data.uri={faces}", "name=stopped", "search.trials=2", "search.parallel=1"]
    interrupted("stopped-*", *argv)
    assert "campaign 'stopped' has not finished" in refused("promote", "stopped")
    assert "made from another recipe" in refused(*argv, "optim.epochs=1")
    before = {path: time for path, time in epoch_files().items() if "stopped" in str(path) and "001" in path.name}
    assert before
    recipe = load_recipe(Path(tiny), argv[2:])
    finished, begun = find_trials(recipe, "stopped", open_dataset(str(faces)).manifest)
    assert len(finished + begun) == 1
    campaign = zpoint(*argv)
    tried = {(trial["z_dim"], trial["kl_factor"]) for trial in campaign["trials"]}
    assert tried > {(trial["z_dim"], trial["kl_factor"]) for trial in finished + begun}
    assert [points(trial["run"]) for trial in campaign["trials"]] == [[1, 2]] * 2
    assert {path: epoch_files()[path] for path in before} == before


def test_a_trial_may_have_workers(zpoint, tiny: str, faces: Path):
    campaign = zpoint("tune", tiny, f"data.uri={faces}", "name=nested", "scale.workers=2", "search.trials=1")
    assert points(campaign["best"]) == [1, 2]
    assert children(campaign["run_id"]) == [campaign["best"]]


def test_an_epoch_that_is_not_judged_does_no_harm(zpoint, tiny: str, faces: Path):
    campaign = zpoint("tune", tiny, f"data.uri={faces}", "name=unjudged", "search.trials=1", "optim.epochs=6")
    epochs = find_run(campaign["best"]).epochs()
    assert [epoch for epoch in epochs if "hog_frechet_normal" in epochs[epoch]] == [2, 4, 6]


def test_a_damaged_shard_is_refused(refused, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    (faces / "train-00001.parquet").write_bytes(b"X" * (faces / "train-00001.parquet").stat().st_size)
    monkeypatch.setenv("ZPOINT_CACHE", str(faces / "cache"))
    said = refused("tune", tiny, f"data.uri={faces}", "name=damaged", "search.trials=2")
    assert "train-00001.parquet is damaged" in said
    home = Path(os.environ["ZPOINT_HOME"])
    assert [path for folder in ("runs", "campaigns") for path in (home / folder).glob("damaged*")] == []
    assert [run for run in tracking.find_runs() if run.info.run_name.startswith("damaged")] == []


def test_a_search_that_goes_on_knows_what_was_tried():
    """Of 20 trials, half is enough to know where to look; without them the next ones would be random."""
    from ray import tune as ray_tune

    space = {"z_dim": ray_tune.choice([2, 3, 4]), "kl_factor": ray_tune.loguniform(0.0123456, 100)}

    def trial(z_dim: int, kl_factor: float) -> dict:  # the nearer kl_factor is to 1, the better is all
        miss = abs(math.log10(kl_factor))
        return {"z_dim": z_dim, "kl_factor": kl_factor, "valid_psnr": 30 - miss, "hog_frechet_normal": miss}

    def misses(finished: list[dict]) -> list[float]:
        search, found = optuna_search(space, finished, begun, seed=0), []
        search.set_search_properties(None, None, space)
        assert search.suggest("0") == begun[0]
        assert search.suggest("1") == {"z_dim": 3, "kl_factor": 0.0123456}  # rounded, it lies below what is searched
        for i in range(2, 12):
            point = search.suggest(str(i))
            assert point
            found.append(trial(**point))
            search.on_trial_complete(str(i), found[-1])
        return [each["hog_frechet_normal"] for each in found]

    begun = [{"z_dim": 2, "kl_factor": 50.0}, {"z_dim": 3, "kl_factor": 0.0123}]
    finished = [trial(2 + i % 3, 10 ** (-1.5 + 3 * i / 19)) for i in range(20)]
    assert np.mean(misses(finished)) < 0.5 * np.mean(misses([]))


def test_a_long_name_leaves_room_for_what_is_tried(tiny: str):
    names = {trial_recipe(load_recipe(Path(tiny), []), "c" * 63, z, 0.012345).name for z in (2, 3)}
    assert names == {"c" * 49 + "-z2-kl1.23e-02", "c" * 49 + "-z3-kl1.23e-02"}
