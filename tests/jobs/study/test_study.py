"""`zpoint study`: one page that loads nothing, parts that are kept, refusals that write nothing."""

import json
import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from aecore import analysis
from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.shards import shard_table, write_shard
from aecore.data.synthetic_faces import draw_face
from aecore.metrics import inception
from cluster import tracking
from jobs.cli import main
from jobs.dataset import open_dataset
from jobs.run_store import find_run
from jobs.study.images import read_labels
from jobs.study.measurements import options_for
from jobs.study.part_store import load_part, part_path, save_part

pytestmark = pytest.mark.usefixtures("tracking")
FS, ROWS, SIZE = pafs.LocalFileSystem(), 64, 16
OPTIONS = ("--judged", 12)


@pytest.fixture
def two_runs(zpoint: Callable, tiny: str, many_faces: Path) -> list[str]:
    ours = (f"data.uri={many_faces}", "optim.epochs=1")
    zpoint("train", tiny, *ours, "name=ae", "loss.kl_factor=0")
    zpoint("train", tiny, *ours, "name=vae", "model.z_dim=4", "task.kind=denoise")
    return ["ae", "vae"]


def test_a_study_is_one_page_that_loads_nothing(zpoint: Callable, two_runs: list[str]):
    result = zpoint("study", *two_runs, "--out", "report", *OPTIONS)
    page = Path(result["report"]).read_text()
    assert "default-src 'none'" in page
    for found in re.findall(r"""(?:src|href|url|data)\s*[=(]\s*["']?([^"'\s)>]+)""", page):
        assert found.startswith(("data:image/", "#")), found
    assert "@import" not in page
    assert "<script" not in page
    for sentence in (text for texts in result["findings"].values() for text in texts):
        assert sentence in unescape(page).replace("\N{NO-BREAK SPACE}", " ")

    folder = Path("report")
    for path in folder.glob("*.png"):
        Image.open(path).load()
    charts = {path.stem for path in folder.glob("chart-*.png")}
    assert charts >= {f"chart-{name}-hog_frechet" for name in (*analysis.SWEEPS, "samplers")}
    assert len(list(folder.glob("pictures-*.png"))) == 2 * (len(analysis.SWEEPS) + 4)

    figures = json.loads((folder / "metrics.json").read_text())
    for run, name in zip(figures["runs"], two_runs, strict=True):
        assert run["run"] == name
        assert [row["boundary"] for row in run["cube"]] == list(analysis.SWEEPS["cube"][1])
        assert all(0 <= row["faces"] <= 1 <= row["hog_frechet"] + 1 for row in run["sphere"])
        artifacts = tracking.client().list_artifacts(find_run(name).run_id, "study")
        assert {Path(one.path).name for one in artifacts} == {path.name for path in folder.iterdir()}


def test_no_more_is_judged_than_there_are_unseen_images(many_faces: Path):
    """Distances of few real images to many are not those of as many decoded ones."""
    manifest = open_dataset(str(many_faces)).manifest
    assert options_for(manifest, 100, 1_000) == {"limit": 100, "judged": 64}
    assert options_for(manifest, 100, 12) == {"limit": 100, "judged": 12}


