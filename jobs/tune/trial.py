"""One trial of a campaign, in its own process: a run that is trained as `zpoint train` trains it."""

import os
from contextlib import closing
from functools import partial
from typing import Any

from aecore.config import Recipe
from aecore.data.cache_eviction import CacheSpaceError
from aecore.data.dataset import Dataset
from aecore.errors import one_line
from cluster.memory import release_memory
from cluster.progress import publish
from cluster.settings import apply_env
from cluster.storage import open_uri
from jobs.run_store import RunStore, stored_run

STOP_S = 600  # for a stopped trial to write its checkpoint before its process takes the next trial


def run_trial(config: dict[str, Any], *, recipe: Recipe, env: dict[str, str], gpu_share: float) -> None:
    """Train one trial: a single worker in this process, several under Ray Train.

    Reports each epoch's metrics, then the trial's outcome: finished, diverged or, after a user's mistake, refused. Any
    other exception ends the process's trial, which Tune starts again.
    """
    from ray import tune as ray_tune

    apply_env(env)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(STOP_S)
    recipe = recipe.at(config["point"])
    run_store = stored_run(config["run"])  # the driver keeps the MLflow run
    try:
        _train(recipe, run_store, gpu_share)
    except CacheSpaceError:  # of this node's disk, whose space other runs may free, and not of other nodes
        raise
    except ValueError as error:
        ray_tune.report({"outcome": "refused", "reason": one_line(error, limit=None)})
    except FloatingPointError as error:
        ray_tune.report({"outcome": "diverged", "reason": one_line(error)})
    except RuntimeError as error:
        if recipe.scale.max_workers <= 1:
            raise
        ray_tune.report({"outcome": "lost", "reason": one_line(error)})  # Ray Train has retried it
    else:
        ray_tune.report({"outcome": "finished"})
    finally:
        release_memory()


def _train(recipe: Recipe, run_store: RunStore, gpu_share: float) -> None:
    from ray import tune as ray_tune

    dataset = Dataset.open(*open_uri(recipe.data.uri))  # the driver has checked it: a store that fails now may recover
    if recipe.scale.max_workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        from jobs.train.ray_trainer import run_on_ray

        return run_on_ray(recipe, dataset, run_store, [TuneReportCallback()])
    from aecore.model.autoencoder import default_device
    from jobs.train.metrics import TrainingMetrics
    from jobs.train.worker import Worker, train_loop

    device = default_device()
    with closing(TrainingMetrics(run_store.name, 0, device)) as exported:
        progress = partial(publish, run_store.name)
        worker = Worker(device=device, gpu_share=gpu_share, show_progress=progress, observe_step=exported.observe_step)
        with closing(train_loop(recipe, dataset, run_store, worker)) as epochs:  # a stopped trial writes its checkpoint
            for metrics in epochs:
                ray_tune.report(metrics)
