"""The promote job: one model version for each run, and the alias at the run promoted last."""

import shutil
from pathlib import Path

import pytest

from aecore.data.io import write_json
from cluster import tracking
from cluster.settings import settings
from jobs.run_store import find_run
from jobs.tune.campaign import campaign_file
from serving.runtime.registry import find_model_version, read_model
from tests.jobs.runs import logged_epochs

pytestmark = pytest.mark.usefixtures("trained_runs")  # `a` and `b`


def test_run_is_registered_once_and_the_alias_moves(zpoint):
    promoted = [zpoint("promote", name) for name in ("a", "a", "b", "a")]
    assert [(result["run"], result["version"], result["alias"]) for result in promoted] == [
        ("a", "1", "champion"), ("a", "1", "champion"), ("b", "2", "champion"), ("a", "1", "champion"),
    ]  # fmt: skip
    zpoint("promote", "b", "--alias", "challenger")
    assert [find_model_version(alias).version for alias in ("champion", "challenger")] == ["1", "2"]
    assert {row["run"]: row["version"] for row in zpoint("runs")["runs"]} == {"a": "1", "b": "2"}


def test_registered_model_has_its_metrics_and_latent_statistics(zpoint):
    promoted, version = zpoint("promote", "a"), find_model_version()
    assert version.run_id == promoted["run_id"] == find_run("a").run_id
    saved = read_model(version.source, version.tracking_uri)
    assert saved.metrics == promoted["metrics"]
    assert saved.metrics["test_psnr"] > 0
    assert saved.model.z_dim == len(saved.latents["mean"]) == 3


def test_fresh_training_of_a_name_is_another_version(zpoint, tiny: str, faces: Path):
    zpoint("promote", "b")
    zpoint("train", tiny, f"data.uri={faces}", "name=b", "optim.epochs=1", "--fresh")
    assert zpoint("promote", "b")["version"] == "2"


@pytest.mark.parametrize("alias", ["latest", "v2", "a b", ""])
def test_invalid_alias_registers_nothing(refused, alias: str):
    refused("promote", "a", "--alias", alias)
    assert tracking.client().search_model_versions("") == []


def test_unfinished_run_is_refused(refused):
    shutil.rmtree(Path(find_run("a").uri) / "model")
    assert "run 'a' has not finished" in refused("promote", "a")


def test_model_that_does_not_load_is_refused_and_the_alias_stays(refused, zpoint):
    zpoint("promote", "a")
    weights = Path(find_run("b").uri) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "run 'b' is not promoted, its model does not load" in refused("promote", "b")
    assert find_model_version().version == "1"


def test_run_that_is_not_in_mlflow_is_refused(refused, zpoint, tiny: str, faces: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    zpoint("train", tiny, f"data.uri={faces}", "name=unlogged", "optim.epochs=1")
    assert "run 'unlogged' is not in MLflow" in refused("promote", "unlogged")


def test_mlflow_id_works_as_the_name_does(zpoint, refused):
    first_id = find_run("a").run_id
    assert zpoint("promote", first_id)["run"] == "a"
    fs, path = campaign_file("c")
    write_json(fs, path, {"campaign": "c", "digest": "", "run_id": "", "best": "b"})
    assert zpoint("promote", tracking.create_run("c", {}, {"zpoint.run": "c"}))["run"] == "b"
    assert find_run(first_id).uri == find_run("a").uri


def test_each_reason_for_a_missing_run_has_its_own_words(refused, zpoint, tiny: str, faces: Path, monkeypatch):
    a_id, b_id, other_id = find_run("a").run_id, find_run("b").run_id, tracking.create_run("x", {}, {"mine": "1"})
    assert "no run or campaign 'nosuch' under" in refused("promote", "nosuch")
    assert "neither the store nor MLflow has a run '000" in refused("promote", "0" * 32)
    assert f"MLflow's run '{other_id}' is not one of zpoint's" in refused("promote", other_id)
    zpoint("train", tiny, f"data.uri={faces}", "name=b", "optim.epochs=1", "--fresh")
    assert f"run 'b' is no longer '{b_id}' but '{find_run('b').run_id}'" in refused("promote", b_id)
    shutil.rmtree(find_run("b").uri)
    b_id = tracking.find_runs("tags.`zpoint.run` = 'b'")[0].info.run_id
    tracking.client().set_tag(b_id, "zpoint.uri", f"{settings().runs_uri}/b")
    assert f"the folder of run 'b' ({b_id})" in refused("promote", b_id)
    store = settings().store
    monkeypatch.setenv("ZPOINT_STORE", "elsewhere")
    tracking.client().set_tag(a_id, "zpoint.uri", f"{store}/runs/a")
    assert f"run 'a' ({a_id}) is in another store: set ZPOINT_STORE={store}" in refused("promote", a_id)


@pytest.mark.parametrize("loss", ["run", "experiment", "database"])
def test_run_that_mlflow_has_lost_is_logged_again_by_promote_and_train(
    zpoint, tiny: str, faces: Path, mlflow_template: Path, loss: str
):
    run_id = find_run("a").run_id
    if loss == "run":
        tracking.client().delete_run(run_id)
    elif loss == "experiment":
        tracking.client().delete_experiment(tracking.experiment_id())
    else:
        shutil.copy(mlflow_template, settings().home / "mlflow.db")
    promoted = zpoint("promote", "a")
    assert (promoted["run_id"] == run_id) == (loss != "database")
    assert find_model_version().run_id == promoted["run_id"]
    trained = zpoint("train", tiny, f"data.uri={faces}", "name=a")
    assert trained["already_finished"]
    assert trained["run_id"] == promoted["run_id"]
    assert logged_epochs(promoted["run_id"]) == [1, 2]
    assert [row["status"] for row in zpoint("runs")["runs"] if row["run"] == "a"] == ["finished"]


def test_campaign_name_promotes_its_best_run(refused, zpoint):
    campaign = {"campaign": "c", "digest": "", "run_id": ""}
    fs, path = campaign_file("c")
    write_json(fs, path, campaign)
    assert "campaign 'c' has not finished" in refused("promote", "c")
    write_json(fs, path, campaign | {"best": "b", "sampler": "gaussian"})
    promoted = zpoint("promote", "c")
    assert (promoted["run"], promoted["sampler"], find_model_version().sampler) == ("b", "gaussian", "gaussian")
