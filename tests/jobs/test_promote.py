"""The promote job: one model version for each run, an MLflow model, and the alias at the run promoted last."""

import importlib.metadata
import itertools
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import mlflow
import numpy as np
import pytest

import aecore
from aecore.data.io import write_json
from cluster import tracking
from cluster.settings import settings
from jobs.promote import promote
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


@pytest.fixture
def champion(zpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    """Promote `a`; return the URI by which MLflow's functions find it."""
    zpoint("promote", "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings().tracking_uri)
    return "models:/zpoint@champion"


def test_registered_version_is_an_mlflow_model_that_decodes(champion: str):
    z = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    expected = aecore.load(find_run("a").uri).decode(z)
    decoded = mlflow.pyfunc.load_model(champion).predict(z)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)
    info = mlflow.models.get_model_info(champion)
    assert [(spec.type, spec.shape) for spec in info.signature.inputs.inputs] == [(np.dtype("float32"), (-1, 3))]
    assert [spec.shape for spec in info.signature.outputs.inputs] == [(-1, 16, 16, 3)]
    assert info.run_id == find_run("a").run_id


def test_mlflow_model_is_source_and_data_without_pickles(champion: str):
    folder = Path(mlflow.artifacts.download_artifacts(champion))
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {
        "", ".json", ".png", ".py", ".safetensors", ".txt", ".yaml",
    }  # fmt: skip
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert f"torch=={importlib.metadata.version('torch').partition('+')[0]}" in requirements
    assert np.array(json.loads((folder / "input_example.json").read_text())).shape == (2, 3)
    assert (folder / "samples.png").read_bytes() == (Path(find_run("a").uri) / "epochs" / "epoch-002.png").read_bytes()


def test_mlflow_model_loads_without_an_installed_zpoint(champion: str, tmp_path: Path):
    """From the source that is stored with it, in a process that imports nothing of the checkout."""
    folder = mlflow.artifacts.download_artifacts(champion)
    code = (
        f"import mlflow.pyfunc as p, numpy as np, sys; x = p.load_model({folder!r}).predict(np.zeros((2, 3), 'f4'));"
        f"assert x.shape == (2, 16, 16, 3); assert sys.modules['aecore'].__file__.startswith({folder!r})"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env={"PATH": "", "HOME": str(tmp_path)}, check=True
    )


def test_the_endpoint_runs_no_code_of_a_version(champion: str):
    version = find_model_version()
    for path in Path(version.source.removeprefix("file://")).rglob("*.py"):
        path.write_text("raise SystemExit('code of the store')")
    assert read_model(version.source, version.tracking_uri).model.z_dim == 3


def test_a_version_that_only_mlflow_reads_is_fetched_without_its_code(champion: str, tmp_path: Path, monkeypatch):
    version, fetched = find_model_version(), tmp_path / "fetched"
    fetched.mkdir()
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda: nullcontext(str(fetched)))
    saved = read_model(f"runs:/{version.run_id}/model", version.tracking_uri)
    assert (saved.model.z_dim, saved.points is not None) == (3, True)
    files = {path.name for path in fetched.rglob("*") if path.is_file()}
    assert files >= {"config.json", "latents.safetensors", "metrics.json", "model.safetensors", "points.safetensors"}
    assert {path.suffix for path in fetched.rglob("*")} == {".json", ".safetensors"}


def test_version_of_model_files_alone_still_loads(champion: str):
    """Versions that were registered before MLflow models."""
    version = find_model_version()
    folder = Path(version.source.removeprefix("file://"))
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "metrics.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert read_model(version.source, version.tracking_uri).model.z_dim == 3


def test_description_of_a_version_has_reason_metrics_and_samples(champion: str, zpoint):
    text = tracking.client().get_model_version("zpoint", "1").description
    assert "Promoted by its name." in text
    assert f"| test_psnr | {read_metrics('a')['test_psnr']:.4g} |" in text
    assert f"get-artifact?path=model/samples.png&run_uuid={find_run('a').run_id}" in text
    assert len(text) < 5_000
    fs, path = campaign_file("c")
    write_json(fs, path, {"campaign": "c", "digest": "", "run_id": "", "best": "a", "rule": "the lowest distance"})
    zpoint("promote", "c")
    text = tracking.client().get_model_version("zpoint", "1").description
    assert "Best run of campaign c by the rule: the lowest distance." in text


def read_metrics(run: str) -> dict[str, float]:
    return json.loads((Path(find_run(run).uri) / "model" / "metrics.json").read_text())


