"""The threads that keep a campaign's file and MLflow runs: they wait for a silent MLflow, and the search does not."""

import copy
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from aecore.config import check_recipe
from aecore.data.shards import Manifest
from cluster import tracking
from jobs.run_store import find_run, open_run
from jobs.tune import report
from jobs.tune.campaign import Campaign, Trial, open_campaign, read_campaign
from jobs.tune.mlflow_overview import TABLE_FILE, CampaignOverview
from jobs.tune.records import Latest, record_campaign
from jobs.tune.report import PAGE_FILE, PARETO_FILE
from tests.jobs.runs import logged_epochs
from tests.jobs.tune.made_campaigns import make_campaign

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits={})
RECIPE = check_recipe({"optim": {"epochs": 2}})
METRICS = {"valid_psnr": 20.0, "valid_active_units": 2.0, "hog_frechet_normal": 5.0, "hog_frechet_gaussian": 4.0}


class SilentMlflow:
    """Stands for MLflow's client: each call waits until `closed` is set, then fails."""

    def __init__(self) -> None:
        self.closed, self.calls, self.waited_in_vain = threading.Event(), 0, False

    def __getattr__(self, method: str) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            self.calls += 1
            self.waited_in_vain |= not self.closed.wait(60)
            raise ConnectionError("no answer")

        return call


@pytest.fixture
def silent_mlflow(monkeypatch: pytest.MonkeyPatch) -> SilentMlflow:
    silent = SilentMlflow()
    monkeypatch.setattr(tracking, "client", lambda: silent)
    return silent


