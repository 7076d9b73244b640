import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.commands.doctor import Check, doctor, render

REPO = Path(__file__).parents[3]
NAMES = ["settings", "python", "torch", "gpu", "disk", "cache", "ray", "storage", "mlflow", "network"]


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_all_is_in_order_here():
    checks = doctor()
    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.ok is False] == []
    text = render(checks)
    assert text.endswith("all in order")
    assert len(text.splitlines()) >= len(NAMES) + 1


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_storage_on_s3(s3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_STORE", f"{s3}/store")
    storage = next(check for check in doctor() if check.name == "storage")
    assert storage == Check("storage", True, f"{s3}/store takes, gives back and deletes an object")


def test_everything_broken_is_said_with_its_mending(tmp_path):
    """In a process of its own: in this one another test may have joined a Ray."""
    (tmp_path / "file").touch()
    broken = {
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
    done = subprocess.run(command, env={**os.environ, **broken}, capture_output=True, text=True, timeout=20, cwd=REPO)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    bad = {check["name"]: check for check in result["checks"] if check["ok"] is False}
    assert set(bad) == {"disk", "cache", "ray", "storage", "mlflow"}
    assert all(check["what"] and check["mend"] for check in bad.values())
    assert "secret" not in done.stdout + done.stderr
    assert result["text"].endswith("5 broken")


def test_wrong_settings_end_the_questions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_CPUS", "many")
    checks = doctor()
    assert [(check.name, check.ok) for check in checks] == [("settings", False), ("network", True)]
    assert "many" in checks[0].what
