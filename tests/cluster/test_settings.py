"""What the environment says, and what it cannot mean."""

import shutil
from pathlib import Path

import pytest

from cluster import tracking
from cluster.settings import settings


@pytest.mark.parametrize(("text", "token"), [("", ""), ("abc", "abc"), (" abc\n", "abc"), ("a-b.c~/+=", "a-b.c~/+=")])
def test_a_token_out_of_a_file_may_end_in_a_new_line(monkeypatch: pytest.MonkeyPatch, text: str, token: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    assert settings().token == token


@pytest.mark.parametrize("text", ["sécret", "a\tb"])
def test_a_token_that_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    with pytest.raises(ValueError, match="ZPOINT_TOKEN takes"):
        settings()


def test_the_tracking_database_may_be_named_without_a_folder(mlflow_template: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(mlflow_template, "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert tracking.find_runs() == []
    assert Path("mlflow.db.lock").exists()
