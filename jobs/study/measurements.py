"""Measure finished runs for a study. Each measurement is stored with its run and reused by later studies."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aecore.config import Recipe, stored_recipe
from aecore.data.dataset import Dataset
from aecore.data.io import read_json
from aecore.data.shards import Manifest
from cluster.ray_connection import connect
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, find_run

if TYPE_CHECKING:
    from aecore.analysis import Measurement, StudiedModel
    from aecore.metrics.inception import MetricFn
    from aecore.model.autoencoder import DiagonalGaussian
    from jobs.study.images import StudyImages

DEFAULT_LIMIT = 6_000  # training images that are encoded
DEFAULT_NUM_SAMPLES = 256  # images that are decoded and scored for each sampler and sweep value


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder, its recipe and the digest of the dataset it was trained on."""

    store: RunStore
    recipe: Recipe
    dataset_digest: str

    @property
    def summary(self) -> dict[str, Any]:
        """Return the run's name and settings, with the keys of metrics.json."""
        recipe = self.recipe
        return {
            "run": self.store.name, "z_dim": recipe.model.z_dim, "kl_factor": recipe.loss.kl_factor,
            "task": recipe.task.kind, "epochs": recipe.optim.epochs,
        }  # fmt: skip


def find_finished_run(name: str) -> FinishedRun:
    """Return the run `name`. Raises ValueError if it does not exist or has not finished."""
    store = find_run(name)
    store.check_finished()
    fs, root = store.folder
    run_json = read_json(fs, f"{root}/run.json")
    return FinishedRun(store, stored_recipe(run_json["recipe"]), run_json["dataset"])


def make_options(manifest: Manifest, limit: int, num_samples: int) -> dict[str, int]:
    """Return the options that metrics depend on. `num_samples` is reduced to the count of held-out images.

    Distances of few real images to many others do not compare with those of as many decoded ones. The keys are part of
    the digest of stored measurements: they must not change.
    """
    from jobs.study.images import held_out_split

    return {"limit": limit, "judged": min(num_samples, manifest.count(held_out_split(manifest)))}


@dataclass(frozen=True)
class StudyDataset:
    """The dataset that runs were trained on, and the options of `make_options` to study them with."""

    dataset: Dataset
    options: dict[str, int]

    @cached_property
    def images(self) -> "StudyImages":
        """Return the real images, which are read once."""
        from jobs.study.images import read_images

        return read_images(self.dataset, self.options["limit"], self.options["judged"])


def open_study_dataset(runs: list[FinishedRun], limit: int, num_samples: int) -> StudyDataset:
    """Open the dataset that all runs were trained on.

    Raises ValueError if the runs have different datasets, or if the dataset has changed or is too small.
    """
    from jobs.study.images import check_image_count

    first = runs[0]
    for run in runs:
        if run.dataset_digest != first.dataset_digest:
            raise ValueError(
                f"a study compares runs on one dataset: '{first.store.name}' was trained on {first.recipe.data.uri}, "
                f"'{run.store.name}' on {run.recipe.data.uri}; study them apart"
            )
    dataset = open_dataset(first.recipe.data.uri)
    if dataset.manifest.digest != first.dataset_digest:
        raise ValueError(
            f"the dataset at {first.recipe.data.uri} has changed since '{first.store.name}' was trained: restore it, "
            "or train again"
        )
    check_image_count(dataset.manifest, limit)
    return StudyDataset(dataset, make_options(dataset.manifest, limit, num_samples))


class MeasuredRun:
    """A finished run and its measurements, loaded from the store or computed.

    With `fresh`, measurements are computed even if they are stored. Each is loaded or computed once.
    """

    def __init__(self, run: FinishedRun, study_dataset: StudyDataset, *, fresh: bool = False) -> None:
        self.run, self.study_dataset, self.fresh = run, study_dataset, fresh
        # With the epochs, since a killed `train` that continues a run may leave the measurements of the shorter one.
        self.options = study_dataset.options | {"epochs": run.recipe.optim.epochs}
        self._measurements: dict[str, Measurement] = {}  # by path

    def measure(self, name: str) -> "Measurement":
        """Return a measurement of `aecore.analysis.MEASUREMENTS`."""
        from aecore.analysis import MEASUREMENTS

        return self._load_or_compute(name, self.options, lambda model: MEASUREMENTS[name](model))

    def measure_inception(self, weights_sha256: str, make_scorer: "Callable[[], MetricFn]") -> "Measurement":
        """Return the scores by the Inception network with these weights. `make_scorer` is called if none are stored."""
        from aecore.analysis import measure_inception

        options = self.options | {"weights": weights_sha256}
        return self._load_or_compute("inception", options, lambda model: measure_inception(model, make_scorer()))

    def _load_or_compute(
        self, name: str, options: dict[str, Any], compute: "Callable[[StudiedModel], Measurement]"
    ) -> "Measurement":
        from jobs.study.measurement_store import load_measurement, measurement_path, save_measurement

        fs, root = self.run.store.folder
        path = measurement_path(root, name, options)
        if path in self._measurements:
            return self._measurements[path]
        measurement = None if self.fresh else load_measurement(fs, path)
        if measurement is None:
            measurement = compute(self._model)
            save_measurement(fs, path, measurement)
        self._measurements[path] = measurement
        return measurement

    @cached_property
    def _model(self) -> "StudiedModel":
        from aecore.analysis import StudiedModel
        from aecore.model.autoencoder import default_device

        images, saved = self.study_dataset.images, self.run.store.load_model(default_device())
        return StudiedModel(saved, images.train, images.held_out, images.metric_suite, self._make_cluster_encoder())

    def _make_cluster_encoder(self) -> "Callable[[], DiagonalGaussian] | None":
        """Return a function that encodes the training images on the cluster; None if one process can do it."""
        from jobs.study.images import MAX_IN_PROCESS

        manifest, limit = self.study_dataset.dataset.manifest, self.options["limit"]
        if min(limit, manifest.count("train")) <= MAX_IN_PROCESS:
            return None

        def encode() -> "DiagonalGaussian":
            connect()  # before ray.data is imported: Ray reads the variables that it sets then
            from jobs.study.encoding import encode_on_cluster

            return encode_on_cluster(self.run.store.uri, self.run.recipe.data.uri, manifest, limit)

        return encode
