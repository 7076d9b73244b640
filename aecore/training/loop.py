"""The training loop, read from top to bottom: it computes and tells; whoever runs it reports and stores.

`fit` is a generator. It yields a Step after each optimizer step and an Epoch after each epoch; between two yields
the caller may save a checkpoint, log or stop. Images and noise are functions of (seed, epoch, step), so a run that
goes on from a checkpoint sees what it would have seen. Within a step nothing waits for the device.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.config import Recipe
from aecore.data.loaders import Batch, Loader
from aecore.data.shuffle import plan_epoch, steps_per_epoch
from aecore.model.corruptions import NOISE, make_generator, make_training_pair
from aecore.model.losses import loss_parts
from aecore.training.checkpoint import TrainState
from aecore.training.evaluate import SampleEvaluator, evaluate
from aecore.training.schedule import kl_factor, learning_rate
from aecore.training.state import EPOCH_SUMS, TrainingRun, as_loader

LOOK_SECONDS = 0.5  # between two looks at what lies on the device
JUDGED_TIMES = 5  # in a run: judging costs as much as some steps
VALIDATED_SHARE, VALIDATED_LEAST = 25, 256  # an epoch is validated on a 25th as many images as it trains on
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    done: int  # images of the whole run seen so far
    total: int
    told: dict[str, float]  # this worker's means per image since the epoch's start; empty between two looks


@dataclass(frozen=True)
class Epoch:
    """Means per image over all workers; `components` is the validation images' KL by component, in nats `(z_dim,)`.

    `pictures` (uint8 rows of images) are rank 0's only, and of the judged epochs.
    """

    epoch: int
    metrics: dict[str, float]
    components: np.ndarray
    pictures: dict[str, np.ndarray]


def set_up(device: torch.device, recipe: Recipe) -> None:
    """Choose the GPU's algorithms: the fastest ones, or those that repeat bit by bit."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS refuses to repeat itself
        torch.use_deterministic_algorithms(recipe.optim.deterministic)
        torch.backends.cudnn.benchmark = not recipe.optim.deterministic


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=recipe.optim.lr, fused=True)


