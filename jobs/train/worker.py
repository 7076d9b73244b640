"""One worker's part of a training: from its last checkpoint, step by step, to the finished model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from aecore.config import Recipe
from aecore.data.attributes import read_attributes
from aecore.data.dataset import Dataset
from aecore.data.loaders import Loader
from aecore.data.shards import Manifest
from aecore.data.shuffle import World, evenly_spaced
from aecore.image_grid import titled_sheet, to_png
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import checkpoint, evaluate, loop
from aecore.training.state import TrainingRun
from jobs.run_store import RunStore
from jobs.train.loaders import ProgressCallback, ShardOf, open_loaders
from jobs.train.stopping import NOTHING, SAVE, STOP, StopConsensus, StopRequest


@dataclass(frozen=True)
class Worker:
    """One of the processes that train a run together, by default the only one.

    `wrap` makes of a model what is called in training; `warned` tells whether this node is said to end soon; `shard_of`
    gives the worker's share of a split that streams in.
    """

    world: World = field(default_factory=World)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    show: ProgressCallback = lambda done, total, text: None
    wrap: Callable[[Any], Any] = lambda model: model
    shard_of: ShardOf | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    warned: Callable[[], bool] = lambda: False


def work(recipe: Recipe, dataset: Dataset, record: RunStore, me: Worker) -> Iterator[dict[str, float]]:
    """Train from the last checkpoint to the finished model; yields each epoch's metrics.

    Raises KeyboardInterrupt when it has saved because of `me.stop`. Where it is `me.warned` that a node will end, it
    goes on while it may and saves again and again, about once a second.
    """
    splits = open_loaders(recipe, dataset, me.world, me.device, me.shard_of, me.show)
    run = _resume(recipe, record, dataset.manifest, me)
    progress = run.progress

    def wish() -> int:
        end_is_near = me.warned()  # a question that all workers ask together
        return STOP if me.stop.asked else SAVE if end_is_near else NOTHING

    fs, place = record.place
    agreement = StopConsensus(recipe.checkpoint, me.world, me.device, wish, progress.step)
    with me.stop.heeded(), checkpoint.CheckpointWriter(fs, f"{place}/checkpoints", recipe.checkpoint.keep) as saver:

        def save(valid_loss: float = float("nan"), before: Callable[[], None] | None = None) -> None:
            loop.gather_sums(run)
            if me.world.rank == 0:
                saver.save(checkpoint.take_snapshot(run.model, run.optimizer, recipe, progress, valid_loss), before)

        for event in loop.fit(run, splits["train"], splits["valid"]):
            if isinstance(event, loop.Step):
                if event.told:
                    told = event.told.items()
                    figures = "  ".join(f"{key} {value:,.{0 if value >= 1000 else 1}f}" for key, value in told)
                    me.show(event.done, event.total, f"epoch {progress.epochs + 1}/{recipe.optim.epochs}  {figures}")
                todo = agreement.after(progress.step)
                if todo:
                    save()
                if todo == STOP:
                    saver.finish()
                    raise KeyboardInterrupt
                continue
            loss = event.metrics["valid_loss" if len(splits["valid"]) else "train_loss"]
            save(loss, partial(_write_epoch, record, event))
            yield event.metrics
        saver.finish()
    _finish(run, record, dataset, splits)


def _resume(recipe: Recipe, record: RunStore, manifest: Manifest, me: Worker) -> TrainingRun:
    """What is trained, as the last checkpoint has it, the same on all workers; new where there is none."""
    loop.set_up(me.device, recipe)
    model = build_model(recipe, ImageShape(manifest.size, manifest.channels)).to(me.device)
    optimizer = loop.make_optimizer(model, recipe)
    fs, place = record.place
    progress = checkpoint.load_checkpoint(fs, f"{place}/checkpoints", model, optimizer)
    _same_step(progress.step, me)
    if me.world.rank != 0:
        progress.sums = {}  # the checkpoint's are those of all workers
    return TrainingRun(recipe, model, me.wrap(model), optimizer, me.device, me.world, progress)


def _finish(run: TrainingRun, record: RunStore, dataset: Dataset, splits: dict[str, Loader]) -> None:
    """Test the trained model and save it with its latent statistics."""
    run.model.eval()  # as it will be used: else batch norm would learn from the test images
    tested = evaluate.evaluate(run, splits["test"], "test")[0] if len(splits["test"]) else {}
    if run.world.rank == 0:
        last = list(record.epochs().values())[-1]
        known = {}
        if splits["train"].resumable:  # a stream's images come in no order that could be named
            known = read_attributes(dataset, "train", evenly_spaced(len(run.train), evaluate.LATENT_IMAGES))
        latents = evaluate.fit_run_latents(run, splits["train"], attributes=known)
        fs, place = record.place
        save_model = partial(checkpoint.save_model, fs, f"{place}/model", run.model, run.recipe, latents, last | tested)
        checkpoint.retry_storage(save_model, "save the model")


def _same_step(step: int, me: Worker) -> None:
    """Raise RuntimeError unless all workers go on from the same step: their nodes may see a storage differently."""
    if me.world.size > 1:
        ends = torch.tensor([step, -step], device=me.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if int(ends.sum()):
            raise RuntimeError(f"the workers see different checkpoints: up to step {ends[0]}, and {-ends[1]}")


def _write_epoch(record: RunStore, event: loop.Epoch) -> None:
    """Put an epoch's metrics, and its pictures on one sheet, into the run's folder."""
    titles = {
        "originals": "validation images", "seen": "what the encoder sees of them",
        "reconstructions": "their reconstructions",
        "normal": "decoded z-points from N(0, 1)", "gaussian": "decoded z-points from the fitted Gaussian",
    }  # fmt: skip
    parts = [(titles[key], [row]) for key, row in event.pictures.items()]
    picture = to_png(titled_sheet(parts)) if parts else None  # only some epochs are judged
    record.save_epoch(event.epoch, event.metrics, event.components.tolist(), picture)