def test_the_dataset_is_an_input_of_the_mlflow_run(written_faces: Path):
    [dataset_input] = tracking.client().get_run(find_run("a").run_id).inputs.dataset_inputs
    dataset = dataset_input.dataset
    assert (dataset.name, json.loads(dataset.source)) == ("generated", {"uri": str(written_faces)})
    assert json.loads(dataset.profile)["images"] == {"train": 48, "valid": 16, "test": 16}
    stored = json.loads((Path(find_run("a").uri) / "run.json").read_text())["dataset"]
    assert stored.startswith(dataset.digest)
    assert len(dataset.digest) == 36


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


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_promoting_again_repairs_the_files_of_a_version(zpoint, damage):
    zpoint("promote", "a")
    version = find_model_version()
    damage(Path(version.source.removeprefix("file://")) / "model.safetensors")
    assert zpoint("promote", "a")["version"] == "1"
    assert read_model(version.source, version.tracking_uri).model.z_dim == 3


def test_model_saved_again_without_thumbnails_is_another_version(zpoint, tiny: str, faces: Path):
    train = ("train", tiny, f"data.uri={faces}", "name=p", "optim.epochs=1")
    zpoint(*train)
    assert zpoint("promote", "p")["version"] == "1"
    zpoint(*train, "points.images=0")
    assert [zpoint("promote", "p")["version"] for _ in range(2)] == ["2", "2"]
    version = find_model_version()
    assert read_model(version.source, version.tracking_uri).points is None


def test_run_without_validation_images_is_served_by_normal(zpoint):
    path = Path(find_run("a").uri) / "model" / "metrics.json"
    metrics = {name: value for name, value in read_metrics("a").items() if not name.startswith(("valid_", "hog_"))}
    path.write_text(json.dumps(metrics))
    assert zpoint("promote", "a")["sampler"] == find_model_version().sampler == "normal"


def test_concurrent_promotions_of_a_run_register_it_once(monkeypatch: pytest.MonkeyPatch):
    client, searches, other_is_there = tracking.client(), itertools.count(), Event()
    search = client.search_model_versions

    def search_together(*args):
        versions = search(*args)
        if next(searches):
            other_is_there.set()
        else:  # registers only after the other one has searched too, or has to wait for the lock
            assert other_is_there.wait(120)
        return versions

    monkeypatch.setattr(client, "search_model_versions", search_together)
    monkeypatch.setattr("jobs.promote.log.warning", lambda *message: other_is_there.set())  # "waiting for the lock"
    with ThreadPoolExecutor(2) as pool:
        assert [result["version"] for result in pool.map(promote, ["a", "a"])] == ["1", "1"]
    assert len(search("name = 'zpoint'")) == 1


def test_run_that_is_not_in_mlflow_is_refused(refused, zpoint, tiny: str, faces: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    zpoint("train", tiny, f"data.uri={faces}", "name=unlogged", "optim.epochs=1")
    assert "run 'unlogged' is not in MLflow" in refused("promote", "unlogged")


def test_mlflow_id_works_as_the_name_does(zpoint, refused):
    first_id = find_run("a").run_id
    for name in (first_id, f"runs:/{first_id}", f"runs:/{first_id}/model"):
        assert zpoint("promote", name)["run"] == "a"
    fs, path = campaign_file("c")
    write_json(fs, path, {"campaign": "c", "digest": "", "run_id": "", "best": "b"})
    assert zpoint("promote", tracking.create_run("c", {}, {"zpoint.run": "c"}))["run"] == "b"
    assert find_run(first_id).uri == find_run("a").uri


def test_each_reason_for_a_missing_run_has_its_own_words(refused, zpoint, tiny: str, faces: Path, monkeypatch):
    a_id, b_id, other_id = find_run("a").run_id, find_run("b").run_id, tracking.create_run("x", {}, {"mine": "1"})
    for name in ("nosuch", "models:/zpoint@champion"):
        assert f"no run or campaign '{name}' under" in refused("promote", name)
    assert "no run or campaign 'nosuch' under" in refused("promote", "runs:/nosuch")
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
    write_json(fs, path, campaign | {"state": "running"})
    assert "campaign 'c' has not finished" in refused("promote", "c")
    write_json(fs, path, campaign | {"state": "finished"})
    assert "campaign 'c' has no model to choose" in refused("promote", "c")
    write_json(fs, path, campaign | {"best": "b", "sampler": "gaussian"})
    promoted = zpoint("promote", "c")
    assert (promoted["run"], promoted["sampler"], find_model_version().sampler) == ("b", "gaussian", "gaussian")
