"""A training by DDP workers under Ray Train's TorchTrainer, from the driver to the loop of each worker.

Imported only where a training runs on Ray, after `cluster.ray_connection.connect`: it imports ray.train.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError, RayTaskError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.state import get_log

from aecore.config import Recipe, Scale
from aecore.data.cache_eviction import CacheSpaceError
from aecore.data.dataset import Dataset
from aecore.data.shuffle import World
from aecore.errors import one_line
from cluster.network import find_interface
from cluster.progress import publish, publish_warning
from cluster.ray_compat import end_worker_groups, leave_out_nodes, own_state_api, set_run_id
from cluster.ray_connection import uses_local_ray
from cluster.settings import apply_env, exported_env, settings
from cluster.signals import interruptible
from cluster.storage import CLOCK_FIX, describe_s3_error, open_uri
from jobs.run_store import RunStore, delete_folder
from jobs.train.placement import (
    WARN_AFTER_S,
    describe_request,
    wait_for_resources,
    worker_capacity,
    worker_resources,
)
from jobs.train.stopping import PROCESS_STOP, SAVE_TIMEOUT_S, stop_this_process

log = logging.getLogger(__name__)
RESIZE_S = 60.0  # between two checks whether the cluster has resources for more workers
GROUP_START_S = 20  # for all workers of an elastic group to start: Ray Train counts a lost node for as long
MAX_CLOCK_OFFSET_S = 30.0  # of two workers' hosts
LAST_LINES, LINE_WIDTH = 20, 200  # of a worker that died
PROCESS_GROUP_S = 6 * 3600  # a node may fill its cache hours after the others, which wait in a collective
TorchBackend: Any = TorchConfig().backend_cls


class NodeError(Exception):
    """An error that is of the worker's node alone, or may be."""

    def __init__(self, message: str, node_id: str) -> None:
        super().__init__(message, node_id)  # both, so that the error can be pickled
        self.node_id = node_id

    def __str__(self) -> str:
        return str(self.args[0])


class UnfitNodeError(NodeError, ValueError):
    """The worker's node cannot train: its disk is full, or it has another torch. Other nodes may."""


class StoreAccessError(NodeError, RuntimeError):
    """The worker does not reach the store: its node has no access, or the store does not answer at the moment."""


def run_on_ray(recipe: Recipe, dataset: Dataset, run_store: RunStore, callbacks: Sequence[Any] = ()) -> None:
    """Train `recipe` under Ray Train, whose controller calls further `callbacks`. Raises ValueError or RuntimeError."""
    fs, root = open_uri(settings().store)
    ray_folder = f"{root}/ray/{run_store.name}"  # Ray Train's files; the run's own are in `run_store`
    with interruptible(), own_state_api():
        for retries in reversed(range(recipe.scale.max_failures + 1)):
            delete_folder(fs, ray_folder)  # a killed driver or the attempt before left it
            try:
                make_trainer(recipe, dataset, run_store, callbacks).fit()
                return
            except ControllerError as error:
                # Ray Train replaces a worker that dies at its start or in its loop, but not one that dies in between.
                if not retries or not isinstance(error.controller_failure, RayActorError):
                    raise training_error(error) from error
                log.warning("a worker died before its loop began; starting the training again")
            except TrainingFailedError as error:
                _log_last_lines(error)
                raise training_error(error) from error
            finally:
                with suppress(OSError):  # a store that fails now does not undo a finished training
                    delete_folder(fs, ray_folder)


