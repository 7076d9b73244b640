"""A training by DDP workers under Ray Train: how many, with what resources, and what is done when some fail."""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from aecore.config import Recipe, check_recipe
from aecore.data.shards import Manifest
from cluster.progress import publish
from cluster.ray_connection import has_gpu, ray_api_address, uses_local_ray
from cluster.settings import apply_env, exported_env, settings
from cluster.storage import open_uri
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, delete_folder
from jobs.train.process_group import process_group, worker_device
from jobs.train.stopping import THIS_PROCESS, interruptible

log = logging.getLogger(__name__)
RESIZE_SECONDS = 60.0  # between two looks whether the cluster has room for more workers
WORD_SECONDS = 5  # after so long a wait for room it is said
GROUP_SECONDS = 20  # for room for all workers of a group: Ray Train goes on counting a lost node for as long


def run_on_ray(recipe: Recipe, manifest: Manifest, record: RunStore, callbacks: Sequence[Any] = ()) -> None:
    """Train under Ray Train; further `callbacks` run in its controller. Raises ValueError or RuntimeError."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    try:
        with interruptible(), _own_ray():
            _fit(recipe, manifest, record, callbacks)
    except TrainingFailedError as error:
        raise training_error(error) from error


def _fit(recipe: Recipe, manifest: Manifest, record: RunStore, callbacks: Sequence[Any]) -> None:
    """Ray Train's `fit`, and again where it gives up for a worker's death. Raises TrainingFailedError."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError

    fs, root = open_uri(settings().store)
    notes = f"{root}/ray/{record.name}"  # Ray Train's own; ours are the record
    for left in reversed(range(recipe.scale.max_failures + 1)):
        delete_folder(fs, notes)  # of a driver that was killed, or of the time before
        try:
            return _trainer(recipe, manifest, record, callbacks).fit()
        except ControllerError as error:
            # A worker that dies as it is started or in its loop, Ray Train replaces; not one that dies in between.
            if not left or not isinstance(error.controller_failure, RayActorError):
                raise
            log.warning("a worker died as it began: trying again")
        finally:
            with suppress(OSError):  # a store that is gone now makes no finished training a failed one
                delete_folder(fs, notes)


def _own_ray() -> Any:
    """Tell Ray Train which Ray it is in; a context.

    The process that frees the CPUs of a training that was killed looks for the training in a Ray that it finds on its
    machine. Where that is another one, it takes the training for dead, and ends its workers.
    """
    import ray
    from ray.train.v2._internal import constants

    constants.ENV_VARS_TO_PROPAGATE.add("RAY_API_SERVER_ADDRESS")
    return ray_api_address(ray.get_runtime_context().gcs_address)


def _trainer(recipe: Recipe, manifest: Manifest, record: RunStore, callbacks: Sequence[Any]) -> Any:
    """Ray Train's trainer of `recipe`, with as many workers as it says."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    scale, streaming = recipe.scale, recipe.data.cache == "none"
    if not isinstance(scale.workers, int):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_SECONDS))
    streams = {}
    if streaming:
        from jobs.ray_data import ray_streams

        streams = ray_streams(recipe, manifest)
    fs, root = open_uri(settings().store)
    each = worker_resources(scale.max_workers, streaming)
    wait_for_room(scale.min_workers, each)
    trainer = _trainer_class()(
        # Not in train_loop_config, which Ray's dashboard may show: the environment may hold keys.
        partial(
            train_worker,
            recipe=recipe.model_dump(mode="json"),
            record=record,
            environment=exported_env(),
            report=bool(callbacks),
        ),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=has_gpu(),
            resources_per_worker=each,
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=record.name,
            storage_path=f"{root}/ray",
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=scale.max_failures),
            callbacks=[*_own_callbacks(), *callbacks],
        ),
        **streams,
    )
    # The same for each driver of this run: what a killed one had reserved, for minutes, is its successor's.
    object.__setattr__(trainer.train_run_context, "run_id", record.uri)
    return trainer


def _trainer_class() -> Any:
    """Ray Train's, without the process that deals out its datasets where it is given none: it slows down the start."""
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # TorchTrainer would import torch here

    class Trainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()
            return [each for each in made if self.datasets or not isinstance(each, DatasetsCallback)]

    return Trainer


