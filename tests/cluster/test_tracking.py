"""MLflow's URI, experiment and runs: what was deleted is restored, what is wrong is named, and no password is shown."""

import logging
import os
import sys

import pytest
from sqlalchemy.exc import OperationalError

from cluster import tracking
from cluster.tracking import check_tracking_uri
from jobs.cli import SafeFormatter


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql://u:geheim@h/d", "needs the driver psycopg: `pip install 'psycopg[binary]'`"),
        ("postgresql+psycopg2://u:geheim@h/d", "needs the driver psycopg2: `pip install 'psycopg2-binary'`"),
        ("mysql://u:geheim@h/d", "needs the driver MySQLdb: `pip install 'mysqlclient'`"),
        ("mysql+pymysql://u:geheim@h/d", "needs the driver pymysql: `pip install 'pymysql'`"),
        ("mssql://u:geheim@h/d", "needs the driver pyodbc: `pip install 'pyodbc'`"),
        ("postgresql+odd://u:geheim@h/d", "is not readable: SQLAlchemy has no driver 'odd'"),
        ("postgres://u:geheim@h/d", "SQLAlchemy calls it postgresql://"),
        ("ftp://u:geheim@h/d", "is not supported: it takes sqlite:///, http(s)://, postgresql://"),
        ("databricks", "is not supported"),
        ("file:///tmp/x", "is not supported"),
        ("sqlite://", "names no file: write sqlite:///relative/path"),
        ("file:~/mlruns", "is not supported"),
    ],
)
def test_wrong_uri_or_missing_driver_is_named_before_a_request(monkeypatch, uri: str, message: str):
    for driver in ("psycopg", "psycopg2", "MySQLdb", "pymysql", "pyodbc"):
        monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for check in (check_tracking_uri, tracking.client):
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI '") as error:
            check()
        assert message in str(error.value)
        assert "geheim" not in str(error.value)


def test_refused_connection_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Before, urllib3 logged each retry with the whole URL, every few seconds of a campaign."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("urllib3").setLevel(logging.NOTSET)
    for warn in (True, False):
        tracking.best_effort("take it", tracking.find_experiment, warn=warn)
        tracking._client.cache_clear()
    [message] = caplog.messages
    assert message.startswith("MLflow could not take it: API request to http://127.0.0.1:9/")
    assert message.endswith("[...] [Errno 111] Connection refused")


def test_requests_of_mlflow_end_within_seconds_unless_the_user_sets_more(monkeypatch: pytest.MonkeyPatch):
    names = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "PGCONNECT_TIMEOUT")
    for name in names:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    tracking._client.__wrapped__("http://127.0.0.1:9")
    assert [os.environ[name] for name in names] == ["2", "15", "15"]
    monkeypatch.setenv(names[0], "7")
    tracking._client.__wrapped__("http://127.0.0.1:9")
    assert [os.environ[name] for name in names] == ["7", "15", "15"]


def test_a_database_that_refuses_fails_at_once(monkeypatch: pytest.MonkeyPatch):
    """MLflow tries again for 100 s."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(OperationalError, match="Connection refused"):
        tracking._client.__wrapped__("postgresql://u:geheim@127.0.0.1:9/d")


@pytest.mark.parametrize("uri", ["sqlite:///x.db", "sqlite:////a/x.db", "http://h:5000", "https://u:p@h/path"])
def test_uri_without_a_driver_is_accepted(monkeypatch, uri: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_tracking_uri()


def test_log_lines_show_no_password():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "at %s: %s", ("http://u:geheim@h", ValueError("x")), None)
    assert SafeFormatter("%(message)s").format(record) == "at http://***@h: x"


@pytest.mark.usefixtures("tracking")
def test_deleted_experiment_is_restored_with_its_runs(caplog):
    run_id = tracking.create_run("old", {}, {})
    tracking.client().delete_experiment(tracking.experiment_id())
    assert tracking.find_runs() == []
    new_id = tracking.create_run("new", {}, {})
    assert "the experiment 'zpoint' had been deleted in MLflow: restored" in caplog.text
    assert {run.info.run_id for run in tracking.find_runs()} == {run_id, new_id}


@pytest.mark.usefixtures("tracking")
def test_deleted_run_is_restored_and_an_unknown_one_reported(caplog):
    run_id = tracking.create_run("mine", {}, {})
    assert tracking.reopen_run(run_id)
    assert caplog.text == ""
    tracking.delete_run(run_id)
    assert tracking.reopen_run(run_id)
    assert "the run 'mine' had been deleted in MLflow: restored" in caplog.text
    assert [run.info.run_id for run in tracking.find_runs()] == [run_id]
    assert not tracking.reopen_run("0" * 32)
