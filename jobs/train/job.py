"""The train job: one recipe, trained in this process (scale.workers=0) or by DDP workers under Ray Train."""

import time
from contextlib import closing
from typing import Any

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from cluster.progress import Bar, watch
from cluster.ray_connection import connect
from cluster.settings import settings
from cluster.storage import check_uri
from cluster.tracking import status_of
from jobs.dataset import open_dataset, with_full_uri
from jobs.run_store import RunStore, open_run
from jobs.train.ray_trainer import run_on_ray
from jobs.train.stopping import StopRequest, interruptible


def train(recipe: Recipe, stem: str, *, fresh: bool = False) -> dict[str, Any]:
    """Train `recipe` to its end, going on where an earlier run of the same command stopped.

    Gives the run's name, folder, MLflow run id, metrics of the last epoch and seconds taken. A finished run is not
    run again unless `fresh`. Raises ValueError for a wrong recipe or dataset, RuntimeError when training failed.
    """
    recipe = with_full_uri(recipe)
    dataset = open_dataset(recipe.data.uri)
    check_uri(settings().store)
    record = open_run(recipe, stem, dataset.manifest, fresh=fresh)
    again = record.finished()
    started = time.monotonic()
    if not again:
        try:
            with record.background_sync():
                _run(recipe, dataset, record)
        except ValueError:
            record.discard()
            raise
        except BaseException as error:
            record.close(status_of(error))
            raise
    record.close("FINISHED")
    metrics = list(record.epochs().values())[-1]
    return {
        "run": record.name, "uri": record.uri, "run_id": record.run_id, "already_finished": again,
        "seconds": round(time.monotonic() - started, 1), "metrics": metrics,
    }  # fmt: skip


def _run(recipe: Recipe, dataset: Dataset, record: RunStore) -> None:
    if recipe.scale.workers == 0:
        from aecore.model.autoencoder import default_device
        from jobs.train.worker import Worker, work

        stop = StopRequest()
        with closing(Bar(record.name, "images")) as bar, interruptible(stop.on_signal):
            for _ in work(recipe, dataset, record, Worker(device=default_device(), show=bar.update, stop=stop)):
                pass
        return
    connect()
    with watch(record.name, record.name, "images"):
        run_on_ray(recipe, dataset.manifest, record)
