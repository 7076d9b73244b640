import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import tracking
from cluster.settings import settings
from jobs.commands import doctor as doctor_module
from jobs.commands.doctor import Check, _check_mlflow, check_server, doctor, render

REPO = Path(__file__).parents[3]
NAMES = ["zpoint", "settings", "python", "torch", "gpu", "disk", "cache", "limits", "ray", "storage", "mlflow"]
NAMES += ["network"]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_all_checks_pass_here():
    checks = doctor()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.ok is False] == []
    assert checks[0].finding == f"{version('zpoint')} at {REPO}"
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
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=REPO)
    assert process.returncode == 1, process.stderr
    result = json.loads(process.stdout)
    broken = {check["name"]: check for check in result["checks"] if check["ok"] is False}
    assert set(broken) == {"disk", "cache", "ray", "storage", "mlflow"}
    assert all(check["finding"] and check["fix"] for check in broken.values())
    assert "secret" not in process.stdout + process.stderr
    assert result["text"].endswith("5 broken")


@pytest.mark.usefixtures("tracking")
def test_mlflows_troubles_are_found(monkeypatch: pytest.MonkeyPatch):
    assert _check_mlflow().ok
    tracking.client().delete_experiment(tracking.experiment_id())
    check = _check_mlflow()
    assert check.ok is None
    assert "the experiment 'zpoint' is deleted in MLflow" in check.finding
    tracking.experiment_id()  # as the next training does
    assert _check_mlflow().ok
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:geheim@host/db")
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed
    with pytest.raises(ValueError, match="needs the driver psycopg: `pip install"):
        _check_mlflow()


def test_server_with_credentials_in_its_url_is_reached(monkeypatch: pytest.MonkeyPatch, start_moto):
    check_server(start_moto().replace("http://", "http://me:ge@heim@"))


def run_doctor(*prefix: str, **variables: str) -> dict[str, dict]:
    """Return the checks that are not ok, by name, of `zpoint doctor` in a process of its own."""
    command = [*prefix, sys.executable, "-m", "jobs.cli", "doctor", "--json"]
    environment = {**os.environ, **variables}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=REPO)
    assert process.stdout, process.stderr
    return {check["name"]: check for check in json.loads(process.stdout)["checks"] if check["ok"] is not True}


@pytest.mark.usefixtures("tracking")
def test_limits_and_proxies_are_found_and_no_variable_is_blamed_that_is_not_set(tmp_path):
    findings = run_doctor(
        "bash", "-c", 'ulimit -n 100; exec "$@"', "bash",
        TMPDIR="/tmp/" + "x" * 80, HTTP_PROXY="socks5://me:secret@127.0.0.1:1",
    )  # fmt: skip
    assert set(findings) == {"limits", "ray", "network"}
    assert "`ulimit -n` allows 100" in findings["limits"]["finding"]
    assert findings["ray"]["finding"] == findings["limits"]["finding"]
    assert "HTTP_PROXY=socks5://***@127.0.0.1:1 needs a SOCKS package" in findings["network"]["finding"]
    text = str(findings)
    assert not [name for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_", "secret") if name in text]


def test_the_fix_of_a_failed_check_names_only_variables_that_are_set(tmp_path):
    (tmp_path / "file").touch()
    home = {"ZPOINT_HOME": str(tmp_path / "file"), "ZPOINT_CACHE": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    findings = run_doctor(**home)
    assert set(findings) == {"disk", "ray", "storage", "mlflow"}
    assert "RAY_ADDRESS" in findings["ray"]["fix"]
    assert "ZPOINT_STORE" not in findings["storage"]["fix"]
    assert "unset" not in findings["mlflow"]["fix"]
    findings = run_doctor(**home, ZPOINT_STORE=str(tmp_path / "file"), MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert "ZPOINT_STORE" in findings["storage"]["fix"]
    assert "MLFLOW_TRACKING_URI" in findings["mlflow"]["fix"]


def test_full_disks_are_found_and_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5e6))
    home = settings().home
    fix = "free some space, or set ZPOINT_HOME to a larger disk"
    assert doctor_module._check_disk() == Check("disk", False, f"5 MB free at {home}", fix)
    assert doctor_module._check_cache().finding == f"5 MB free at {home.parent}/cache"

    def fail(error: Exception) -> Callable[[], Check]:
        def check() -> Check:
            raise error

        return check

    for name in ("disk", "cache", "torch", "limits", "ray"):
        monkeypatch.setattr(doctor_module, f"_check_{name}", lambda: Check("x", True, "y"))
    monkeypatch.setattr(doctor_module, "_check_storage", fail(OSError(28, "No space left on device", "/s/doctor-1")))
    monkeypatch.setattr(doctor_module, "_check_mlflow", fail(RuntimeError("(sqlite3) database or disk is full [SQL:")))
    checks = {check.name: check for check in doctor() if check.ok is False}
    assert checks["storage"].finding == "/s/doctor-1: No space left on device"
    assert checks["mlflow"].finding == f"no space left on the disk of {home}/mlflow.db"
    assert {check.fix for check in checks.values()} == {"free some space there"}


def test_lines_have_80_columns():
    text = render([Check("storage", False, " ".join(["words"] * 40), " ".join(["words"] * 40))])
    assert max(map(len, text.splitlines())) <= 80


def test_wrong_settings_end_the_checks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_CPUS", "many")
    checks = doctor()
    assert [(check.name, check.ok) for check in checks] == [
        ("zpoint", True), ("settings", False), ("network", True)
    ]  # fmt: skip
    assert "many" in checks[1].finding
