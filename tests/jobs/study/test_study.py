"""`zpoint study`: a page without external resources, stored measurements, refusals that write nothing."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from aecore import analysis
from aecore.config import load_recipe
from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.shards import shard_table, write_shard
from aecore.data.synthetic_faces import draw_face
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.metrics import inception
from cluster import tracking
from jobs.cli import main
from jobs.dataset import open_dataset
from jobs.run_store import find_run
from jobs.study.charts import Chart
from jobs.study.images import read_labels
from jobs.study.measurement_store import load_measurement, measurement_path, save_measurement
from jobs.study.measurements import DEFAULT_LIMIT, MeasuredRun, StudyDataset, find_finished_run, make_options
from jobs.train.job import train
from tests.jobs.conftest import copy_home, small_trainings, tiny_trainings

pytestmark = [pytest.mark.usefixtures("tracking"), pytest.mark.xdist_group("study")]  # one process trains for all
FS, ROWS, SIZE = pafs.LocalFileSystem(), 64, 16
NUM_SAMPLES = 12
OPTIONS = ("--num-samples", NUM_SAMPLES)


@pytest.fixture(scope="module")
def measured_home(many_faces: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and measure the runs `ae` and `vae`; return their ZPOINT_HOME."""
    dataset = open_dataset(str(many_faces))
    study_dataset = StudyDataset(dataset, make_options(dataset.manifest, DEFAULT_LIMIT, NUM_SAMPLES))
    with tiny_trainings(tmp_path_factory.mktemp("measured"), mlflow_template) as (home, recipe):
        for name, overrides in {"ae": ["loss.kl_factor=0"], "vae": ["model.z_dim=4", "task.kind=denoise"]}.items():
            all_overrides = [f"data.uri={many_faces}", "optim.epochs=1", f"name={name}", *overrides]
            train(load_recipe(recipe, all_overrides), "tiny")
            run = MeasuredRun(find_finished_run(name), study_dataset)
            for measurement_name in analysis.MEASUREMENTS:
                run.measure(measurement_name)
    return home


@pytest.fixture
def two_runs(measured_home: Path, isolated_folders: None) -> Iterator[list[str]]:
    """Copy the runs `ae` and `vae` with their measurements to the test's ZPOINT_HOME; return their names."""
    copy_home(measured_home)
    with small_trainings():
        yield ["ae", "vae"]


@pytest.fixture
def ae(two_runs: list[str]) -> str:
    """Delete the measurements of `ae`; return its name."""
    shutil.rmtree(Path(find_run("ae").uri) / "study")
    return "ae"


