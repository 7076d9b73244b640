"""The loop of one training worker: from its last checkpoint, step by step, to the finished model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aecore.config import Recipe
from aecore.data.attributes import read_attributes
from aecore.data.dataset import Dataset
from aecore.data.loaders import Loader
from aecore.data.shuffle import World, evenly_spaced
from aecore.image_grid import titled_sheet, to_png
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint, evaluate, loop
from aecore.training.state import TrainingRun
from cluster.progress import ProgressCallback, no_progress
from jobs.run_store import RunStore
from jobs.train.loaders import open_loaders
from jobs.train.stopping import Action, StopConsensus, StopRequest

IMAGE_TITLES = {
    "originals": "validation images",
    "corrupted": "what the encoder sees of them",
    "reconstructions": "their reconstructions",
    "normal": "decoded z-points from N(0, 1)",
    "gaussian": "decoded z-points from the fitted Gaussian",
}


@dataclass(frozen=True)
class Worker:
    """One process of a training; by default the only one, on the CPU. `on_ray` means that Ray Train started it."""

    world: World = field(default_factory=World)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    show_progress: ProgressCallback = no_progress
    stop: StopRequest = field(default_factory=StopRequest)
    on_ray: bool = False

    def local_action(self) -> Action:
        """Return STOP if this process is to stop, SAVE if a node of the training will end. A collective on Ray."""
        preempted = False
        if self.on_ray:
            import ray.train

            preempted = ray.train.get_preemption_info() is not None  # a broadcast from rank 0
        return Action.STOP if self.stop.requested else Action.SAVE if preempted else Action.CONTINUE


def train_loop(recipe: Recipe, dataset: Dataset, run_store: RunStore, worker: Worker) -> Iterator[dict[str, float]]:
    """Train from the last checkpoint to the finished model; yield the metrics of each epoch.

    Raises KeyboardInterrupt once it has saved because of `worker.stop`. After notice that a node will end, it trains on
    and saves about once a second.
    """
    loaders = open_loaders(recipe, dataset, worker.world, worker.device, worker.show_progress, worker.on_ray)
    run = _resume(recipe, dataset, run_store, loaders, worker)
    state = run.state
    fs, root = run_store.folder
    consensus = StopConsensus(recipe.checkpoint, worker.world, worker.device, worker.local_action, state.step)
    with worker.stop.active(), checkpoint.CheckpointWriter(fs, f"{root}/checkpoints", recipe.checkpoint.keep) as writer:

        def save(valid_loss: float = float("nan"), before: Callable[[], None] | None = None) -> None:
            loop.gather_sums(run)
            if worker.world.rank == 0:
                writer.save(checkpoint.take_snapshot(run.model, run.optimizer, recipe, state, valid_loss), before)

        for event in loop.fit(run):
            if isinstance(event, loop.EpochEnd):
                valid_loss = event.metrics["valid_loss" if len(loaders["valid"]) else "train_loss"]
                save(valid_loss, partial(_save_epoch, run_store, event))
                yield event.metrics
                continue
            if event.metrics:
                means = "  ".join(f"{key} {mean:,.{0 if mean >= 1000 else 1}f}" for key, mean in event.metrics.items())
                text = f"epoch {state.epochs + 1}/{recipe.optim.epochs}  {means}"
                worker.show_progress(event.samples, event.total_samples, text)
            action = consensus.after_step(state.step)
            if action is not Action.CONTINUE:
                save()
            if action is Action.STOP:
                writer.finish()
                raise KeyboardInterrupt
        writer.finish()
    _finish(run, dataset, run_store, loaders)


def _resume(
    recipe: Recipe, dataset: Dataset, run_store: RunStore, loaders: dict[str, Loader], worker: Worker
) -> TrainingRun:
    """Return the state of the last checkpoint, the same on all workers; a new one if there is no checkpoint."""
    loop.configure_cuda(worker.device, recipe)
    model = build_model(recipe, ImageShape(dataset.manifest.size, dataset.manifest.channels)).to(worker.device)
    optimizer = loop.make_optimizer(model, recipe)
    fs, root = run_store.folder
    state = checkpoint.load_checkpoint(fs, f"{root}/checkpoints", model, optimizer)
    _check_same_step(state.step, worker)
    if worker.world.rank != 0:
        state.sums = {}  # the checkpoint's are those of all workers
    wrapped_model = DistributedDataParallel(model) if worker.world.size > 1 else model
    return TrainingRun(
        recipe, model, wrapped_model, optimizer, worker.device, worker.world, state, loaders["train"], loaders["valid"]
    )


def _check_same_step(step: int, worker: Worker) -> None:
    """Raise RuntimeError unless all workers resume at the same step: storage may differ between their nodes."""
    if worker.world.size > 1:
        bounds = torch.tensor([step, -step], device=worker.device)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if int(bounds.sum()):
            raise RuntimeError(
                f"the workers see different checkpoints, of steps {-bounds[1]} to {bounds[0]}: "
                "set ZPOINT_STORE to storage that all nodes share"
            )


def _finish(run: TrainingRun, dataset: Dataset, run_store: RunStore, loaders: dict[str, Loader]) -> None:
    """Test the trained model and save it with its latent statistics."""
    run.model.eval()  # else batch norm would learn from the test images
    test_metrics = evaluate.evaluate(run, loaders["test"], "test")[0] if len(loaders["test"]) else {}
    if run.world.rank != 0:
        return
    attributes: dict[str, Any] = {}
    if loaders["train"].resumable:  # a stream's images have no fixed order that the attributes could follow
        rows = evenly_spaced(len(loaders["train"]), evaluate.LATENT_IMAGES)
        attributes = read_attributes(dataset, "train", rows)
    latents = evaluate.fit_run_latents(run, attributes=attributes)
    metrics = list(run_store.epochs().values())[-1] | test_metrics
    fs, root = run_store.folder
    save_model = partial(checkpoint.save_model, fs, f"{root}/model", run.model, run.recipe, latents, metrics)
    checkpoint.retry_storage(save_model, "save the model")


def _save_epoch(run_store: RunStore, epoch: loop.EpochEnd) -> None:
    """Write the metrics of an epoch, and its images on one sheet, to the run's folder."""
    rows = [(IMAGE_TITLES[key], [images]) for key, images in epoch.images.items()]
    sheet = to_png(titled_sheet(rows)) if rows else None  # only some epochs have images
    run_store.save_epoch(epoch.epoch, epoch.metrics, epoch.kl_per_dim.tolist(), sheet)
