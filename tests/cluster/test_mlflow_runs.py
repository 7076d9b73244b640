"""The driver's writes to MLflow: runs, parameters, metrics, their experiment, and failures that stop nothing."""

import math
import os
import sqlite3
from contextlib import closing
from functools import partial

import pytest

from cluster import tracking


@pytest.mark.usefixtures("tracking")
def test_run_of_a_key_is_created_once_and_its_parameters_are_cut():
    tags = {tracking.KEY_TAG: "a key", "zpoint.run": "mine"}
    params = {"model.z_dim": 3, "long": "x" * 5_000}
    run_id = tracking.create_run("mine", params, tags)
    assert tracking.create_run("mine", params, tags) == run_id
    assert tracking.create_run("mine", params, tags | {tracking.KEY_TAG: "another"}) != run_id
    run = tracking.client().get_run(run_id)
    assert run.info.run_name == "mine"
    assert run.data.params == {"model.z_dim": "3", "long": "x" * 500}
    assert run.data.tags["zpoint.run"] == "mine"


@pytest.mark.usefixtures("tracking")
def test_metrics_have_step_and_time_and_only_finite_values():
    run_id = tracking.create_run("mine", {}, {})
    metrics = {"loss": 1.5, "psnr": math.nan, "kl": math.inf}
    for _ in range(2):  # a point that is logged again is stored once
        tracking.log_metrics(run_id, metrics, 3, 1_234)
    assert set(tracking.client().get_run(run_id).data.metrics) == {"loss"}
    points = tracking.client().get_metric_history(run_id, "loss")
    assert [(point.step, point.value, point.timestamp) for point in points] == [(3, 1.5, 1_234)]


@pytest.mark.usefixtures("tracking")
def test_each_store_has_an_experiment_and_runs_of_others_are_not_found(monkeypatch: pytest.MonkeyPatch):
    home, client = os.environ["ZPOINT_HOME"], tracking.client()
    default = tracking.create_run("default", {}, {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    monkeypatch.setenv("ZPOINT_STORE", f"{home}/elsewhere")
    elsewhere = tracking.create_run("elsewhere", {}, {})
    client.create_run(client.create_experiment("zpointless"))
    client.create_run("0")
    assert {run.info.run_id for run in tracking.find_runs()} == {elsewhere, default}
    locations = {e.name: e.artifact_location for e in client.search_experiments() if e.name.startswith("zpoint")}
    assert locations["zpoint"].endswith(f"{home}/mlflow-artifacts")
    assert locations[f"zpoint {home}/elsewhere"].endswith(f"{home}/elsewhere/mlflow-artifacts")


@pytest.mark.usefixtures("tracking")
def test_runs_of_all_pages_are_found(monkeypatch: pytest.MonkeyPatch):
    """MLflow returns 1,000 runs a page."""
    ids = {tracking.create_run(str(index), {}, {}) for index in range(5)}
    client = tracking.client()
    monkeypatch.setattr(client, "search_runs", partial(client.search_runs, max_results=2))
    runs = tracking.find_runs()
    assert (len(runs), {run.info.run_id for run in runs}) == (5, ids)


@pytest.mark.usefixtures("tracking")
def test_runs_are_found_below_more_than_a_page_of_newer_experiments():
    """MLflow returns 1,000 experiments a page, newest first."""
    run_id = tracking.create_run("mine", {}, {})
    with closing(sqlite3.connect(os.environ["ZPOINT_HOME"] + "/mlflow.db")) as database, database:
        copy = "INSERT INTO experiments SELECT {} FROM experiments WHERE name = 'zpoint'"
        columns = [row[1] for row in database.execute("PRAGMA table_info(experiments)")]
        values = {"experiment_id": "experiment_id + ?", "name": "? || ?", "creation_time": "creation_time + ?"}
        query = copy.format(", ".join(values.get(column, column) for column in columns))
        for prefix in ("another", "zpoint s3://"):
            first = 1 if prefix == "another" else 2000
            for index in range(first, first + 1001):
                row = {"experiment_id": [index], "name": [prefix, index], "creation_time": [index]}
                database.execute(query, [value for column in columns for value in row.get(column, [])])
    assert [run.info.run_id for run in tracking.find_runs()] == [run_id]


@pytest.mark.parametrize(
    ("store", "location"), [("", None), ("s3://bucket/zpoint", "s3://bucket/zpoint/mlflow-artifacts")]
)
def test_tracking_server_keeps_artifacts_in_its_own_store_unless_one_is_named(monkeypatch, store: str, location: str):
    class Server:
        created: dict = {}  # noqa: RUF012

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            self.created[name] = artifact_location
            return "1"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    if store:
        monkeypatch.setenv("ZPOINT_STORE", store)
    server = Server()
    monkeypatch.setattr(tracking, "client", lambda: server)
    assert tracking.experiment_id() == "1"
    assert server.created == {f"zpoint {store}".strip(): location}


def test_failure_of_mlflow_is_logged_in_one_line_and_stops_nothing(caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise ConnectionError("no\nanswer " + 500 * "x ")

    assert tracking.best_effort("take the metrics", fail, "default", warn=False) == "default"
    assert caplog.text == ""
    assert tracking.best_effort("take the metrics", fail) is None
    [message] = caplog.messages
    assert message.startswith("MLflow could not take the metrics: no answer x x")
    assert len(message) < 400
    with pytest.raises(KeyboardInterrupt):
        tracking.best_effort("stop", lambda: (_ for _ in ()).throw(KeyboardInterrupt))


@pytest.mark.usefixtures("tracking")
def test_status_of_a_run():
    run_id = tracking.create_run("mine", {}, {})

    def status() -> str:
        return tracking.client().get_run(run_id).info.status

    for expected in ("KILLED", "FAILED", "FINISHED"):
        tracking.set_status(run_id, expected)
        assert status() == expected
        tracking.set_status(run_id, "RUNNING")
        assert status() == "RUNNING"
    tracking.set_status("", "FINISHED")  # a run that MLflow does not have


def test_a_dead_server_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch):
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    for name in names:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow-of-this-test.example")
    tracking.client()
    assert [os.environ[name] for name in names] == ["2", "15"]