def _own_callbacks() -> list[Any]:
    """What every training under Ray Train does at a mistake of the user, and when a worker is ended."""
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback

    class GiveUp(UserCallback):
        """Runs in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, ValueError | FloatingPointError):
                    raise error  # it would come again at each retry: raised here, it ends the run

    class EndAll(WorkerGroupCallback, ControllerCallback):
        """Runs in the controller, which forgets a group that fails as it gets its work: its CPUs would stay taken."""

        def __init__(self) -> None:
            self.group: Any = None

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.group = worker_group

        async def before_controller_shutdown(self) -> None:
            if self.group is not None and self.group.has_started():
                self.group.shutdown()

    class SaveFirst(WorkerCallback):
        """Runs in each worker, when the controller ends it: for Ctrl-C, another number of workers, a node's end."""

        def before_worker_shutdown(self) -> None:
            from jobs.train.stopping import SAVE_SECONDS, THIS_PROCESS  # the worker's, not copies of the driver's

            THIS_PROCESS.ask(SAVE_SECONDS)

    return [GiveUp(), EndAll(), SaveFirst()]


def worker_resources(workers: int, streaming: bool = False) -> dict[str, float]:
    """What each of `workers` takes: one GPU where there are some, else its even share of the CPUs of a node.

    Where images are `streaming` in, half of that: the tasks that decode them take the rest.
    """
    if has_gpu():
        return {"GPU": 1, "CPU": 1}
    cpus = [count for has in _nodes() if (count := int(has.get("CPU", 0)))]
    share = max(1, min(min(cpus), sum(cpus) // workers)) if cpus else 1
    return {"CPU": share if not streaming else share // 2 or 0.5}


def worker_capacity(each: dict[str, float]) -> int:
    """How many workers that take `each` the nodes of the cluster have room for, where nothing else runs."""
    return sum(min(int(has.get(name, 0) // takes) for name, takes in each.items()) for has in _nodes())


def _nodes() -> list[dict[str, float]]:
    """What each living node of the connected cluster has, free or taken."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_for_room(workers: int, each: dict[str, float]) -> None:
    """Wait until `workers` that take `each` can begin: Ray Train waits without a word, and there Ctrl-C does nothing.

    A placement group that stands for them tells a cluster that grows what is wanted. Raises ValueError where this
    machine's own Ray never has room for so many.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    found, share = worker_capacity(each), " and ".join(f"{count:g} {name}" for name, count in each.items())
    what = f"{workers} worker{'s' * (workers > 1)} with {share} each"
    if uses_local_ray() and found < workers:
        raise ValueError(f"{what}: there is room for {found} here, set scale.workers={found}")
    group = placement_group([each] * workers)
    try:
        if not group.wait(WORD_SECONDS):
            log.warning("waiting for room for %s; with nothing else running there is room for %d", what, found)
        while not group.wait(1):
            pass
    finally:
        remove_placement_group(group)


def training_error(error: Any) -> Exception:
    """The error to show for Ray's TrainingFailedError: a user's mistake as it was raised, or what went wrong."""
    causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for cause in causes:
        while cause is not None:
            if type(cause) is ValueError:
                return ValueError(str(cause))
            if type(cause) is FloatingPointError:
                return RuntimeError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return RuntimeError(f"training failed: {causes[0]}")


def train_worker(*, recipe: dict[str, Any], record: RunStore, environment: dict[str, str], report: bool) -> None:
    """The loop of one Ray Train worker; `recipe` as JSON. `report`: each epoch's metrics, to callbacks that want them.

    Without need it would cost time: Ray Train takes one report in two seconds, and an epoch on a GPU may be shorter.
    """
    import ray.train
    from torch.nn.parallel import DistributedDataParallel

    from aecore.data.shuffle import World
    from jobs.train.worker import Worker, work

    apply_env(environment)
    record.check_seen()
    checked, context, device = check_recipe(recipe), ray.train.get_context(), worker_device()
    world = World(context.get_world_rank(), context.get_world_size())
    worker = Worker(
        world, device,
        show=partial(publish, record.name),
        wrap=DistributedDataParallel if world.size > 1 else lambda model: model,
        shard_of=ray.train.get_dataset_shard if checked.data.cache == "none" else None,
        stop=THIS_PROCESS,
        warned=lambda: ray.train.get_preemption_info() is not None,
    )  # fmt: skip
    with process_group(world, device):
        for metrics in work(checked, open_dataset(checked.data.uri), record, worker):
            if report:
                ray.train.report(metrics)
