import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import tracking
from jobs.commands.doctor import Check, _check_mlflow, _check_server, doctor, render

REPO = Path(__file__).parents[3]
NAMES = ["settings", "python", "torch", "gpu", "disk", "cache", "ray", "storage", "mlflow", "network"]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_all_checks_pass_here():
    checks = doctor()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.ok is False] == []
    text = render(checks)
    assert text.endswith("all in order")
    assert len(text.splitlines()) >= len(NAMES) + 1


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_store_on_s3_is_checked(s3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    storage = next(check for check in doctor() if check.name == "storage")
    assert storage == Check("storage", True, f"wrote, read and deleted an object in {s3}/store")


def test_each_broken_check_names_its_fix_and_no_password(tmp_path):
    """Run in a process of its own: another test may have connected this one to a Ray."""
    (tmp_path / "file").touch()
    variables = {
        "ZPOINT_HOME": str(tmp_path / "file"),
        "ZPOINT_CACHE": str(tmp_path / "file" / "cache"),
        "ZPOINT_STORE": "s3://bucket",
        "RAY_ADDRESS": "http://127.0.0.1:1",
        "MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    command = [sys.executable, "-m", "jobs.cli", "doctor", "--json"]
    environment = {**os.environ, **variables}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=REPO)
    assert process.returncode == 1, process.stderr
    result = json.loads(process.stdout)
    broken = {check["name"]: check for check in result["checks"] if check["ok"] is False}
    assert set(broken) == {"disk", "cache", "ray", "storage", "mlflow"}
    assert all(check["what"] and check["mend"] for check in broken.values())
    assert "secret" not in process.stdout + process.stderr
    assert result["text"].endswith("5 broken")


@pytest.mark.usefixtures("tracking")
def test_mlflows_troubles_are_found(monkeypatch: pytest.MonkeyPatch):
    assert _check_mlflow().ok
    tracking.client().delete_experiment(tracking.experiment_id())
    check = _check_mlflow()
    assert check.ok is None
    assert "the experiment 'zpoint' is deleted in MLflow" in check.what
    tracking.experiment_id()  # as the next training does
    assert _check_mlflow().ok
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:geheim@host/db")
    with pytest.raises(ValueError, match="needs the driver psycopg: `pip install"):
        _check_mlflow()


def test_server_with_credentials_in_its_url_is_reached(monkeypatch: pytest.MonkeyPatch, start_moto):
    _check_server(start_moto().replace("http://", "http://me:ge@heim@"))


def test_wrong_settings_end_the_checks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_CPUS", "many")
    checks = doctor()
    assert [(check.name, check.ok) for check in checks] == [("settings", False), ("network", True)]
    assert "many" in checks[0].what