def test_a_study_that_was_stopped_goes_on(
    zpoint: Callable, two_runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    measured: list[str] = []

    def counted(name: str, measure: Callable, stop: bool) -> Callable:
        def part(subject: analysis.Subject) -> analysis.Part:
            if stop and name == "tasks":
                raise KeyboardInterrupt
            measured.append(name)
            return measure(subject)

        return part

    parts = dict(analysis.PARTS)
    few = ("real", "samplers", *analysis.SWEEPS, "tasks", "ways", "directions", "points")
    assert tuple(parts) == few
    monkeypatch.setattr(analysis, "PARTS", {name: counted(name, f, True) for name, f in parts.items()})
    with pytest.raises(SystemExit) as caught:
        main(["study", "ae", *map(str, OPTIONS)])
    assert caught.value.code == 130
    assert not list(Path(os.environ["ZPOINT_HOME"], "studies").rglob("*.*"))

    monkeypatch.setattr(analysis, "PARTS", {name: counted(name, f, False) for name, f in parts.items()})
    first = zpoint("study", "ae", *OPTIONS)
    assert measured == list(few)
    assert zpoint("study", "ae", *OPTIONS)["findings"] == first["findings"]
    assert len(measured) == len(few)
    page = Path(first["report"]).read_text()
    zpoint("study", "ae", *OPTIONS, "--fresh")
    assert len(measured) == 2 * len(few)
    assert Path(first["report"]).read_text() == page


def test_a_run_that_was_stored_without_a_mixture_is_studied_with_one(zpoint: Callable, two_runs: list[str]):
    path = Path(find_run("ae").uri) / "model" / "latents.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.startswith("gmm")}, path)
    page = Path(zpoint("study", *two_runs, *OPTIONS, "--fresh")["report"]).read_text()
    assert "Stored without a mixture: ae; this study fitted one" in page


def test_inception_figures_stand_in_tables_and_json_only_where_weights_are_named(
    zpoint: Callable, refused: Callable, two_runs: list[str], monkeypatch: pytest.MonkeyPatch
):
    Path("wrong.pth").write_bytes(b"<html>")
    for weights, said in {"none.pth": "no Inception weights at none.pth", "wrong.pth": "no file of weights"}.items():
        assert said in refused("study", "ae", "--inception", weights, "--out", "never")
    assert not Path("never").exists()
    asked = []

    class Network:
        def __init__(self, weights: Path) -> None:
            self.digest = weights.name

        def against(self, reference: np.ndarray) -> Callable:
            asked.append(len(reference))
            return lambda images: {"fid": len(images) + 0.25, "kid": 0.0, "precision": 0.5, "recall": images.std()}

    monkeypatch.setattr(inception, "Inception", Network)
    heads = [f"<th>{head}</th>" for head in ("FID", "KID", "precision", "recall")]
    for argv, there in (((), False), (("--inception", "a.pth"), True), (("--inception", "a.pth"), True)):
        report = Path(zpoint("study", *two_runs, *OPTIONS, *argv, "--out", "report")["report"])
        page, figures = report.read_text(), json.loads((report.parent / "metrics.json").read_text())
        # The models' table and the samplers' have them.
        assert [page.count(head) for head in heads] == [2 * there] * 4
        assert ("FID (Heusel 2017)" in page) == there
        for run in figures["runs"]:
            scored = (run["real"], *run["samplers"].values())
            assert {one.get("fid") for one in scored} == {12.25 if there else None}
            assert "fid" not in run["cube"][0]
    assert asked == [128]


def test_what_cannot_be_studied_is_refused(refused: Callable, zpoint: Callable, tiny: str, faces: Path, two_runs: list):
    assert "no run or campaign 'nonesuch'" in refused("study", "nonesuch")
    Path("report").touch()
    assert "--out report is a file" in refused("study", "ae", "--out", "report")
    zpoint("train", tiny, f"data.uri={faces}", "optim.epochs=1", "name=other")
    assert "a study compares runs on one dataset: 'ae' was trained on" in refused("study", "ae", "other")
    assert "at least 64 images of each split: here are 48 in train" in refused("study", "other")
    record = find_run("vae")
    (Path(record.uri) / "model" / "config.json").unlink()
    assert "run 'vae' has not finished" in refused("study", "ae", "vae")


def test_a_damaged_part_counts_as_absent(tmp_path: Path):
    part = analysis.Part([{"faces": 0.5}], {"pictures": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)})
    path = part_path(str(tmp_path), "cube", {"judged": 12})
    assert path != part_path(str(tmp_path), "cube", {"judged": 13})
    assert load_part(FS, path) is None
    save_part(FS, path, part)
    kept = load_part(FS, path)
    assert kept is not None
    assert kept.figures == part.figures
    assert (kept.arrays["pictures"] == part.arrays["pictures"]).all()
    data = Path(path).read_bytes()
    for damaged in (data[: len(data) // 2], data.replace(bytes(range(12)), bytes(12)), b""):
        Path(path).write_bytes(damaged)
        assert load_part(FS, path) is None


def test_labels_go_with_the_images_that_are_read(many_faces: Path, tmp_path: Path):
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
    assert all((faces[i] == draw_face(0, label, SIZE)[0]).all() for i, label in enumerate(labels))
