"""The threads that keep a campaign's file and MLflow runs: they wait for a silent MLflow, and the search does not."""

import socket
import time

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from cluster import tracking
from jobs.run_store import find_run, open_run
from jobs.tune.campaign import Trial, open_campaign, read_campaign
from jobs.tune.records import Latest, recorded
from tests.jobs.runs import logged_epochs

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits={})
RECIPE = check_recipe({"optim": {"epochs": 2}})
METRICS = {"valid_psnr": 20.0, "valid_active_units": 2.0, "hog_frechet_normal": 5.0, "hog_frechet_gaussian": 4.0}


@pytest.fixture
def silent_mlflow(monkeypatch: pytest.MonkeyPatch):
    """Listen at MLFLOW_TRACKING_URI and answer nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def run_campaign(state: str = "finished", epochs: int = 2) -> float:
    """Run a campaign of one trial in its records; return the longest time that a change took, in seconds."""
    campaign, slowest = open_campaign(RECIPE, "x", MANIFEST), 0.0
    point = {"model.z_dim": 64, "loss.kl_factor": 1.0}
    store = open_run(RECIPE.at(point), "x", MANIFEST)
    trial = campaign.trial(store.name) or Trial(store.name, point, epochs=2)
    campaign.trials = [trial]
    with recorded(campaign, RECIPE) as record:
        campaign.state = "running"
        for epoch in range(epochs + 1):
            if epoch == 0:
                trial.start(1.0)
            else:
                store.save_epoch(epoch, METRICS, [], None)
                trial.record(epoch, METRICS)
            start = time.monotonic()
            record(campaign)
            slowest = max(slowest, time.monotonic() - start)
            time.sleep(0.05)
        if state != "running":
            trial.end("finished")
        campaign.state = "finished" if state == "finished" else "unfinished"
        campaign.rank()
    return slowest


def test_search_does_not_wait_for_a_silent_mlflow(silent_mlflow, caplog: pytest.LogCaptureFixture):
    start = time.monotonic()
    assert run_campaign() < 0.2
    assert time.monotonic() - start < 15  # some requests of a second each; no retry of each epoch
    assert [record.message for record in caplog.records if "the same command logs it" in record.message]
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    assert (campaign.state, campaign.run_id, campaign.trials[0].epoch) == ("finished", "", 2)


@pytest.mark.usefixtures("tracking")
def test_mlflow_gets_the_campaign_and_its_trials():
    run_campaign()
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    store = find_run(campaign.trials[0].run)
    run = tracking.client().get_run(store.run_id)
    tags = {key: run.data.tags[key] for key in ("mlflow.parentRunId", "zpoint.campaign", "zpoint.state")}
    assert tags == {
        "mlflow.parentRunId": campaign.run_id, "zpoint.campaign": campaign.campaign, "zpoint.state": "finished",
    }  # fmt: skip
    assert (logged_epochs(store.run_id), run.info.status) == ([1, 2], "FINISHED")
    assert tracking.client().get_run(campaign.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("tracking")
def test_runs_of_an_interrupted_campaign_are_killed_in_mlflow():
    run_campaign("running", epochs=1)
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    runs = [campaign.run_id, find_run(campaign.trials[0].run).run_id]
    assert [tracking.client().get_run(run).info.status for run in runs] == ["KILLED", "KILLED"]


def test_newest_value_is_taken_and_a_failed_one_again():
    taken: list[int] = []
    results = iter([False, True, True, True])

    def take(value: int) -> bool:
        taken.append(value)
        return next(results)

    latest = Latest("test", take)
    latest.put(1)
    while not taken:
        time.sleep(0.001)
    latest.put(2)
    while len(taken) < 2:
        time.sleep(0.001)
    latest.put(3)
    assert latest.close()
    assert taken == [1, 2, 3]
