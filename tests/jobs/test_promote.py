"""Promotion: a version for each run, the alias where it was put last."""

import shutil
from pathlib import Path

import pytest

from aecore.data.io import write_json
from cluster import tracking
from jobs.run_store import find_run
from jobs.tune.campaign import campaign_file
from serving.runtime.registry import find_model_version, read_model

pytestmark = pytest.mark.usefixtures("tracking")


@pytest.fixture
def two_runs(zpoint, tiny: str, faces: Path) -> list[str]:
    return [zpoint("train", tiny, f"data.uri={faces}", f"name={name}", "optim.epochs=1")["run"] for name in "ab"]


def test_each_run_is_registered_once_and_the_alias_moves(zpoint, two_runs: list[str]):
    seen = [zpoint("promote", name) for name in ("a", "a", "b", "a")]
    assert [(r["run"], r["version"], r["alias"]) for r in seen] == [
        ("a", "1", "champion"), ("a", "1", "champion"), ("b", "2", "champion"), ("a", "1", "champion"),
    ]  # fmt: skip
    zpoint("promote", "b", "--alias", "challenger")
    assert [find_model_version(alias).version for alias in ("champion", "challenger")] == ["1", "2"]
    assert {row["run"]: row["version"] for row in zpoint("runs")["runs"]} == {"a": "1", "b": "2"}


def test_what_is_registered_is_the_model_with_its_latents(zpoint, two_runs: list[str]):
    promoted, champion = zpoint("promote", "a"), find_model_version()
    assert champion.run_id == promoted["run_id"] == find_run("a").run_id
    saved = read_model(champion.source, champion.tracking_uri)
    assert saved.metrics == promoted["metrics"]
    assert saved.metrics["test_psnr"] > 0
    assert saved.model.z_dim == len(saved.latents["mean"]) == 3


def test_a_fresh_training_of_the_same_name_is_another_version(zpoint, tiny: str, faces: Path, two_runs: list[str]):
    zpoint("promote", "a")
    zpoint("train", tiny, f"data.uri={faces}", "name=a", "optim.epochs=1", "--fresh")
    assert zpoint("promote", "a")["version"] == "2"


@pytest.mark.parametrize("alias", ["latest", "v2", "a b", ""])
def test_a_wrong_alias_registers_nothing(refused, two_runs: list[str], alias: str):
    refused("promote", "a", "--alias", alias)
    assert tracking.client().search_model_versions("") == []


def test_an_unfinished_run_is_refused(refused, two_runs: list[str]):
    shutil.rmtree(Path(find_run("a").uri) / "model")
    assert "run 'a' has not finished" in refused("promote", "a")


def test_a_model_that_does_not_load_is_refused_and_the_alias_stays(refused, zpoint, two_runs: list[str]):
    zpoint("promote", "a")
    weights = Path(find_run("b").uri) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "run 'b' is not promoted, its model does not load" in refused("promote", "b")
    assert find_model_version().version == "1"


def test_a_run_unknown_to_mlflow_is_refused(refused, zpoint, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    zpoint("train", tiny, f"data.uri={faces}", "name=a", "optim.epochs=1")
    assert "run 'a' is not known to MLflow" in refused("promote", "a")


def test_a_campaigns_name_means_its_best_run(refused, zpoint, two_runs: list[str]):
    campaign = {"campaign": "c", "digest": "", "run_id": ""}
    fs, path = campaign_file("c")
    write_json(fs, path, campaign)
    assert "campaign 'c' has not finished" in refused("promote", "c")
    write_json(fs, path, campaign | {"best": "b"})
    assert zpoint("promote", "c")["run"] == "b"