def fit(run: TrainingRun, train: Loader | np.ndarray, valid: Loader | np.ndarray) -> Iterator[Step | Epoch]:
    """Train from `run.progress` to the recipe's last epoch.

    `train` and `valid` are feeds, or uint8 (n, size, size, channels), the same on each worker. Of a large `valid`
    a fixed part is used after each epoch, and all of it after the last. Raises FloatingPointError when a loss is not
    finite, with the step, its images and the parameters' norms.
    """
    optim, progress = run.recipe.optim, run.progress
    train, valid = as_loader(run, train), as_loader(run, valid)
    run.train = train
    steps, total = steps_per_epoch(len(train), optim.batch), optim.epochs * len(train)
    if not train.resumable:
        rewind(run, steps, len(train))
    few = valid
    if (enough := max(VALIDATED_LEAST, len(train) // VALIDATED_SHARE)) < len(valid):
        few = as_loader(run, valid.spread(enough).cpu().numpy())
    judge, looked = SampleEvaluator(run, train, valid), -LOOK_SECONDS
    for epoch in range(progress.epochs, optim.epochs):
        started, waited, first = time.monotonic(), 0.0, progress.samples
        batches = train.batches(epoch, progress.step - epoch * steps)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            waited += time.monotonic() - asked
            if batch is None:
                break
            train_step(run, batch, steps)
            progress.step += 1
            progress.samples += batch.count
            told = {}
            if run.device.type == "cpu":
                check_finite(run, run.bad_step)  # here looking costs nothing
            if time.monotonic() - looked >= LOOK_SECONDS or progress.samples == total:
                looked = time.monotonic()
                told = look(run)
            yield Step(progress.samples, total, told)
        seconds = time.monotonic() - started
        metrics = close_epoch(run)
        rate = (progress.samples - first) / seconds
        metrics |= {"images_per_second": rate, "epoch_seconds": seconds, "data_wait": waited / seconds}
        metrics |= memory(run.device)
        run.model.eval()
        last = progress.epochs == optim.epochs
        found, components = evaluate(run, valid if last else few, "valid")
        due = last or progress.epochs % -(-optim.epochs // JUDGED_TIMES) == 0
        pictures = judge(metrics) if due and run.world.rank == 0 else {}
        run.model.train()
        yield Epoch(progress.epochs, metrics | found, components, pictures)


def train_step(run: TrainingRun, batch: Batch, steps: int) -> None:
    """One optimizer step on this worker's part of a global batch, in an epoch of `steps`."""
    recipe, step = run.recipe, run.progress.step
    noise = batch_noise(run, step, batch.count)
    seen, target = make_training_pair(recipe, batch, step)
    recon, kl, held = forward(run, seen, target, noise[batch.positions])
    # DDP takes the mean of the workers' gradients; times the world's size it is the sum over the global batch. Of a
    # last batch with fewer images than workers some have none: they take part all the same.
    loss = (recon + kl_factor(recipe.loss, step, steps) * held).sum() * (run.world.size / batch.count)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    finite = loss.detach().isfinite()
    if recipe.optim.clip or run.world.size > 1:  # another worker's loss may be the bad one: its gradients are in ours
        grads = [p.grad for p in run.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        finite &= norm.isfinite()
        if recipe.optim.clip:
            nn.utils.clip_grads_with_norm_(run.model.parameters(), recipe.optim.clip, norm, foreach=True)
    run.bad_step = torch.where((run.bad_step < 0) & ~finite, step, run.bad_step)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe.optim, step, steps)
    # Fused Adam leaves the weights alone from the bad step on, without the host having to know.
    run.optimizer.found_inf = (run.bad_step >= 0).float()  # pyright: ignore[reportAttributeAccessIssue]
    run.optimizer.step()
    run.totals.add(recon=recon, kl=kl, count=torch.ones_like(recon))


def batch_noise(run: TrainingRun, step: int, count: int) -> Tensor:
    """N(0, 1) noise of one global batch, (count, z_dim): made whole by each worker, so it is the same for any world."""
    generator = make_generator(run.device, run.recipe, step, NOISE)
    return torch.randn(count, run.model.z_dim, generator=generator, device=run.device)


def forward(run: TrainingRun, seen: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image that the encoder has `seen`: pixel loss against `target`, KL, and the KL that the loss takes.

    In nats, float32 `(batch,)`; the last differs where there are free bits.
    """
    wants_bf16 = run.recipe.optim.precision == "bf16"
    bf16 = wants_bf16 or (run.recipe.optim.precision == "auto" and run.device.type == "cuda")
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
        logits, latent = run.network(seen, noise)
    return loss_parts(run.recipe.loss, logits, latent, target)


def look(run: TrainingRun) -> dict[str, float]:
    """This worker's means per image since the epoch's start. Raises FloatingPointError as `fit` does."""
    check_finite(run, run.bad_step)
    return means(run, dict(zip(EPOCH_SUMS, run.totals.sums.tolist(), strict=True)))


def close_epoch(run: TrainingRun) -> dict[str, float]:
    """The epoch's means over all workers; sums begin anew. A collective."""
    gather_sums(run)
    metrics = {f"train_{key}": value for key, value in means(run, run.progress.sums).items()}
    run.progress.sums, run.progress.epochs = {}, run.progress.epochs + 1
    run.totals.sums.zero_()
    return metrics


def gather_sums(run: TrainingRun) -> None:
    """Move the open epoch's sums of all workers to rank 0, so that its checkpoint holds them all. A collective.

    Raises FloatingPointError on all workers when the weights of one are not to be saved.
    """
    sums, bad = run.totals.read(run.world), run.bad_step.clone()
    if run.world.size > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    check_finite(run, bad)
    run.progress.sums = {key: float(value[0]) for key, value in sums.items()}
    mine = [run.progress.sums[key] if run.world.rank == 0 else 0.0 for key in EPOCH_SUMS]
    run.totals.sums.copy_(torch.tensor(mine, dtype=torch.float64))


def check_finite(run: TrainingRun, bad_step: Tensor) -> None:
    """Raise FloatingPointError when there was a `bad_step`; the weights are those before it."""
    if (step := int(bad_step)) < 0:
        return
    optim, steps = run.recipe.optim, steps_per_epoch(len(run.train), run.recipe.optim.batch)
    where = "a stream's images, in no order that could be named"
    if run.train.resumable:
        plan = plan_epoch(optim.seed, step // steps, len(run.train))
        rows = plan[step % steps * optim.batch :][: optim.batch].tolist()
        where = f"images {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''} of the split"
    norms = ", ".join(f"{name} {float(p.detach().norm()):.3g}" for name, p in run.model.named_parameters())
    raise FloatingPointError(
        f"the loss or a gradient was not finite at step {step + 1} (epoch {step // steps + 1}, {where}): "
        f"try a smaller optim.lr, or optim.clip=1000; parameter norms before it: {norms}"
    )


def means(run: TrainingRun, sums: dict[str, float]) -> dict[str, float]:
    """Sums over images to means per image; `loss` is with the full KL factor, whatever the warm-up."""
    recon, kl = (sums[key] / max(1.0, sums["count"]) for key in ("recon", "kl"))
    return {"loss": recon + run.recipe.loss.kl_factor * kl, "recon": recon, "kl": kl}


def rewind(run: TrainingRun, steps: int, count: int) -> None:
    """Go back to the start of the epoch, of `steps` steps and `count` images; the weights stay as they are."""
    progress: TrainState = run.progress
    if again := progress.step - progress.epochs * steps:
        log.warning("a stream cannot go on within an epoch: %d steps of epoch %d again", again, progress.epochs + 1)
    progress.step, progress.samples, progress.sums = progress.epochs * steps, progress.epochs * count, {}
    run.totals.sums.zero_()


def memory(device: torch.device) -> dict[str, float]:
    """This process's own memory (without mapped files) in MB, and the most that it had of the GPU's."""
    with open("/proc/self/status") as status:
        own = next((line.split()[1] for line in status if line.startswith("RssAnon")), "0")
    found = {"memory_mb": int(own) / 1000}
    if device.type == "cuda":
        found["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found
