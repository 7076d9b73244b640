"""The training loop: `fit` trains and yields events; its caller logs, saves checkpoints and stops.

`fit` yields a StepEnd after each optimizer step and an EpochEnd after each epoch. The order of images is a function of
(seed, epoch) and all noise one of (seed, step), so a resumed run gets the batches and the noise that the run without a
break would have got. No step waits for the device.
"""

import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.config import Recipe
from aecore.data.loaders import Batch, NodeLoader
from aecore.data.shuffle import BatchSampler, plan_epoch
from aecore.model.corruptions import LATENT_NOISE, make_generator, make_training_pair
from aecore.model.losses import loss_terms
from aecore.training.evaluate import SampleEvaluator, evaluate
from aecore.training.schedule import kl_factor, learning_rate
from aecore.training.state import EPOCH_SUMS, TrainingRun

METRICS_INTERVAL_S = 0.5  # between two reads of the running sums, each of which waits for the device
SAMPLE_EVALUATIONS = 5  # in a run: one costs as much as some steps
MIN_VALID_IMAGES, VALID_FRACTION = 256, 25  # validate an epoch on 1/25 as many images as it trains on, at least 256
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepEnd:
    """The end of one optimizer step: `samples` of `total_samples` images of the whole run are done.

    `metrics` are this worker's means per image since the start of the epoch: `loss`, `recon` and `kl` in nats; empty
    but for about two steps a second.
    """

    samples: int
    total_samples: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class EpochEnd:
    """The end of epoch `epoch`, counted from 1.

    `metrics` are means per image over all workers (`train_*`, `valid_*`), rates and memory. `kl_per_dim` is the mean KL
    of the validation images, float64 `(z_dim,)` in nats. `images`, uint8 (n, size, size, channels) by name, are those
    of `SampleEvaluator`; on other ranks than 0 and after most epochs there are none.
    """

    epoch: int
    metrics: dict[str, float]
    kl_per_dim: np.ndarray
    images: dict[str, np.ndarray]


class TimedIterator:
    """Iterate over batches and add up the seconds of waiting for the next one, `wait_s`."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.wait_s = batches, 0.0

    def __iter__(self) -> "TimedIterator":
        return self

    def __next__(self) -> Batch:
        start = time.monotonic()
        try:
            return next(self.batches)
        finally:
            self.wait_s += time.monotonic() - start


def configure_cuda(device: torch.device, recipe: Recipe) -> None:
    """Choose the fastest CUDA algorithms, or with `optim.deterministic` those that repeat bit by bit."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(recipe.optim.deterministic)
        torch.backends.cudnn.benchmark = not recipe.optim.deterministic


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return fused Adam (Kingma and Ba 2015) over the model's parameters."""
    return torch.optim.Adam(model.parameters(), lr=recipe.optim.lr, fused=True)