def make_trainer(recipe: Recipe, dataset: Dataset, run_store: RunStore, callbacks: Sequence[Any]) -> Any:
    """Return Ray Train's TorchTrainer of `recipe`, once the cluster has resources for its workers."""
    scale, streaming = recipe.scale, recipe.data.cache == "none"
    if not isinstance(scale.workers, int):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_START_S))
    if uses_local_ray():  # no node of it is ever preempted: start no process that watches for that
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    datasets = {}
    if streaming:
        from jobs.ray_data import streaming_datasets

        datasets = streaming_datasets(recipe, dataset.manifest)
    resources = worker_resources(scale, streaming=streaming)
    wait_for_resources(scale.min_workers, resources)
    fail = FailureCallback(run_store.name, resources, scale)
    save = end_worker_groups(stop_this_process, SAVE_TIMEOUT_S)
    fs, root = open_uri(settings().store)
    trainer = TorchTrainer(
        # Not in train_loop_config, which Ray's dashboard may show: the environment may hold keys.
        partial(
            train_loop_per_worker,
            recipe=recipe,
            run_store=run_store,
            env=exported_env(),
            torch_version=version("torch"),
            report=bool(callbacks),
            gpu_share=resources.get("GPU", 1.0),
        ),
        torch_config=NodeTorchConfig(timeout_s=PROCESS_GROUP_S),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=RunConfig(
            name=run_store.name,
            storage_path=f"{root}/ray",
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=scale.max_failures),
            callbacks=[fail, leave_out_nodes(fail.left_out), save, *callbacks],
        ),
        **datasets,
    )
    set_run_id(trainer, run_store.uri)  # a killed driver's reservation of CPUs goes to its successor
    return trainer


class NodeTorchConfig(TorchConfig):
    """TorchConfig whose gloo, DDP on CPUs, binds to the address by which Ray knows the node.

    gloo itself binds to what the host's name resolves to. On Debian that is 127.0.1.1, which no other host reaches.
    """

    @property
    def backend_cls(self) -> Any:
        return NodeTorchBackend


