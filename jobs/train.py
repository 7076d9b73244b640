"""The train job: one recipe, trained in this process (scale.workers=0) or by DDP workers under Ray Train."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from aecore.config import Recipe, check_recipe
from aecore.shards import Manifest, load_manifest
from cluster.local import connect, has_gpu
from cluster.progress import Bar, publish, watch
from cluster.settings import adopt, forwarded, settings
from cluster.storage import check_uri, full_uri, open_uri
from cluster.tracking import status_of
from jobs.feeds import ShardOf, Show, open_feeds
from jobs.process_group import process_group, worker_device
from jobs.record import Record, delete_folder, open_record
from jobs.stops import NOTHING, SAVE, STOP, THIS_PROCESS, Agreement, Stop, interruptible

if TYPE_CHECKING:
    from aecore.feed import Feed
    from aecore.fit import Epoch
    from aecore.order import World
    from aecore.run import Run

log = logging.getLogger(__name__)
RESIZE_SECONDS = 60.0  # between two looks whether the cluster has room for more workers
GROUP_SECONDS = 20  # for room for all workers of a group: Ray Train goes on counting a lost node for as long
Dataset = tuple[pafs.FileSystem, str, Manifest]
Wrap = Callable[[Any], Any]  # makes of a model what is called in training


def open_dataset(uri: str) -> Dataset:
    """The dataset at `uri`. Raises ValueError when there is none, it is empty, or it cannot be reached."""
    if not uri:
        raise ValueError("data.uri is missing: name the dataset with data.uri=PATH or data.uri=s3://bucket/prefix")
    check_uri(uri)
    fs, root = open_uri(uri)
    manifest = load_manifest(fs, root)
    if not manifest.splits.get("train") or not manifest.count("train"):
        raise ValueError(f"the dataset at {uri} has no images to train on (split 'train')")
    return fs, root, manifest


def train(recipe: Recipe, stem: str, *, fresh: bool = False) -> dict[str, Any]:
    """Train `recipe` to its end, going on where an earlier run of the same command stopped.

    Gives the run's name, folder, MLflow run id, metrics of the last epoch and seconds taken. A finished run is not
    run again unless `fresh`. Raises ValueError for a wrong recipe or dataset, RuntimeError when training failed.
    """
    recipe = with_full_uri(recipe)
    _, _, manifest = open_dataset(recipe.data.uri)
    check_uri(settings().store)
    record = open_record(recipe, stem, manifest, fresh=fresh)
    again = record.finished()
    started = time.monotonic()
    if not again:
        try:
            with record.handing_in():
                _run(recipe, record)
        except ValueError:
            record.drop()
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


def with_full_uri(recipe: Recipe) -> Recipe:
    """`recipe` with a dataset's URI that workers in other folders understand."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"uri": full_uri(recipe.data.uri)})})


def _run(recipe: Recipe, record: Record) -> None:
    if recipe.scale.workers == 0:
        stop = Stop()
        with closing(Bar(record.name, "images")) as bar, interruptible(stop.on_signal):
            for _ in work(recipe, record, bar.update, stop=stop):
                pass
        return
    connect()
    with watch(record.name, record.name, "images"):
        run_on_ray(recipe, record)