def fit(run: TrainingRun) -> Iterator[StepEnd | EpochEnd]:
    """Train from `run.state` to the recipe's last epoch.

    A large validation split is used in part after each epoch (the same images each time) and whole after the last.
    Raises FloatingPointError if a loss is not finite; the message names the step, its images and the parameter norms.
    """
    optim, state = run.recipe.optim, run.state
    total_samples = optim.epochs * len(run.train)

    # Resume: a stream cannot start within an epoch.
    if not run.train.resumable:
        rewind_to_epoch_start(run)

    # Evaluation data.
    valid_subset, subset_size = run.valid, max(MIN_VALID_IMAGES, len(run.train) // VALID_FRACTION)
    if subset_size < len(run.valid):
        images = run.valid.spaced_images(subset_size).cpu().numpy()
        valid_subset = NodeLoader(images, BatchSampler(optim.seed, optim.batch, run.world), run.device)
    sample_evaluator = SampleEvaluator(run)
    sample_interval = math.ceil(optim.epochs / SAMPLE_EVALUATIONS)

    last_read = -math.inf
    for epoch in range(state.epochs, optim.epochs):
        # Train.
        epoch_start, first_sample = time.monotonic(), state.samples
        batches = TimedIterator(run.train.batches(epoch, state.step - epoch * run.steps_per_epoch))
        for batch in batches:
            train_step(run, batch)
            state.step += 1
            state.samples += batch.count
            step_metrics = {}
            if run.device.type == "cpu":
                check_finite(run, run.nonfinite_step)  # at each step, since it costs nothing on a CPU
            if time.monotonic() - last_read >= METRICS_INTERVAL_S or state.samples == total_samples:
                last_read = time.monotonic()
                step_metrics = read_running_means(run)
            yield StepEnd(state.samples, total_samples, step_metrics)

        # Reduce the training metrics.
        seconds = time.monotonic() - epoch_start
        metrics = close_epoch(run)
        metrics["images_per_second"] = (state.samples - first_sample) / seconds
        metrics["epoch_seconds"] = seconds
        metrics["data_wait"] = batches.wait_s / seconds
        metrics |= memory_usage(run.device)

        # Evaluate.
        run.model.eval()
        last_epoch = state.epochs == optim.epochs
        valid_metrics, kl_per_dim = evaluate(run, run.valid if last_epoch else valid_subset, "valid")
        images = {}
        if run.world.rank == 0 and (last_epoch or state.epochs % sample_interval == 0):
            sample_metrics, images = sample_evaluator.evaluate()
            metrics |= sample_metrics
        run.model.train()
        yield EpochEnd(state.epochs, metrics | valid_metrics, kl_per_dim, images)


def train_step(run: TrainingRun, batch: Batch) -> None:
    """Take one optimizer step on this worker's images of a global batch; does not wait for the device."""
    recipe, step = run.recipe, run.state.step

    # Forward.
    corrupted, target = make_training_pair(recipe, batch, step)
    noise = latent_noise(run, step, batch.count)[batch.positions]
    recon, kl, kl_penalty = forward(run, corrupted, target, noise)
    beta = kl_factor(recipe.loss, step, run.steps_per_epoch)
    # DDP averages the workers' gradients; times the number of workers it is the sum over the global batch. A worker
    # without images (if the last batch has fewer images than there are workers) takes part in the collectives.
    loss = (recon + beta * kl_penalty).sum() * (run.world.size / batch.count)

    # Backward.
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    finite = loss.detach().isfinite()
    if recipe.optim.clip or run.world.size > 1:  # DDP brings another worker's nan into these gradients, not this loss
        grads = [p.grad for p in run.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        finite &= norm.isfinite()
        if recipe.optim.clip:
            nn.utils.clip_grads_with_norm_(run.model.parameters(), recipe.optim.clip, norm, foreach=True)
    run.nonfinite_step = torch.where((run.nonfinite_step < 0) & ~finite, step, run.nonfinite_step)

    # Update. Fused Adam skips it while found_inf is 1: the weights stay as before the first step that was not finite,
    # though the host reads that step only later.
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(recipe.optim, step, run.steps_per_epoch)
    run.optimizer.found_inf = (run.nonfinite_step >= 0).float()  # pyright: ignore[reportAttributeAccessIssue]
    run.optimizer.step()
    run.epoch_sums.add(recon=recon, kl=kl, count=torch.ones_like(recon))


def latent_noise(run: TrainingRun, step: int, count: int) -> Tensor:
    """Return the N(0, 1) noise of a global batch of `count` images, float32 (count, z_dim).

    Each worker draws all of it, so that it is the same for any number of workers.
    """
    generator = make_generator(run.device, run.recipe, step, LATENT_NOISE)
    return torch.randn(count, run.model.z_dim, generator=generator, device=run.device)


def forward(run: TrainingRun, corrupted: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `loss_terms` of each image: pixel loss, KL and penalised KL, float32 `(batch,)` in nats.

    `corrupted` and `target` (batch, channels, size, size) float in [0, 1], `noise` (batch, z_dim) ~ N(0, 1). The
    network runs in bf16 if `optim.precision` is bf16, or auto on a GPU.
    """
    precision = run.recipe.optim.precision
    use_bf16 = precision == "bf16" or (precision == "auto" and run.device.type == "cuda")
    with torch.autocast(run.device.type, torch.bfloat16, enabled=use_bf16):
        logits, posterior = run.wrapped_model(corrupted, noise)
    return loss_terms(run.recipe.loss, logits, posterior, target)


def read_running_means(run: TrainingRun) -> dict[str, float]:
    """Return this worker's means per image since the start of the epoch. Raises FloatingPointError as `fit` does."""
    check_finite(run, run.nonfinite_step)
    return mean_losses(run.recipe, dict(zip(EPOCH_SUMS, run.epoch_sums.sums.tolist(), strict=True)))


def close_epoch(run: TrainingRun) -> dict[str, float]:
    """Return the epoch's means over all workers, count the epoch and set the sums to 0. A collective."""
    gather_sums(run)
    metrics = {f"train_{name}": value for name, value in mean_losses(run.recipe, run.state.sums).items()}
    run.state.sums, run.state.epochs = {}, run.state.epochs + 1
    run.epoch_sums.sums.zero_()
    return metrics


def gather_sums(run: TrainingRun) -> None:
    """Move the open epoch's sums of all workers to rank 0, whose checkpoint then stores them. A collective.

    Raises FloatingPointError on all workers if one of them had a loss that was not finite.
    """
    sums, nonfinite_step = run.epoch_sums.all_reduce(run.world), run.nonfinite_step.clone()
    if run.world.size > 1:
        dist.all_reduce(nonfinite_step, dist.ReduceOp.MAX)
    check_finite(run, nonfinite_step)
    run.state.sums = {name: float(total[0]) for name, total in sums.items()}
    local_sums = [run.state.sums[name] if run.world.rank == 0 else 0.0 for name in EPOCH_SUMS]
    run.epoch_sums.sums.copy_(torch.tensor(local_sums, dtype=torch.float64))


def check_finite(run: TrainingRun, nonfinite_step: Tensor) -> None:
    """Raise FloatingPointError if `nonfinite_step` is not -1; the weights are those before that step."""
    if (step := int(nonfinite_step)) < 0:
        return
    optim = run.recipe.optim
    epoch, epoch_step = divmod(step, run.steps_per_epoch)
    images = "images of a stream, in an order that is not reproducible"
    if run.train.resumable:
        rows = plan_epoch(optim.seed, epoch, len(run.train))[epoch_step * optim.batch :][: optim.batch].tolist()
        images = f"images {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''} of the split"
    norms = ", ".join(f"{name} {float(p.detach().norm()):.3g}" for name, p in run.model.named_parameters())
    raise FloatingPointError(
        f"the loss or a gradient was not finite at step {step + 1} (epoch {epoch + 1}, {images}): "
        f"try a smaller optim.lr, or optim.clip=1000; parameter norms before it: {norms}"
    )


def mean_losses(recipe: Recipe, sums: dict[str, float]) -> dict[str, float]:
    """Divide sums by their count; `loss` has the full KL factor, also during its warm-up."""
    recon, kl = (sums[name] / max(1.0, sums["count"]) for name in ("recon", "kl"))
    return {"loss": recon + recipe.loss.kl_factor * kl, "recon": recon, "kl": kl}


def rewind_to_epoch_start(run: TrainingRun) -> None:
    """Set the counters back to the start of the open epoch; the weights stay as they are."""
    state, first_step = run.state, run.state.epochs * run.steps_per_epoch
    if repeated := state.step - first_step:
        log.warning(
            "a stream cannot resume within an epoch: repeating %d steps of epoch %d", repeated, state.epochs + 1
        )
    state.step, state.samples, state.sums = first_step, state.epochs * len(run.train), {}
    run.epoch_sums.sums.zero_()


def memory_usage(device: torch.device) -> dict[str, float]:
    """Return this process's anonymous memory (no mapped files) and the GPU memory's peak, in MB."""
    with open("/proc/self/status") as status:
        rss_kb = next((line.split()[1] for line in status if line.startswith("RssAnon")), "0")
    usage = {"memory_mb": int(rss_kb) / 1000}
    if device.type == "cuda":
        usage["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return usage