class NodeTorchBackend(TorchBackend):
    """Ray Train's torch backend, with gloo's interface set in each worker before the process group is made."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)


def bind_gloo() -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, to the interface of this node's Ray address."""
    if interface := find_interface(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


class FailureCallback(UserCallback):
    """Ends the run at a user's mistake, which a retry would repeat; logs any other failure, and what a retry waits for.

    If only a node is unfit, as one with a full disk, an elastic training leaves it out and goes on with the others.
    """

    def __init__(self, run: str, resources: dict[str, float], scale: Scale) -> None:
        self.run, self.resources, self.scale = run, resources, scale
        self.left_out: set[str] = set()  # node ids

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first user's mistake in Ray Train's controller, which ends the run; log any other failure."""
        for error in worker_exceptions.values():
            left_out = isinstance(error, NodeError) and self._leave_out(error)
            if not left_out and isinstance(error, ValueError | FloatingPointError):
                raise error
        first = _dead_first(worker_exceptions.values())[0]
        text = f"{len(worker_exceptions)} of the workers failed: {one_line(_dead_actor(first) or first)}"
        publish_warning(self.run, text)
        timer = threading.Timer(WARN_AFTER_S, self._warn_of_missing_resources)
        timer.daemon = True
        timer.start()

    def _leave_out(self, error: NodeError) -> bool:
        """Leave out the node of an elastic training; return False if too few would remain, or if it is not elastic."""
        without = {*self.left_out, error.node_id}
        if isinstance(self.scale.workers, int):
            return False
        if worker_capacity(self.resources, without=without) < self.scale.min_workers:
            return False
        self.left_out.add(error.node_id)
        publish_warning(self.run, f"{error}; the training goes on without this node")
        return True

    def _warn_of_missing_resources(self) -> None:
        """Log it if the nodes that are left cannot hold the workers: Ray Train waits for others without a log line."""
        capacity = worker_capacity(self.resources, without=self.left_out)
        if capacity < self.scale.min_workers:
            request = describe_request(self.scale.min_workers, self.resources)
            publish_warning(self.run, f"waiting for resources for {request}; the cluster has resources for {capacity}")


def training_error(error: Any) -> Exception:
    """Return the ValueError or FloatingPointError that caused the error of Ray Train or Tune, else a RuntimeError."""
    causes = _worker_failures(error) or [getattr(error, "controller_failure", error)]
    for cause in causes:
        while cause is not None:
            if type(cause) in (ValueError, UnfitNodeError, CacheSpaceError):
                return ValueError(str(cause))
            if type(cause) is FloatingPointError:
                return FloatingPointError(str(cause))
            cause = getattr(cause, "cause", None) or getattr(cause, "__cause__", None)
    first = causes[0].cause if isinstance(causes[0], RayTaskError) else causes[0]  # whose text is a traceback
    return RuntimeError(f"training failed: {first}")


def _worker_failures(error: Any) -> list[Any]:
    """Return the errors of the workers that ended a training, as `_dead_first` sorts them."""
    return _dead_first(getattr(error, "worker_failures", {}).values())


def _dead_first(failures: Iterable[Any]) -> list[Any]:
    """Return the errors of workers, first those of dead ones: the others only lost their connection to them."""
    return sorted(failures, key=lambda failure: _dead_actor(failure) is None)


def _dead_actor(failure: Any) -> Any:
    """Return the RayActorError of a worker that died, None for another error."""
    return getattr(failure, "health_check_failure", None)


def _log_last_lines(error: Any) -> None:
    """Log the last lines of each worker that died; Ray keeps a worker's stderr in a file on its node."""
    for failure in _worker_failures(error):
        with suppress(Exception):  # it did not die, or its node is away too
            text = "".join(get_log(actor_id=_dead_actor(failure).actor_id, suffix="err", tail=LAST_LINES)).rstrip()
            if text:
                lines = [f"  {line[:LINE_WIDTH]}" for line in text.splitlines()]
                log.error("a worker died; its last lines:\n%s", "\n".join(lines))


def train_loop_per_worker(
    *, recipe: Recipe, run_store: RunStore, env: dict[str, str], torch_version: str, report: bool,
    gpu_share: float,
) -> None:  # fmt: skip
    """Train `recipe` in one worker of Ray Train.

    With `report`, pass each epoch's metrics to the callbacks. Without callbacks a report would only cost time: Ray
    Train takes one in two seconds, and an epoch on a GPU may be shorter.
    """
    from jobs.train.metrics import TrainingMetrics  # here, so that the driver and Ray Train's controller start sooner
    from jobs.train.worker import Worker, train_loop

    apply_env(env)
    context = ray.train.get_context()
    with _as_node_error(ValueError, OSError):
        _check_torch(torch_version)
        run_store.check_visible()
        dataset = Dataset.open(*open_uri(recipe.data.uri))  # the driver has checked it
    world, device = World(context.get_world_rank(), context.get_world_size()), get_device()
    if world.size > 1:
        _check_clock(run_store.name, device)
    with closing(TrainingMetrics(run_store.name, world.rank, device)) as exported, _as_node_error(CacheSpaceError):
        worker = Worker(
            world,
            device,
            gpu_share,
            show_progress=partial(publish, run_store.name),
            observe_step=exported.observe_step,
            stop=PROCESS_STOP,
            on_ray=True,
        )
        for metrics in train_loop(recipe, dataset, run_store, worker):
            if report:
                ray.train.report(metrics)


def _check_torch(driver_version: str) -> None:
    """Raise ValueError unless this process has the driver's torch: other versions compute other gradients.

    Builds for CPUs and for CUDA, as in 2.14.0+cpu, may differ: a head often has no GPU.
    """
    installed = version("torch")
    if installed.partition("+")[0] != driver_version.partition("+")[0]:
        raise ValueError(
            f"torch {installed}, but the driver has {driver_version}: install the same version on all nodes"
        )


def _check_clock(run: str, device: torch.device) -> None:
    """Have the driver log a warning if the clock of this host differs from that of rank 0's. A collective."""
    dist.barrier()
    clock = time.time()
    first_clock = torch.tensor([clock], dtype=torch.float64, device=device)
    dist.broadcast(first_clock, 0)
    if abs(offset_s := clock - first_clock.item()) > MAX_CLOCK_OFFSET_S:
        publish_warning(
            run,
            f"the clock of host {socket.gethostname()} is {offset_s:+.0f} s off rank 0's: {CLOCK_FIX}",
        )


@contextmanager
def _as_node_error(*error_types: type[Exception]) -> Iterator[None]:
    """Raise an error of `error_types`, which the driver did not meet, as one of this worker's node."""
    try:
        yield
    except error_types as error:
        node_id, host = ray.get_runtime_context().get_node_id(), f"on host {socket.gethostname()}"
        if isinstance(error, OSError):
            cause = f"{host}: {describe_s3_error(error)}: give it access to the store, or read there why it has none"
            raise StoreAccessError(cause, node_id) from error
        raise UnfitNodeError(f"{host}: {error}", node_id) from error