@pytest.fixture(autouse=True)
def small_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a report of two small files: drawing the charts of a real one takes seconds."""
    files = {name: name.encode() for name in (PAGE_FILE, PARETO_FILE)}
    monkeypatch.setattr(report, "write_report", lambda campaign: (f"/tmp/{PAGE_FILE}", files))


def run_campaign(
    state: str = "finished",
    epochs: int = 2,
    at_the_end: Callable[[], None] = lambda: None,
    unopened: Sequence[Trial] = (),
) -> None:
    """Run a campaign of one trial, after those `unopened`, in its records; call `at_the_end` after the last epoch."""
    campaign = open_campaign(RECIPE, "x", MANIFEST)
    point = {"model.z_dim": 64, "loss.kl_factor": 1.0}
    store = open_run(RECIPE.at(point), "x", MANIFEST)
    trial = campaign.trial(store.name) or Trial(store.name, point, epochs=2)
    campaign.trials = [*unopened, trial]
    with record_campaign(campaign, RECIPE) as record:
        campaign.state = "running"
        for epoch in range(epochs + 1):
            if epoch == 0:
                trial.start(1.0, "core")
            else:
                store.save_epoch(epoch, METRICS, [], None, "1 x CPU")
                trial.record(epoch, METRICS)
            record(copy.deepcopy(campaign))
        at_the_end()
        if state != "running":
            trial.end("finished")
        campaign.state = "finished" if state == "finished" else "unfinished"
        campaign.rank()


def test_search_does_not_wait_for_a_silent_mlflow(silent_mlflow, caplog: pytest.LogCaptureFixture):
    run_campaign(at_the_end=silent_mlflow.closed.set)
    assert not silent_mlflow.waited_in_vain
    assert 1 <= silent_mlflow.calls <= 5  # not one for each epoch and file
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
    assert run.data.metrics["distance"] == 4.0
    tags = {key: run.data.tags[key] for key in ("search.model.z_dim", "search.loss.kl_factor", "zpoint.front")}
    assert tags == {"search.model.z_dim": "64", "search.loss.kl_factor": "1.0", "zpoint.front": "true"}

    parent = tracking.client().get_run(campaign.run_id)
    assert parent.info.status == "FINISHED"
    metrics = {
        key: parent.data.metrics[key] for key in ("best_psnr", "best_distance", "trials_finished", "hypervolume")
    }
    assert metrics == {"best_psnr": 20.0, "best_distance": 4.0, "trials_finished": 1.0, "hypervolume": 0.0}
    assert [point.step for point in tracking.client().get_metric_history(campaign.run_id, "hypervolume")] == [1]
    assert f"zpoint promote {campaign.campaign}" in parent.data.tags["mlflow.note.content"]
    artifacts = [
        file.path for folder in ("", "report") for file in tracking.client().list_artifacts(campaign.run_id, folder)
    ]
    assert {TABLE_FILE, f"report/{PAGE_FILE}", f"report/{PARETO_FILE}"} <= set(artifacts)


@pytest.mark.usefixtures("tracking")
def test_the_description_in_mlflow_says_that_the_campaign_has_ended():
    campaign, overview = make_campaign(2), CampaignOverview()
    run_id = tracking.create_run(campaign.campaign, {}, {})
    for state in ("running", "finished"):
        campaign.state = state
        overview.sync(campaign, run_id, {})
        description = tracking.client().get_run(run_id).data.tags["mlflow.note.content"]
        assert description.startswith(f"campaign {campaign.campaign}: {state}, 2 finished")


@pytest.mark.usefixtures("tracking")
def test_a_report_that_cannot_be_written_fails_no_campaign(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(campaign: Campaign) -> None:
        raise OSError("no space")

    monkeypatch.setattr(report, "write_report", refuse)
    run_campaign()
    assert "cannot be written: no space" in caplog.text
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    assert tracking.client().get_run(campaign.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("tracking")
def test_runs_of_an_interrupted_campaign_are_killed_in_mlflow():
    run_campaign("running", epochs=1)
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    runs = [campaign.run_id, find_run(campaign.trials[0].run).run_id]
    assert [tracking.client().get_run(run).info.status for run in runs] == ["KILLED", "KILLED"]


@pytest.mark.usefixtures("tracking")
@pytest.mark.parametrize("lost_by", ["deletion", "another MLflow"])
def test_a_run_that_mlflow_lacks_is_restored_or_made_again(
    lost_by: str, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before, no trial of the campaign was logged any more."""
    run_campaign("running", epochs=1)
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    if lost_by == "deletion":
        tracking.client().delete_run(campaign.run_id)
    else:
        path = Path(os.environ["ZPOINT_HOME"], "other.db")
        shutil.copy(mlflow_template, path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    run_campaign()
    again = read_campaign(campaign.campaign)
    assert again is not None
    assert (again.run_id == campaign.run_id) == (lost_by == "deletion")
    for run_id in (again.run_id, find_run(again.trials[0].run).run_id):
        run = tracking.client().get_run(run_id)
        assert (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")


@pytest.mark.usefixtures("tracking")
def test_trials_whose_run_was_never_opened_are_left_out_of_mlflow():
    """Before, the first of them kept all later trials and the campaign's end out of it."""
    point = {"model.z_dim": 32, "loss.kl_factor": 1.0}
    unopened = [Trial("x-1", point, 2, state="lost", reason="503 Slow Down"), Trial("x-2", point, 2)]
    run_campaign("unfinished", unopened=unopened)
    campaign = read_campaign(open_campaign(RECIPE, "x", MANIFEST).campaign)
    assert campaign is not None
    runs = [campaign.run_id, find_run(campaign.trials[2].run).run_id]
    assert [tracking.client().get_run(run).info.status for run in runs] == ["FAILED", "FINISHED"]


def test_newest_value_is_taken_and_a_failed_one_again():
    taken: list[int] = []
    results = iter([False])

    def take(value: int) -> bool:
        taken.append(value)
        return next(results, True)

    latest = Latest("test", take)
    latest.put(1)
    while not taken:
        time.sleep(0.001)
    latest.put(2)
    while len(taken) < 2:
        time.sleep(0.001)
    latest.put(3)
    assert latest.close()
    assert taken in ([1, 2, 3], [1, 2, 3, 3])  # the last one again if it was taken before the close
