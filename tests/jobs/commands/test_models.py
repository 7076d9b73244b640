"""`zpoint models`: versions, their aliases and figures, from MLflow alone."""

from dataclasses import replace
from typing import Any

import pytest

from cluster import tracking as mlflow_tracking
from cluster.settings import settings
from jobs.commands.models import list_models
from jobs.commands.printing import format_models
from jobs.commands.runs import list_runs
from tests.serving.app_server import make_slot, serve_app

RUNS = {"celeba-vae-1a2b3c4d": {"valid_psnr": 21.6204, "hog_frechet_gmm": 0.98765}, "celeba-near-ae-5e6f7a8b": {}}


@pytest.fixture
def registry(tracking: None) -> Any:
    """Register one version for each of RUNS, and a third that is of no run."""
    client = mlflow_tracking.client()
    client.create_registered_model(mlflow_tracking.MODEL_NAME)
    for name, metrics in RUNS.items():
        run_id = mlflow_tracking.create_run(name, {}, {})
        mlflow_tracking.log_metrics(run_id, metrics, 1, 0)
        tags = {"zpoint.run": name} | ({mlflow_tracking.SAMPLER_TAG: "gmm"} if metrics else {})
        client.create_model_version(mlflow_tracking.MODEL_NAME, f"{settings().home}/{name}", run_id, tags=tags)
    client.create_model_version(mlflow_tracking.MODEL_NAME, f"{settings().home}/other")
    return client


def test_versions_come_newest_first_with_aliases_and_figures(registry):
    for alias, version in (("champion", "1"), ("vae", "1"), ("near-ae", "2")):
        registry.set_registered_model_alias(mlflow_tracking.MODEL_NAME, alias, version)
    third, second, first = list_models()
    assert [(m["version"], m["aliases"], m["run"], m["sampler"]) for m in (third, second, first)] == [
        ("3", [], "", "normal"), ("2", ["near-ae"], "celeba-near-ae-5e6f7a8b", "normal"),
        ("1", ["champion", "vae"], "celeba-vae-1a2b3c4d", "gmm"),
    ]  # fmt: skip
    assert (first["psnr"], first["distance"]) == (21.6204, 0.98765)
    assert "psnr" not in third
    table = format_models({"models": [third, second, first]}).splitlines()
    assert max(map(len, table)) <= 80
    assert table[3].split() == ["1", "champion", "gmm", "21.62", "0.9877", first["created"][:10], first["run"]]
    assert table[4].split() == ["vae"]
    assert "zpoint promote RUN --alias ALIAS" in table[5]


def test_each_version_of_a_continued_run_has_the_metrics_of_its_epoch(registry):
    name = "celeba-vae-1a2b3c4d"
    run_id = mlflow_tracking.create_run("continued", {"optim.epochs": 1}, {})
    for step, psnr in ((1, 12.135), (6, 12.864)):
        mlflow_tracking.log_metrics(run_id, {"valid_psnr": psnr, "hog_frechet_normal": psnr - 1}, step, step)
    for tags in ({}, {"zpoint.epochs": "6"}, {"zpoint.epochs": "1"}):
        registry.create_model_version(mlflow_tracking.MODEL_NAME, f"{settings().home}/{name}", run_id, tags=tags)
    of_1, of_6 = (12.135, 11.135), (12.864, 11.864)
    assert [(m["psnr"], m["distance"]) for m in list_models()[:3]] == [of_1, of_6, of_1]
    assert {row["run"]: row["version"] for row in list_runs()}["continued"] == "6"


def test_it_says_which_version_is_served_where(registry, monkeypatch: pytest.MonkeyPatch):
    versions = registry.search_model_versions(f"name = '{mlflow_tracking.MODEL_NAME}'")
    run_id = next(version.run_id for version in versions if str(version.version) == "2")
    slots = make_slot("2", "near-ae"), make_slot("1")  # a version 1 of another registry
    slots[0].current.info = replace(slots[0].current.info, run_id=run_id)
    with serve_app(*slots, token="secret") as url:
        monkeypatch.setenv("ZPOINT_TOKEN", "secret")
        models = list_models([url])
        monkeypatch.setenv("ZPOINT_TOKEN", "wrong")
        with pytest.raises(ValueError, match=f"no zpoint endpoint answers at {url}: .*token"):
            list_models([url])
        monkeypatch.setattr("jobs.commands.models.ENDPOINT_URL", url)
        assert {tuple(model["served"]) for model in list_models()} == {()}
        monkeypatch.setenv("ZPOINT_TOKEN", "secret")
        assert list_models() == models
    assert [model["served"] for model in models] == [[], [f"{url} (near-ae)"], []]
    assert f"version 2 is served at {url} (near-ae)" in format_models({"models": models}).splitlines()
    assert [model["served"] for model in list_models()] == [[], [], []]  # nothing listens there any more


def test_without_versions_it_names_the_command_that_registers_one(tracking):
    assert list_models() == []
    assert "zpoint promote RUN" in format_models({"models": []})