@pytest.fixture
def digests_as_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each chart by a digest of its values: drawing the charts of one report takes seconds."""

    def to_json(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        return list(value) if isinstance(value, range) else vars(value)

    def draw_digest(name: str, title: str, *values: Any) -> Chart:
        digest = hashlib.sha256(json.dumps(values, default=to_json).encode()).hexdigest()
        return Chart(name, title, png=digest.encode(), svg=f"<svg><text>{digest}</text></svg>")

    for kind in ("line", "dot", "histogram", "scatter", "matrix"):
        monkeypatch.setattr(f"jobs.study.study_charts.{kind}_chart", draw_digest)


def test_study_writes_one_page_without_external_resources(zpoint: Callable, two_runs: list[str]):
    result = zpoint("study", *two_runs, "--out", "report", *OPTIONS)
    page = Path(result["report"]).read_text()
    assert "default-src 'none'" in page
    for url in re.findall(r"""(?:src|href|url|data)\s*[=(]\s*["']?([^"'\s)>]+)""", page):
        assert url.startswith(("data:image/", "#")), url
    assert "@import" not in page
    assert "<script" not in page
    text = unescape(page).replace("\N{NO-BREAK SPACE}", " ")
    for sentence in (sentence for sentences in result["findings"].values() for sentence in sentences):
        assert sentence in text

    folder = Path("report")
    for path in folder.glob("*.png"):
        Image.open(path).load()
    charts = {path.stem for path in folder.glob("chart-*.png")}
    assert charts >= {f"chart-{name}-hog_frechet" for name in (*analysis.SWEEPS, "samplers")}
    assert charts >= {f"chart-interpolation-{path}" for path in INTERPOLATIONS}
    tables = (*analysis.SWEEPS, "samplers", "tasks", "interpolation", "directions")
    assert {path.name for path in folder.glob("pictures-*.png")} == {
        f"pictures-{table}-{run}.png" for table in tables for run in two_runs
    }

    metrics = json.loads((folder / "metrics.json").read_text())
    for run, name in zip(metrics["runs"], two_runs, strict=True):
        assert run["run"] == name
        assert [scores["boundary"] for scores in run["cube"]] == list(analysis.SWEEPS["cube"][1])
        assert all(0 <= scores["faces"] <= 1 <= scores["hog_frechet"] + 1 for scores in run["sphere"])
        artifacts = tracking.client().list_artifacts(find_run(name).run_id, "study")
        assert {Path(artifact.path).name for artifact in artifacts} == {path.name for path in folder.iterdir()}


def test_num_samples_is_at_most_the_count_of_held_out_images(many_faces: Path):
    """Distances of few real images to many do not compare with those of as many decoded ones."""
    manifest = open_dataset(str(many_faces)).manifest
    assert make_options(manifest, 100, 1_000) == {"limit": 100, "judged": 64}
    assert make_options(manifest, 100, 12) == {"limit": 100, "judged": 12}


def test_stored_measurements_of_earlier_versions_are_reused():
    options = {"limit": 6_000, "judged": 256}
    assert measurement_path("run", "samplers", options) == "run/study/samplers-a3d9a7e5.npz"


@pytest.mark.usefixtures("digests_as_charts")
def test_interrupted_study_resumes_and_repeated_study_measures_nothing(
    zpoint: Callable, ae: str, monkeypatch: pytest.MonkeyPatch
):
    measured: list[str] = []

    def record_calls(name: str, measure: Callable, interrupt: bool) -> Callable:
        def wrapper(model: analysis.StudiedModel) -> analysis.Measurement:
            if interrupt and name == "tasks":
                raise KeyboardInterrupt
            measured.append(name)
            return measure(model)

        return wrapper

    measurements = dict(analysis.MEASUREMENTS)
    names = ("real", "samplers", *analysis.SWEEPS, "tasks", "ways", "directions", "points")
    assert tuple(measurements) == names
    interrupted = {name: record_calls(name, measure, True) for name, measure in measurements.items()}
    monkeypatch.setattr(analysis, "MEASUREMENTS", interrupted)
    with pytest.raises(SystemExit) as exit_info:
        main(["study", ae, *map(str, OPTIONS)])
    assert exit_info.value.code == 130
    assert not list(Path(os.environ["ZPOINT_HOME"], "studies").rglob("*.*"))

    complete = {name: record_calls(name, measure, False) for name, measure in measurements.items()}
    monkeypatch.setattr(analysis, "MEASUREMENTS", complete)
    first = zpoint("study", ae, *OPTIONS)
    assert measured == list(names)
    assert zpoint("study", ae, *OPTIONS)["findings"] == first["findings"]
    assert len(measured) == len(names)
    page = Path(first["report"]).read_text()
    zpoint("study", ae, *OPTIONS, "--fresh")
    assert len(measured) == 2 * len(names)
    assert Path(first["report"]).read_text() == page


@pytest.mark.usefixtures("digests_as_charts")
def test_report_says_which_runs_were_stored_without_a_mixture(zpoint: Callable, ae: str):
    path = Path(find_run(ae).uri) / "model" / "latents.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.startswith("gmm")}, path)
    page = Path(zpoint("study", ae, *OPTIONS)["report"]).read_text()
    assert "Stored without a mixture: ae. This study fitted one" in page


@pytest.mark.usefixtures("digests_as_charts")
def test_inception_metrics_appear_only_with_a_weights_file(
    zpoint: Callable, refused: Callable, two_runs: list[str], monkeypatch: pytest.MonkeyPatch
):
    Path("wrong.pth").write_bytes(b"<html>")
    for weights, error in {"none.pth": "no Inception weights at none.pth", "wrong.pth": "not hold weights"}.items():
        assert error in refused("study", "ae", "--inception", weights, "--out", "never")
    assert not Path("never").exists()
    reference_sizes = []

    class FakeInception:
        def __init__(self, weights: Path) -> None:
            self.digest = weights.name

        def metric_fn(self, reference: np.ndarray) -> Callable:
            reference_sizes.append(len(reference))
            return lambda images: {"fid": len(images) + 0.25, "kid": 0.0, "precision": 0.5, "recall": images.std()}

    monkeypatch.setattr(inception, "Inception", FakeInception)
    headers = [f"<th>{header}</th>" for header in ("FID", "KID", "precision", "recall")]
    for arguments in ((), ("--inception", "a.pth"), ("--inception", "a.pth")):
        report = Path(zpoint("study", *two_runs, *OPTIONS, *arguments, "--out", "report")["report"])
        page, metrics = report.read_text(), json.loads((report.parent / "metrics.json").read_text())
        tables = 2 if arguments else 0  # of the models and of the samplers
        assert [page.count(header) for header in headers] == [tables] * 4
        assert ("FID (Heusel 2017)" in page) == bool(arguments)
        for run in metrics["runs"]:
            fids = {scores.get("fid") for scores in (run["real"], *run["samplers"].values())}
            assert fids == {NUM_SAMPLES + 0.25 if arguments else None}
            assert "fid" not in run["cube"][0]
    assert reference_sizes == [128]  # the third study reuses the measurements of the second


@pytest.mark.usefixtures("two_runs")
def test_invalid_studies_are_refused(refused: Callable, trained_home: Path):
    assert "no run or campaign 'nonesuch'" in refused("study", "nonesuch")
    Path("report").touch()
    assert "--out report is a file" in refused("study", "ae", "--out", "report")
    shutil.copytree(trained_home / "runs" / "a", Path(find_run("ae").uri).with_name("a"))
    assert "a study compares runs on one dataset: 'ae' was trained on" in refused("study", "ae", "a")
    assert "at least 64 images in each split, found 48 in train" in refused("study", "a")
    (Path(find_run("vae").uri) / "model" / "config.json").unlink()
    assert "run 'vae' has not finished" in refused("study", "ae", "vae")


def test_old_name_of_num_samples_is_refused(refused: Callable):
    for arguments in (("study", "ae", "--judged", "12"), ("claims", "--judged=12")):
        assert "--judged has been renamed: use --num-samples" in refused(*arguments)


def test_damaged_measurement_is_not_loaded(tmp_path: Path):
    images = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    measurement = analysis.Measurement([{"faces": 0.5}], {"pictures": images})
    path = measurement_path(str(tmp_path), "cube", {"judged": 12})
    assert path != measurement_path(str(tmp_path), "cube", {"judged": 13})
    assert load_measurement(FS, path) is None
    save_measurement(FS, path, measurement)
    loaded = load_measurement(FS, path)
    assert loaded is not None
    assert loaded.metrics == measurement.metrics
    assert (loaded.arrays["pictures"] == images).all()
    data = Path(path).read_bytes()
    for damaged in (data[: len(data) // 2], data.replace(bytes(range(12)), bytes(12)), b""):
        Path(path).write_bytes(damaged)
        assert load_measurement(FS, path) is None


def test_labels_belong_to_the_images_that_are_read(many_faces: Path, tmp_path: Path):
    dataset = open_dataset(str(many_faces))
    assert read_labels(dataset, 16) is None
    images = [encode_image(draw_face(0, row, SIZE)[0], "png") for row in range(ROWS)]
    table = pa.table({"name": [str(row) for row in range(ROWS)], "label": list(range(ROWS))})
    shards = [write_shard(FS, str(tmp_path), f"{n}.parquet", shard_table(table, images)) for n in range(2)]
    manifest = dataset.manifest.model_copy(update={"splits": {"train": tuple(shards)}})
    labelled = Dataset(FS, str(tmp_path), manifest)
    labels = read_labels(labelled, 32)
    assert labels is not None
    assert labels.tolist() == list(range(0, 64, 4)) * 2
    faces = labelled.images("train", 32)
    assert all((face == draw_face(0, label, SIZE)[0]).all() for face, label in zip(faces, labels, strict=True))

    other_labels = table.set_column(1, "label", [list(range(ROWS, 2 * ROWS))])
    write_shard(FS, str(tmp_path), "1.parquet", shard_table(other_labels, images))
    with pytest.raises(ValueError, match=r"shard 1\.parquet"):
        read_labels(labelled, 32)