def run_on_ray(recipe: Recipe, record: Record, callbacks: Sequence[Any] = ()) -> None:
    """Train under Ray Train; further `callbacks` run in its controller. Raises ValueError or RuntimeError."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    fs, root = open_uri(settings().store)
    notes = f"{root}/ray/{record.name}"  # Ray Train's own; ours are the record
    delete_folder(fs, notes)  # of a driver that was killed
    trainer = _trainer(recipe, record, callbacks)
    try:
        with interruptible():
            trainer.fit()
    except TrainingFailedError as error:
        raise plain_failure(error) from error
    finally:
        with suppress(OSError):  # a store that is gone now makes no finished training a failed one
            delete_folder(fs, notes)


def _trainer(recipe: Recipe, record: Record, callbacks: Sequence[Any]) -> Any:
    """Ray Train's trainer of `recipe`, with as many workers as it says."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # TorchTrainer would import torch here

    scale, streaming = recipe.scale, recipe.data.cache == "none"
    if not isinstance(scale.workers, int):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_SECONDS))
    streams = {}
    if streaming:
        from jobs.streams import ray_streams

        streams = ray_streams(recipe, open_dataset(recipe.data.uri)[2])
    fs, root = open_uri(settings().store)
    trainer = DataParallelTrainer(
        # Not in train_loop_config, which Ray's dashboard may show: the environment may hold keys.
        partial(train_worker, recipe=recipe.model_dump(mode="json"), record=record, environment=forwarded()),
        scaling_config=ScalingConfig(
            num_workers=scale.workers,
            use_gpu=has_gpu(),
            resources_per_worker=worker_resources(scale.most, streaming),
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


def _own_callbacks() -> list[Any]:
    """What every training under Ray Train does at a mistake of the user, and when a worker is ended."""
    from ray.train import UserCallback
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class GiveUp(UserCallback):
        """Runs in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, ValueError | FloatingPointError):
                    raise error  # it would come again at each retry: raised here, it ends the run

    class SaveFirst(WorkerCallback):
        """Runs in each worker, when the controller ends it: for Ctrl-C, another number of workers, a node's end."""

        def before_worker_shutdown(self) -> None:
            from jobs.stops import SAVE_SECONDS, THIS_PROCESS  # the worker's, not copies of the driver's

            THIS_PROCESS.ask(SAVE_SECONDS)

    return [GiveUp(), SaveFirst()]


def worker_resources(workers: int, streaming: bool = False) -> dict[str, float]:
    """What each of `workers` takes: one GPU where there are some, else its even share of the CPUs of a node.

    Where images are `streaming` in, half of that: the tasks that decode them take the rest.
    """
    import ray

    if has_gpu():
        return {"GPU": 1, "CPU": 1}
    cpus = [count for node in ray.nodes() if node["Alive"] and (count := int(node["Resources"].get("CPU", 0)))]
    share = max(1, min(min(cpus), sum(cpus) // workers)) if cpus else 1
    return {"CPU": share if not streaming else share // 2 or 0.5}


def plain_failure(error: Any) -> Exception:
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


def train_worker(*, recipe: dict[str, Any], record: Record, environment: dict[str, str]) -> None:
    """The loop of one Ray Train worker; `recipe` as JSON."""
    import ray.train
    from torch.nn.parallel import DistributedDataParallel

    from aecore.order import World

    adopt(environment)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    show: Show = lambda done, total, text: publish(record.name, done, total, text)  # noqa: E731
    wrap = DistributedDataParallel if world.size > 1 else lambda model: model
    checked = check_recipe(recipe)
    shard_of = ray.train.get_dataset_shard if checked.data.cache == "none" else None

    def warned() -> bool:
        return ray.train.get_preemption_info() is not None

    device = worker_device()
    with process_group(world, device):
        for metrics in work(checked, record, show, world, str(device), wrap, shard_of, THIS_PROCESS, warned):
            ray.train.report(metrics)


def work(
    recipe: Recipe, record: Record, show: Show, world: "World | None" = None, device: str = "cpu",
    wrap: Wrap = lambda model: model, shard_of: ShardOf | None = None, stop: Stop | None = None,
    warned: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """One worker's part of a training, from the last checkpoint to the finished model; yields each epoch's metrics.

    Raises KeyboardInterrupt when it has saved because of `stop`. Where it is `warned` that a node will end, it goes on
    while it may and saves again and again, about once a second.
    """
    from aecore import checkpoint, fit
    from aecore.order import World

    world, stop = world or World(), stop or Stop()
    dataset = open_dataset(recipe.data.uri)
    splits = open_feeds(recipe, *dataset, world, device, shard_of, show)
    run = _resume(recipe, record, dataset[2], world, device, wrap)
    progress = run.progress

    def wish() -> int:
        end_is_near = warned()  # a question that all workers ask together
        return STOP if stop.asked else SAVE if end_is_near else NOTHING

    fs, place = record.place
    agreement = Agreement(recipe.checkpoint, world, device, wish, progress.step)
    with stop.heeded(), checkpoint.Saver(fs, f"{place}/checkpoints", recipe.checkpoint.keep) as saver:

        def save(valid_loss: float = float("nan"), before: Callable[[], None] | None = None) -> None:
            fit.gather_sums(run)
            if world.rank == 0:
                saver.save(checkpoint.take_snapshot(run.model, run.optimizer, recipe, progress, valid_loss), before)

        for event in fit.fit(run, splits["train"], splits["valid"]):
            if isinstance(event, fit.Step):
                if event.told:
                    told = event.told.items()
                    figures = "  ".join(f"{key} {value:,.{0 if value >= 1000 else 1}f}" for key, value in told)
                    show(event.done, event.total, f"epoch {progress.epochs + 1}/{recipe.optim.epochs}  {figures}")
                todo = agreement.after(progress.step)
                if todo:
                    save()
                if todo == STOP:
                    saver.finish()
                    raise KeyboardInterrupt
                continue
            loss = event.metrics["valid_loss" if len(splits["valid"]) else "train_loss"]
            save(loss, partial(write_epoch, record, event))
            yield event.metrics
        saver.finish()
    _finish(run, record, dataset, splits)


def _resume(recipe: Recipe, record: Record, manifest: Manifest, world: "World", device: str, wrap: Wrap) -> "Run":
    """What is trained, as the last checkpoint has it, the same on all workers; new where there is none."""
    import torch

    from aecore import checkpoint, fit
    from aecore.model import ImageShape, build_model

    fit.set_up(torch.device(device), recipe)
    model = build_model(recipe, ImageShape(manifest.size, manifest.channels)).to(device)
    optimizer = fit.make_optimizer(model, recipe)
    fs, place = record.place
    progress = checkpoint.load_checkpoint(fs, f"{place}/checkpoints", model, optimizer)
    same_step(progress.step, world, device)
    if world.rank != 0:
        progress.sums = {}  # the checkpoint's are those of all workers
    return fit.Run(recipe, model, wrap(model), optimizer, torch.device(device), world, progress)


def _finish(run: "Run", record: Record, dataset: Dataset, splits: "dict[str, Feed]") -> None:
    """Test the trained model and save it with its latent statistics."""
    from aecore import checkpoint, judge
    from aecore.attributes import read_attributes
    from aecore.order import spread_rows

    tested = judge.evaluate(run, splits["test"], "test")[0] if len(splits["test"]) else {}
    if run.world.rank == 0:
        last = list(record.epochs().values())[-1]
        known = {}
        if splits["train"].resumable:  # a stream's images come in no order that could be named
            known = read_attributes(*dataset, "train", spread_rows(len(run.train), judge.LATENT_IMAGES))
        latents = judge.fit_run_latents(run, splits["train"], attributes=known)
        fs, place = record.place
        save_model = partial(checkpoint.save_model, fs, f"{place}/model", run.model, run.recipe, latents, last | tested)
        checkpoint.patiently(save_model, "save the model")


def same_step(step: int, world: "World", device: str) -> None:
    """Raise RuntimeError unless all workers go on from the same step: their nodes may see a storage differently."""
    import torch
    import torch.distributed as dist

    if world.size > 1:
        ends = torch.tensor([step, -step], device=device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if int(ends.sum()):
            raise RuntimeError(f"the workers see different checkpoints: up to step {ends[0]}, and {-ends[1]}")


def write_epoch(record: Record, event: "Epoch") -> None:
    """Put an epoch's metrics, and its pictures on one sheet, into the run's folder."""
    from aecore.pictures import titled_sheet, to_png

    titles = {
        "originals": "validation images", "seen": "what the encoder sees of them",
        "reconstructions": "their reconstructions",
        "normal": "decoded z-points from N(0, 1)", "gaussian": "decoded z-points from the fitted Gaussian",
    }  # fmt: skip
    parts = [(titles[key], [row]) for key, row in event.pictures.items()]
    picture = to_png(titled_sheet(parts)) if parts else None  # only some epochs are judged
    record.save_epoch(event.epoch, event.metrics, event.components.tolist(), picture)
