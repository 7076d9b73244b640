"""The loop of one training worker: from its last checkpoint, step by step, to the finished model."""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from aecore.config import STORED_SAMPLERS, Recipe
from aecore.data.attributes import read_attributes
from aecore.data.dataset import Dataset
from aecore.data.loaders import DeviceLoader, Loader, NodeLoader, StreamLoader, iter_shards
from aecore.data.node_cache import check_cache_space, open_cache
from aecore.data.shuffle import BatchSampler, World, evenly_spaced, steps_per_epoch
from aecore.data.splits import SPLITS
from aecore.image_grid import titled_sheet, to_png
from aecore.latent.directions import fit_directions
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint
from aecore.training.evaluate import LATENT_IMAGES, encode_points, evaluate, points_per_split
from aecore.training.loop import EpochEnd, StepEnd, TrainingRun, fit, gather_sums
from cluster.progress import ProgressCallback, no_progress
from cluster.settings import settings
from jobs.run_store import RunStore
from jobs.train.devices import Devices, find_devices
from jobs.train.stopping import Action, StopConsensus, StopRequest

IMAGE_TITLES = {
    "originals": "validation images",
    "corrupted": "what the encoder sees of them",
    "reconstructions": "their reconstructions",
    **{sampler: f"decoded z-points from {title}" for sampler, title in STORED_SAMPLERS.items()},
}


@dataclass(frozen=True)
class Worker:
    """One process of a training; by default the only one, on the CPU. `on_ray` means that Ray Train started it.

    `gpu_share` is the fraction of its GPU that it may take; other trials take the rest.
    """

    world: World = field(default_factory=World)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    gpu_share: float = 1.0
    show_progress: ProgressCallback = no_progress
    observe_step: Callable[[StepEnd], None] | None = None  # called with the steps that have metrics
    stop: StopRequest = field(default_factory=StopRequest)
    on_ray: bool = False

    def local_action(self) -> Action:
        """Return STOP if this process is to stop, SAVE if a node of the training will end. A collective on Ray."""
        preempted = False
        if self.on_ray:
            import ray.train

            preempted = ray.train.get_preemption_info() is not None  # a broadcast from rank 0
        return Action.STOP if self.stop.requested else Action.SAVE if preempted else Action.CONTINUE


