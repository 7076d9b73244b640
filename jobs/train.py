"""The train job: one recipe, trained in this process (scale.workers=0) or by DDP workers under Ray Train."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from jobs.record import Record, delete_folder, open_record

if TYPE_CHECKING:
    from aecore.fit import Epoch
    from aecore.order import World

log = logging.getLogger(__name__)


def open_dataset(uri: str) -> tuple[pafs.FileSystem, str, Manifest]:
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
        bar = Bar(record.name, "images")
        try:
            for _ in work(recipe, record, bar.update):
                record.hand_in()
        finally:
            bar.close()
        return
    connect()
    with watch(record.name, record.name, "images"):
        run_on_ray(recipe, record)


def run_on_ray(recipe: Recipe, record: Record, callbacks: Sequence[Any] = ()) -> None:
    """Train under Ray Train; further `callbacks` run in its controller. Raises ValueError or RuntimeError."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    class HandIn(UserCallback):
        """Runs in Ray Train's controller, on the driver's node."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            adopt(environment)
            record.hand_in()

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, ValueError | FloatingPointError):
                    raise error  # it would come again at each retry: raised here, it ends the run

    environment = forwarded()
    workers, streaming = recipe.scale.workers, recipe.data.cache == "none"
    streams = {}
    if streaming:
        from jobs.streams import ray_streams

        streams = ray_streams(recipe, open_dataset(recipe.data.uri)[2])
    fs, root = open_uri(settings().store)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "record": record,
            "environment": environment,
        },
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=has_gpu(), resources_per_worker=worker_resources(workers, streaming)
        ),
        run_config=RunConfig(
            name=record.name,
            storage_path=f"{root}/ray",
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=recipe.scale.max_failures),
            callbacks=[HandIn(), *callbacks],
        ),
        **streams,
    )
    try:
        with interruptible():
            trainer.fit()
    except TrainingFailedError as error:
        raise plain_failure(error) from error
    finally:
        delete_folder(fs, f"{root}/ray/{record.name}")  # Ray Train's own notes; ours are the record


@contextmanager
def interruptible() -> Iterator[None]:
    """Keep what Ctrl-C means: Ray's libraries put another handler in place and leave it there."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:  # Ray Train's answer to Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def worker_resources(workers: int, streaming: bool = False) -> dict[str, float]:
    """What each of `workers` takes: one GPU where there are some, else its even share of the CPUs of a node.

    Where images are `streaming` in, half of that: the tasks that decode them take the rest.
    """
    import ray

    if has_gpu():
        return {"GPU": 1, "CPU": 1}
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    share = max(1, min(min(cpus), sum(cpus) // workers))
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


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker."""
    import ray.train
    from ray.train.torch import get_device
    from torch.nn.parallel import DistributedDataParallel

    from aecore.order import World

    adopt(config["environment"])
    context = ray.train.get_context()
    record: Record = config["record"]
    world = World(context.get_world_rank(), context.get_world_size())
    show: Show = lambda done, total, text: publish(record.name, done, total, text)  # noqa: E731
    wrap = DistributedDataParallel if world.size > 1 else lambda model: model
    recipe = check_recipe(config["recipe"])
    shard_of = ray.train.get_dataset_shard if recipe.data.cache == "none" else None
    for metrics in work(recipe, record, show, world, str(get_device()), wrap, shard_of):
        ray.train.report(metrics)


def work(
    recipe: Recipe, record: Record, show: Show, world: "World | None" = None, device: str = "cpu",
    wrap: Callable[[Any], Any] = lambda model: model, shard_of: ShardOf | None = None,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """One worker's part of a training, from the last checkpoint to the finished model; yields each epoch's metrics."""
    import torch

    from aecore import checkpoint, fit
    from aecore.model import ImageShape, build_model
    from aecore.order import World

    data, root, manifest = open_dataset(recipe.data.uri)
    fs, place = record.place
    world = world or World()
    splits = open_feeds(recipe, data, root, manifest, world, device, shard_of, show)

    model = build_model(recipe, ImageShape(manifest.size, manifest.channels)).to(device)
    optimizer = fit.make_optimizer(model, recipe)
    progress = checkpoint.load_checkpoint(fs, f"{place}/checkpoints", model, optimizer)
    if world.rank != 0:
        progress.sums = {}  # the checkpoint's are those of all workers
    run = fit.Run(recipe, model, wrap(model), optimizer, torch.device(device), world, progress)

    def save() -> None:
        fit.gather_sums(run)
        if world.rank == 0:
            checkpoint.save_checkpoint(fs, f"{place}/checkpoints", model, optimizer, recipe, progress)

    for event in fit.fit(run, splits["train"], splits["valid"]):
        if isinstance(event, fit.Step):
            show(event.done, event.total, f"loss {event.loss:.1f}")
            if recipe.checkpoint.every and progress.step % recipe.checkpoint.every == 0:
                save()
            continue
        if world.rank == 0:
            record.save_epoch(event.epoch, event.metrics, epoch_picture(event))
        save()
        yield event.metrics

    tested = fit.evaluate(run, splits["test"], "test") if len(splits["test"]) else {}
    if world.rank == 0:
        last = list(record.epochs().values())[-1]
        latents = fit.fit_run_latents(run, splits["train"])
        checkpoint.save_model(fs, f"{place}/model", model, recipe, latents, last | tested)


def epoch_picture(event: "Epoch") -> bytes:
    """The epoch's pictures on one sheet, as PNG."""
    from aecore.pictures import titled_sheet, to_png

    titles = {
        "originals": "validation images", "reconstructions": "their reconstructions",
        "normal": "decoded z-points from N(0, 1)", "gaussian": "decoded z-points from the fitted Gaussian",
    }  # fmt: skip
    parts = [(titles[key], [row]) for key, row in event.pictures.items()]
    return to_png(titled_sheet(parts))
