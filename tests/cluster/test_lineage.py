"""The tags that say what made a run."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import lineage
from cluster.lineage import code_commit, lineage_tags
from cluster.ray_connection import runtime_env


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git repository with one commit, which holds this code."""
    monkeypatch.setattr(lineage, "REPO", tmp_path)
    monkeypatch.delenv("ZPOINT_COMMIT", raising=False)
    (tmp_path / "code.py").write_text("a = 1\n")
    identity = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    for argv in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first"), ("tag", "v1")):
        subprocess.run(["git", *argv], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_of_the_code_is_known_and_whether_files_differ(repo: Path, monkeypatch: pytest.MonkeyPatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True).stdout.strip()
    assert code_commit() == head
    assert runtime_env()["env_vars"]["ZPOINT_COMMIT"] == head
    (repo / "code.py").write_text("a = 2\n")
    assert code_commit() == f"{head}-dirty"
    monkeypatch.setenv("ZPOINT_COMMIT", "abc")  # that of the submitter
    assert code_commit() == lineage_tags()["mlflow.source.git.commit"] == "abc"


def test_code_without_git_has_no_commit(repo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lineage.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert code_commit() == ""
    shutil.rmtree(repo / ".git")
    assert "ZPOINT_COMMIT" not in runtime_env()["env_vars"]
    assert "mlflow.source.git.commit" not in lineage_tags()


def test_a_driver_of_a_job_knows_it(monkeypatch: pytest.MonkeyPatch):
    assert "zpoint.job" not in lineage_tags()
    job = {"metadata": {"job_submission_id": "train-1"}, "runtime_env": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert lineage_tags()["zpoint.job"] == "train-1"
    assert {"zpoint.version.torch", "zpoint.version.zpoint"} <= lineage_tags().keys()


def test_a_process_in_an_image_names_it(monkeypatch: pytest.MonkeyPatch):
    assert "zpoint.image" not in lineage_tags()
    monkeypatch.setenv("ZPOINT_IMAGE", "registry.example.org/zpoint:7")
    assert lineage_tags()["zpoint.image"] == "registry.example.org/zpoint:7"