def train_loop(
    recipe: Recipe, dataset: Dataset, run_store: RunStore, worker: Worker
) -> Generator[dict[str, float], None, None]:
    """Train from the last checkpoint to the finished model; yield each epoch's number and metrics.

    Raises KeyboardInterrupt once it has saved because of `worker.stop`. After notice that a node will end, it trains on
    and saves about once a second.
    """
    world, device, held_since = worker.world, worker.device, time.monotonic()
    fs, root = run_store.folder
    devices = find_devices(world, device, worker.gpu_share)

    # Images.
    loaders = open_loaders(recipe, dataset, worker)
    train, valid, test = (loaders[split] for split in SPLITS)

    # Model, optimizer and counters: those of the last checkpoint, if there is one.
    model = build_model(recipe, ImageShape(dataset.manifest.size, dataset.manifest.channels)).to(device)
    run = TrainingRun(recipe, model, train, valid, world)
    run.state = state = checkpoint.load_checkpoint(fs, f"{root}/checkpoints", model, run.optimizer)
    if world.size > 1:
        _check_same_step(state.step, device)
        run.distribute()
    if world.rank != 0:
        state.sums = {}  # the checkpoint's are those of all workers

    # Train.
    consensus = StopConsensus(recipe.checkpoint, world, device, worker.local_action)
    with worker.stop.active(), checkpoint.CheckpointWriter(fs, f"{root}/checkpoints", recipe.checkpoint.keep) as writer:

        def save(valid_loss: float = float("nan"), before_write: Callable[[], None] | None = None) -> None:
            gather_sums(run)
            if world.rank == 0:
                writer.save(checkpoint.take_snapshot(model, run.optimizer, recipe, state, valid_loss), before_write)

        for event in fit(run):
            if isinstance(event, EpochEnd):
                held_hours, held_since = (time.monotonic() - held_since) / 3600, time.monotonic()
                valid_loss = event.metrics["valid_loss" if len(valid) else "train_loss"]
                save(valid_loss, partial(_save_epoch, run_store, event, devices, held_hours))
                yield {"epoch": event.epoch, **event.metrics}
                continue
            if event.metrics:
                means = "  ".join(f"{key} {mean:,.{0 if mean >= 1000 else 1}f}" for key, mean in event.metrics.items())
                text = f"epoch {state.epochs + 1}/{recipe.optim.epochs}  {means}"
                if event.samples == event.total_samples:
                    text += "  evaluating the model"
                worker.show_progress(event.samples, event.total_samples, text)
                if worker.observe_step is not None:
                    worker.observe_step(event)
            action = consensus.after_step(state.step)
            if action is not Action.CONTINUE:
                save()
            if action is Action.STOP:
                writer.finish()
                raise KeyboardInterrupt
        writer.finish()
        if consensus.stop_requested():  # during the last validation
            raise KeyboardInterrupt

    # Test, and save the model with its latent statistics.
    model.eval()  # else batch norm would learn from the test images
    test_metrics = evaluate(model, recipe, test, world, "test")[0] if len(test) else {}
    if world.rank != 0:
        return

    def spaced_attributes(split: str, limit: int) -> dict[str, Tensor]:
        return read_attributes(dataset, split, _spaced_rows(dataset, split, loaders[split], limit))

    def read_store() -> tuple[dict[str, float], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        by_split = {split: spaced_attributes(split, n) for split, n in points_per_split(recipe, loaders).items()}
        return run_store.epoch_metrics(recipe.optim.epochs), spaced_attributes("train", LATENT_IMAGES), by_split

    metrics, attributes, point_attributes = checkpoint.retry_storage(read_store, "read metrics and attributes")
    latents = run.latents | fit_directions(run.train_points, attributes)
    points = encode_points(model, recipe, loaders, point_attributes)
    metrics |= test_metrics
    save_model = partial(checkpoint.save_model, fs, f"{root}/model", model, recipe, latents, metrics, points)
    checkpoint.retry_storage(save_model, "save the model")


def _spaced_rows(dataset: Dataset, split: str, loader: Loader, limit: int) -> np.ndarray:
    """Return the rows of `split`, int64 (n,), whose images `loader.spaced_images(limit)` returns."""
    if isinstance(loader, StreamLoader):
        return dataset.spaced_indices(split, limit)
    return evenly_spaced(len(loader), limit)


def open_loaders(recipe: Recipe, dataset: Dataset, worker: Worker) -> dict[str, Loader]:
    """Return a loader for each split, an empty one for a split that the dataset lacks.

    With `data.cache=none` a worker of Ray Train streams its shard of Ray Data; any other process must be the only
    worker and reads the shards itself. Raises ValueError if the images exceed the cache or the GPU's memory, or
    are too few for batch norm.
    """
    check_batches(recipe, dataset.count("train"))
    check_caches(recipe, dataset, worker.device, worker.gpu_share)
    sampler = BatchSampler(recipe.optim.seed, recipe.optim.batch, worker.world, recipe.model.min_batch)
    return {split: _open_loader(recipe, dataset, split, sampler, worker) for split in SPLITS}


def _open_loader(recipe: Recipe, dataset: Dataset, split: str, sampler: BatchSampler, worker: Worker) -> Loader:
    count = dataset.count(split) if split in dataset.manifest.splits else 0
    if not count:
        return NodeLoader(np.empty((0, *dataset.image_shape), np.uint8), sampler, worker.device)

    # Stream.
    if recipe.data.cache == "none":
        if worker.on_ray:
            import ray.train

            from jobs.ray_data import iter_stream

            stream = partial(iter_stream, ray.train.get_dataset_shard(split))
        else:
            assert worker.world.size == 1
            stream = partial(iter_shards, dataset, split, sampler.seed)
        return StreamLoader(stream, partial(dataset.images, split), count, sampler, worker.device)

    # Decode once, into the node cache.
    def show_filled(rows: int) -> None:
        worker.show_progress(rows, count, f"filling the node cache: {split}")

    on_device = fits_device(recipe.data.cache, count * math.prod(dataset.image_shape), worker.device, worker.gpu_share)
    images = open_cache(settings().cache, dataset, split, show_filled, settings().cache_max)
    return (DeviceLoader if on_device else NodeLoader)(images, sampler, worker.device)


def check_batches(recipe: Recipe, count: int) -> None:
    """Raise ValueError if `count` training images give batches that are too small.

    These are a batch of one image on any worker for batch norm, and a stream's batch of none on all workers.
    """
    norm, batch, min_batch = recipe.model.norm, recipe.optim.batch, recipe.model.min_batch
    if count < min_batch:
        raise ValueError(f"model.norm={norm} needs {min_batch} training images, the dataset has {count}")
    workers, steps = max(1, recipe.scale.max_workers), steps_per_epoch(count, batch, min_batch)
    if recipe.data.cache == "none" and -(-count // workers) < steps:  # StreamLoader.max_local
        raise ValueError(
            f"data.cache=none needs an image for each worker in a batch: optim.batch={batch} is less than "
            f"scale.workers={workers}; take a larger optim.batch, or data.cache=auto"
        )
    smallest = _smallest_local_batch(recipe, count, steps)
    if norm == "batch" and smallest < min_batch:
        raise ValueError(
            f"model.norm=batch needs {min_batch} images for each of scale.workers={workers}, and a worker's smallest "
            f"batch of an epoch has {smallest}: take model.norm=sync_batch, or another optim.batch"
        )


def _smallest_local_batch(recipe: Recipe, count: int, steps: int) -> int:
    """Return the fewest images that a worker may get of one of the `steps` batches of an epoch of `count` images."""
    scale, batch = recipe.scale, recipe.optim.batch
    if recipe.data.cache != "none":
        return min(count - batch * (steps - 1), batch) // max(1, scale.max_workers)
    smallest = count
    for workers in range(max(1, scale.min_workers), max(1, scale.max_workers) + 1):
        max_local, padding = -(-count // workers), -count % workers  # one worker may get all rows of padding
        smallest = min(smallest, max_local // steps, -(-max_local // steps) - padding)
    return max(0, smallest)


def check_caches(recipe: Recipe, dataset: Dataset, device: torch.device, gpu_share: float = 1.0) -> None:
    """Raise ValueError if the splits together exceed the node cache or, with data.cache=device, the GPU memory."""
    fits_device(recipe.data.cache, dataset.decoded_bytes, device, gpu_share)
    check_node_cache(recipe, dataset, on_gpu=device.type == "cuda")


def check_node_cache(recipe: Recipe, dataset: Dataset, *, on_gpu: bool) -> None:
    """Raise ValueError if the splits together exceed the node cache and all stay there; a GPU takes them one by one."""
    cache = recipe.data.cache
    if cache == "node" or (cache == "auto" and not on_gpu):
        check_cache_space(settings().cache, dataset, settings().cache_max)


def fits_device(cache: str, nbytes: int, device: torch.device, gpu_share: float = 1.0) -> bool:
    """Return if `nbytes` of images go to the device's memory: "auto" fills at most half of what is free there.

    `gpu_share` is the fraction of the free memory that this process may take. Raises ValueError if `cache` is "device"
    and they do not fit.
    """
    free = int(gpu_share * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
    if cache == "device" and nbytes > free:
        raise ValueError(
            f"data.cache=device: the images take {nbytes / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free "
            "(0 without a GPU): set data.cache=auto or node"
        )
    return cache == "device" or (cache == "auto" and nbytes <= free // 2 and free > 0)


def _check_same_step(step: int, device: torch.device) -> None:
    """Raise RuntimeError unless all workers resume at the same step: storage may differ between their nodes."""
    bounds = torch.tensor([step, -step], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    if int(bounds.sum()):
        raise RuntimeError(
            f"the workers see different checkpoints, of steps {-bounds[1]} to {bounds[0]}: "
            "set ZPOINT_STORE to storage that all nodes share"
        )


def _save_epoch(run_store: RunStore, epoch: EpochEnd, devices: Devices, held_hours: float) -> None:
    """Write the metrics of an epoch, and its images on one sheet, to the run's folder.

    The workers have held their devices for `held_hours` since the epoch before; its metrics have the hours of the run.
    """
    rows = [(IMAGE_TITLES[key], [images]) for key, images in epoch.images.items()]
    sheet = to_png(titled_sheet(rows)) if rows else None  # only some epochs have images
    hours = run_store.last_metric(devices.metric, before=epoch.epoch) + held_hours * devices.count
    metrics = {**epoch.metrics, devices.metric: hours}
    run_store.save_epoch(epoch.epoch, metrics, epoch.kl_per_dim.tolist(), sheet, devices.text)
