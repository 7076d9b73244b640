import time

import pytest

from jobs.doctor import Check, doctor, render

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


def test_everything_broken_is_said_with_its_mending(monkeypatch: pytest.MonkeyPatch, tmp_path):
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
    for name, value in broken.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    checks = doctor()
    assert time.monotonic() - began < 20
    bad = {check.name: check for check in checks if check.ok is False}
    assert set(bad) == {"disk", "cache", "ray", "storage", "mlflow"}
    assert all(check.what and check.mend for check in bad.values())
    assert "secret" not in render(checks)
    assert render(checks).endswith("5 broken")


def test_wrong_settings_end_the_questions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_CPUS", "many")
    checks = doctor()
    assert [(check.name, check.ok) for check in checks] == [("settings", False), ("network", True)]
    assert "many" in checks[0].what
