"""The runs, images and options that a study measures."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from aecore import analysis
from aecore.config import check_recipe
from jobs.dataset import open_dataset
from jobs.study.images import check_image_count, held_out_split, read_images
from jobs.study.measurement_store import load_measurement, save_measurement
from jobs.study.measurements import (
    FinishedRun,
    MeasuredRun,
    StudyDataset,
    find_finished_run,
    make_options,
    open_study_dataset,
)


def make_run(name: str, uri: Path, digest: str) -> FinishedRun:
    store: Any = SimpleNamespace(name=name)
    return FinishedRun(store, check_recipe({"data": {"uri": str(uri)}}), digest)


def test_runs_are_studied_on_the_dataset_of_their_training(many_faces: Path):
    digest = open_dataset(str(many_faces)).manifest.digest
    runs = [make_run(name, many_faces, digest) for name in "ab"]
    study_dataset = open_study_dataset(runs, 64, 256)
    assert study_dataset.dataset.manifest.digest == digest
    assert study_dataset.options == {"limit": 64, "judged": 64}
    other = make_run("c", Path("other"), "0123")
    with pytest.raises(ValueError, match=r"on one dataset: 'a' was trained on .*, 'c' on .*other; study them apart"):
        open_study_dataset([*runs, other], 64, 256)
    with pytest.raises(ValueError, match="has changed since 'd' was trained: restore it, or train again"):
        open_study_dataset([make_run("d", many_faces, "0123")], 64, 256)
    with pytest.raises(ValueError, match=r"a study needs at least 64 images, not --limit 63"):
        open_study_dataset(runs, 63, 256)


def test_held_out_images_are_those_of_test_or_else_of_valid(many_faces: Path):
    manifest = open_dataset(str(many_faces)).manifest
    assert held_out_split(manifest) == "test"
    for splits in ({"test": ()}, {}):
        without_test = manifest.model_copy(
            update={"splits": {name: manifest.splits[name] for name in ("train", "valid")} | splits}
        )
        assert held_out_split(without_test) == "valid"
        check_image_count(without_test, 64)
    only_train = manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}})
    with pytest.raises(ValueError, match=r"found 128 in train and 0 in valid: ingest more images$"):
        check_image_count(only_train, 64)


def test_as_many_images_are_scored_as_there_are_held_out_ones(many_faces: Path):
    manifest = open_dataset(str(many_faces)).manifest
    assert make_options(manifest, 6_000, 256) == {"limit": 6_000, "judged": 64}
    assert make_options(manifest, 6_000, 12)["judged"] == 12


def test_held_out_images_are_evenly_spaced_and_as_many_as_are_scored_whatever_the_limit(many_faces: Path):
    """Distances of few real images to many do not compare with those of as many decoded ones."""
    dataset = open_dataset(str(many_faces))
    images = read_images(dataset, 16, 32)
    assert len(images.train) == 16
    assert (images.held_out == dataset.images("test")[::2]).all()  # not only the first classes of a split


def test_measurements_of_a_shorter_training_are_not_those_of_the_continued_one(
    many_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A training that is killed as it begins to go on leaves them in the run's folder."""
    calls = itertools.count(1)
    monkeypatch.setattr(analysis, "MEASUREMENTS", {"real": lambda _: analysis.Measurement(next(calls))})
    monkeypatch.setattr(MeasuredRun, "_model", None)
    dataset = open_dataset(str(many_faces))
    study_dataset = StudyDataset(dataset, make_options(dataset.manifest, 64, 12))
    store: Any = SimpleNamespace(name="a", folder=(pafs.LocalFileSystem(), str(tmp_path)))
    measured = []
    for epochs in (10, 20, 20):
        recipe = check_recipe({"data": {"uri": str(many_faces)}, "optim": {"epochs": epochs}})
        run = FinishedRun(store, recipe, dataset.manifest.digest)
        measured.append(MeasuredRun(run, study_dataset).measure("real").metrics)
    assert measured == [1, 2, 2]


ODD_NAMES = (
    "file", "allow_pickle", "figures.json", "names.json", "arr_0", "", "a", "a.npy", "a\0b", "/", "..", "\udcff",
)  # fmt: skip


@pytest.mark.parametrize("names", [ODD_NAMES, ("x" * 70_000,), ()])
def test_stored_measurement_has_arrays_of_any_name(tmp_path: Path, names: tuple[str, ...]):
    """The directions of a dataset's classes and attributes have their names."""
    fs, path = pafs.LocalFileSystem(), str(tmp_path / "directions.npz")
    stored = analysis.Measurement({"sds": 3.0}, {name: np.array([index]) for index, name in enumerate(names)})
    save_measurement(fs, path, stored)
    assert load_measurement(fs, path) == stored


def test_measurement_of_an_earlier_version_is_loaded(tmp_path: Path):
    metrics = np.frombuffer(b'{"sds": 3.0}', np.uint8)
    np.savez(tmp_path / "old.npz", **{"figures.json": metrics, "axis 1": np.arange(4), "smiling": np.arange(9)})
    loaded = load_measurement(pafs.LocalFileSystem(), str(tmp_path / "old.npz"))
    assert loaded is not None
    assert loaded.metrics == {"sds": 3.0}
    assert {name: len(array) for name, array in loaded.arrays.items()} == {"axis 1": 4, "smiling": 9}


def test_unfinished_run_is_not_studied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZPOINT_STORE", str(tmp_path))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text('{"run_id": "", "recipe": {"optim": {"epochs": 1}}}')
    with pytest.raises(ValueError, match="run 'a' has not finished: repeat the command that trains it"):
        find_finished_run("a")
