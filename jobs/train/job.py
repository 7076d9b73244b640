"""The train job: one recipe, trained in this process (scale.workers=0) or by DDP workers under Ray Train."""

import time
from contextlib import closing
from typing import Any

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from cluster.progress import Bar, watch
from cluster.ray_connection import connect, uses_local_ray
from cluster.settings import settings
from cluster.signals import interruptible
from cluster.storage import check_uri
from cluster.tracking import check_tracking_uri
from jobs.dataset import open_dataset
from jobs.mlflow_run import MlflowRun
from jobs.run_store import RunStore, check_existing_run, lock_run, open_run, run_name, stored_run


def train(recipe: Recipe, stem: str, *, fresh: bool = False) -> dict[str, Any]:
    """Train `recipe` to its end, resuming a run that the same command began.

    Returns the run's name, folder, MLflow run id, last epoch's metrics and seconds taken. A finished run is trained
    again only if `fresh`; with more `optim.epochs` it goes on, with other `points` its model is saved again. Raises
    ValueError for a wrong recipe or dataset, for a run that another process trains and for resources that this machine
    lacks, RuntimeError if the training fails.
    """
    dataset = open_dataset(recipe.data.uri)
    check_uri(settings().store)
    check_tracking_uri()
    name = run_name(recipe, stem, dataset.manifest)
    started = time.monotonic()
    with lock_run(name):
        already_finished = not fresh and stored_run(name).finished(recipe)
        if not already_finished:  # refuse before `open_run`, which deletes or changes an earlier run
            if not fresh:
                check_existing_run(recipe, name, dataset.manifest)
            _check_resources(recipe, dataset)
        run_store = open_run(recipe, stem, dataset.manifest, fresh=fresh)
        if already_finished:
            MlflowRun(run_store).end("FINISHED")
        else:
            with MlflowRun(run_store).log_training():
                if recipe.scale.workers == 0:
                    _train_in_process(recipe, dataset, run_store)
                else:
                    _train_on_ray(recipe, dataset, run_store)
    return {
        "run": run_store.name, "uri": run_store.uri, "run_id": run_store.run_id, "already_finished": already_finished,
        "seconds": round(time.monotonic() - started, 1), "metrics": run_store.epoch_metrics(recipe.optim.epochs),
    }  # fmt: skip


def _check_resources(recipe: Recipe, dataset: Dataset) -> None:
    """Connect to Ray unless the training needs none.

    Raises ValueError if the dataset has images that the network or the task does not take, or if the batches, the
    workers or the images do not fit.
    """
    import torch

    from aecore.data.loaders import Batch
    from aecore.model.autoencoder import ImageShape, default_device
    from aecore.model.corruptions import make_eval_pair
    from jobs.train.placement import check_capacity, worker_resources
    from jobs.train.worker import check_batches, check_caches, check_node_cache, fits_device

    check_batches(recipe, dataset.count("train"))
    ImageShape(dataset.manifest.size, dataset.manifest.channels)
    make_eval_pair(recipe, Batch.whole(torch.zeros(1, *dataset.image_shape, dtype=torch.uint8)), 0)
    if recipe.scale.workers == 0:
        check_caches(recipe, dataset, default_device())
        return
    connect()
    resources = worker_resources(recipe.scale, streaming=recipe.data.cache == "none")
    check_capacity(recipe.scale.min_workers, resources)
    on_gpu = "GPU" in resources
    if not on_gpu:
        fits_device(recipe.data.cache, dataset.decoded_bytes, torch.device("cpu"))
    if uses_local_ray():
        check_node_cache(recipe, dataset, on_gpu=on_gpu)


def _train_on_ray(recipe: Recipe, dataset: Dataset, run_store: RunStore) -> None:
    from jobs.train.ray_trainer import run_on_ray  # Ray reads at its import the variables that `connect` sets

    with watch(run_store.name, run_store.name, "images"):
        run_on_ray(recipe, dataset, run_store)


def _train_in_process(recipe: Recipe, dataset: Dataset, run_store: RunStore) -> None:
    from aecore.model.autoencoder import default_device
    from jobs.train.stopping import StopRequest
    from jobs.train.worker import Worker, train_loop

    stop = StopRequest()
    with closing(Bar(run_store.name, "images")) as bar, interruptible(stop.on_signal):
        worker = Worker(device=default_device(), show_progress=bar.update, stop=stop)
        for _ in train_loop(recipe, dataset, run_store, worker):
            pass
