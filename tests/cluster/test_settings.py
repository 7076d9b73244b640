"""Reading the settings from the environment, and refusing invalid ones."""

import shutil
from pathlib import Path

import pytest

from cluster import tracking
from cluster.settings import settings


@pytest.mark.parametrize(("text", "token"), [("", ""), ("abc", "abc"), (" abc\n", "abc"), ("a-b.c~/+=", "a-b.c~/+=")])
def test_a_token_may_end_in_a_newline(monkeypatch: pytest.MonkeyPatch, text: str, token: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    assert settings().token == token


@pytest.mark.parametrize("text", ["sécret", "a\tb"])
def test_a_token_that_is_not_printable_ascii_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("ZPOINT_TOKEN", text)
    with pytest.raises(ValueError, match="ZPOINT_TOKEN takes"):
        settings()


def test_the_tracking_database_may_be_a_file_name_without_folder(
    mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(mlflow_template, "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert tracking.find_runs() == []
    assert Path("mlflow.db.lock").exists()
