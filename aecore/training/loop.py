"""The training loop: `fit` trains and yields events; its caller logs, saves checkpoints and stops.

`fit` yields a StepEnd after each optimizer step and an EpochEnd after each epoch. The order of images is a function of
(seed, epoch) and all noise one of (seed, step), so a resumed run gets the batches and the noise that the run without a
break would have got. No step waits for the device.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.config import Loss, Optim, Recipe
from aecore.data.loaders import Batch, Loader, NodeLoader
from aecore.data.shuffle import BatchSampler, World, plan_epoch, steps_per_epoch
from aecore.latent.samplers import LatentStats, fit_latent_stats
from aecore.model.autoencoder import Autoencoder
from aecore.model.corruptions import LATENT_NOISE, make_batch_noise, make_training_pair
from aecore.model.losses import loss_terms
from aecore.training.checkpoint import TrainState
from aecore.training.compiled import CompiledUpdate, should_compile
from aecore.training.evaluate import DIVERGENCE_FIX, SampleEvaluator, draw_train_points, evaluate
from aecore.training.gradient_exchange import GradientExchange

EPOCH_SUMS: tuple[str, ...] = ("recon", "kl", "count")  # summed over the open epoch's images; a checkpoint stores them
METRICS_INTERVAL_S = 0.5  # between two reads of the running sums, each of which waits for the device
MIN_VALID_IMAGES, VALID_FRACTION = 256, 25  # validate an epoch on 1/25 as many images as it trains on, at least 256
MAX_VALID_BYTES = 1 << 30  # of these images, of which each worker has a copy in memory
Update = Callable[["TrainingRun", Tensor, Tensor, Tensor], None]  # with the corrupted images, the targets, the noise
log = logging.getLogger(__name__)


class Objective(nn.Module):
    """The network and its loss: the module that DistributedDataParallel wraps and torch.compile compiles."""

    def __init__(self, model: Autoencoder, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.loss, self.precision = model, recipe.loss, recipe.optim.precision

    def forward(
        self, corrupted: Tensor, target: Tensor, noise: Tensor, kl_factor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the pixel loss and the KL of each image, float32 `(batch,)` in nats.

        `corrupted` and `target` (batch, channels, size, size) in [0, 1], `noise` (batch, z_dim), `kl_factor` ().
        """
        kind = corrupted.device.type
        bf16 = self.precision == "bf16" or (self.precision == "auto" and kind == "cuda")
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            logits, posterior = self.model(corrupted, noise)
        recon, kl, kl_penalty = loss_terms(self.loss, logits, posterior, target)
        return recon + kl_factor * kl_penalty, recon, kl


@dataclass
class TrainingRun:
    """A model in training with its data, optimizer and state on one worker.

    The optimizer is fused Adam (Kingma and Ba 2015). Set `state` to the one that `load_checkpoint` returned with the
    weights; then call `distribute` if there are several workers.
    """

    recipe: Recipe
    model: Autoencoder
    train: Loader
    valid: Loader
    world: World = field(default_factory=World)
    state: TrainState = field(default_factory=TrainState)
    objective: Objective = field(init=False)
    wrapped_objective: nn.Module = field(init=False)  # in DistributedDataParallel if there are several workers
    exchange: GradientExchange | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    scalars: Tensor = field(init=False)  # float64 (4,): learning rate, KL factor, scale of the loss, step
    epoch_sums: Tensor = field(init=False)  # float64 (3,), EPOCH_SUMS of this worker's images in the open epoch
    nonfinite_step: Tensor = field(init=False)  # int64 (): the first step with a loss of nan or inf, -1 without one

    def __post_init__(self) -> None:
        self.objective = self.wrapped_objective = Objective(self.model, self.recipe)
        self.scalars = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.recipe.optim.lr, fused=True, capturable=self.device.type == "cuda"
        )
        self.epoch_sums = torch.zeros(len(EPOCH_SUMS), dtype=torch.float64, device=self.device)
        self.nonfinite_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def distribute(self) -> None:
        """Average the gradients over all workers in each step, as `scale.gradients` says."""
        self.exchange = GradientExchange(self.recipe.scale.gradients, self.device)
        self.wrapped_objective = self.exchange.wrap(self.objective)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.recipe.optim.batch, self.recipe.model.min_batch)

    @cached_property
    def update(self) -> Update:
        """The device's part of a step, compiled as `optim.compile` says; chosen by the steps left at the first one."""
        return CompiledUpdate(self, update_weights) if should_compile(self) else update_weights

    @cached_property
    def train_points(self) -> Tensor:
        """The z-points of training images to which the finished model's samplers are fitted, float32 (n, z_dim)."""
        assert self.state.epochs == self.recipe.optim.epochs
        return draw_train_points(self.model, self.recipe, self.train)

    @cached_property
    def latents(self) -> LatentStats:
        """The statistics of `train_points` that the finished model's samplers take."""
        return fit_latent_stats(self.train_points)


@dataclass(frozen=True)
class StepEnd:
    """The end of one optimizer step: `samples` of `total_samples` images of the whole run are done.

    `metrics` are this worker's means per image since the start of the epoch: `loss`, `recon` and `kl` in nats; empty
    except at about two steps a second. `data_wait` is the share of the epoch's time so far that it waited for images.
    """

    samples: int
    total_samples: int
    metrics: dict[str, float]
    data_wait: float


@dataclass(frozen=True)
class EpochEnd:
    """The end of epoch `epoch`, counted from 1.

    `metrics` are means per image over all workers (`train_*`, and `valid_*` if there are validation images), rates and
    memory. `kl_per_dim` is the mean KL of the validation images, float64 `(z_dim,)` in nats, empty without any.
    `images`, uint8 (n, size, size, channels) by name, are those of `SampleEvaluator`; on other ranks than 0 and after
    most epochs there are none.
    """

    epoch: int
    metrics: dict[str, float]
    kl_per_dim: np.ndarray
    images: dict[str, np.ndarray]


def fit(run: TrainingRun) -> Iterator[StepEnd | EpochEnd]:
    """Train from `run.state` to the recipe's last epoch.

    A large validation split is used in part after each epoch (the same images each time) and whole after the last.
    Raises FloatingPointError if a loss or a metric is not finite; the message names the step and the parameter norms,
    and the images of a loss.
    """
    optim, state = run.recipe.optim, run.state
    total_samples = optim.epochs * len(run.train)
    configure_cuda(run.device, optim.deterministic)

    # Resume: a stream cannot start within an epoch, nor can another loader go on with the epoch of a stream.
    if state.streamed or not run.train.resumable:
        rewind_to_epoch_start(run)
    state.streamed = not run.train.resumable
    run.epoch_sums.copy_(torch.tensor([state.sums.get(name, 0.0) for name in EPOCH_SUMS], dtype=torch.float64))

    # Evaluation data.
    valid_subset, subset_size = run.valid, max(MIN_VALID_IMAGES, len(run.train) // VALID_FRACTION)
    if subset_size < len(run.valid):
        image = run.model.image
        limit = min(subset_size, MAX_VALID_BYTES // (image.size**2 * image.channels))
        images = run.valid.spaced_images(limit).cpu().numpy()
        valid_subset = NodeLoader(images, BatchSampler(optim.seed, optim.batch, run.world), run.device)
    sample_evaluator = SampleEvaluator(run.model, run.recipe, run.train, run.valid)

    last_read = -math.inf
    for epoch in range(state.epochs, optim.epochs):
        # Train.
        epoch_start = wait_start = time.monotonic()
        first_sample, wait_s = state.samples, 0.0
        for batch in run.train.batches(epoch, state.step - epoch * run.steps_per_epoch):
            wait_s += time.monotonic() - wait_start
            train_step(run, batch)
            state.step += 1
            state.samples += batch.count
            read_metrics = time.monotonic() - last_read >= METRICS_INTERVAL_S or state.samples == total_samples
            if read_metrics or run.device.type == "cpu":  # at each step on a CPU, where it costs nothing
                check_finite(run, run.nonfinite_step)
            step_metrics = {}
            if read_metrics:
                last_read = time.monotonic()
                sums = dict(zip(EPOCH_SUMS, run.epoch_sums.tolist(), strict=True))
                step_metrics = mean_losses(sums, run.recipe.loss.kl_factor)
            data_wait = wait_s / (time.monotonic() - epoch_start)
            yield StepEnd(state.samples, total_samples, step_metrics, data_wait)
            wait_start = time.monotonic()

        # Reduce the training metrics.
        seconds = time.monotonic() - epoch_start
        gather_sums(run)
        losses = mean_losses(state.sums, run.recipe.loss.kl_factor)
        metrics = {f"train_{name}": loss for name, loss in losses.items()}
        metrics["images_per_second"] = (state.samples - first_sample) / seconds
        metrics["epoch_seconds"] = seconds
        metrics["data_wait"] = wait_s / seconds
        if run.exchange and (wait := run.exchange.pop_wait()) is not None:
            metrics["allreduce_wait"] = wait / seconds
        metrics |= memory_usage(run.device)
        state.epochs, state.sums = epoch + 1, {}
        run.epoch_sums.zero_()

        # Evaluate.
        run.model.eval()
        if run.world.size > 1:
            for buffer in run.model.buffers():  # the running statistics, of which rank 0's are saved
                dist.broadcast(buffer, 0)
        last_epoch = state.epochs == optim.epochs
        valid_loader = run.valid if last_epoch else valid_subset
        valid_metrics, kl_per_dim = evaluate(run.model, run.recipe, valid_loader, run.world, "valid")
        metrics |= valid_metrics
        check_metrics(run, metrics)
        images = {}
        if run.world.rank == 0 and state.epochs in optim.judged_epochs:
            sample_metrics, images = sample_evaluator.evaluate(run.latents if last_epoch else None)
            metrics |= sample_metrics
        run.model.train()
        yield EpochEnd(state.epochs, metrics, kl_per_dim, images)


def train_step(run: TrainingRun, batch: Batch) -> None:
    """Take one optimizer step on this worker's images of a global batch; does not wait for the device."""
    recipe, step = run.recipe, run.state.step
    corrupted, target = make_training_pair(recipe, batch, step)
    noise = make_batch_noise(recipe.optim.seed, batch, step, LATENT_NOISE).normal(run.model.z_dim)
    rate = learning_rate(recipe.optim, step, run.steps_per_epoch)
    beta = kl_factor(recipe.loss, step, run.steps_per_epoch)
    # DDP averages the workers' gradients; times the number of workers it is the sum over the global batch. A worker
    # without images (if the last batch has fewer images than there are workers) takes part in the collectives.
    scalars = torch.tensor([rate, beta, run.world.size / batch.count, step], dtype=torch.float64)
    run.scalars.copy_(scalars, non_blocking=True)
    run.update(run, corrupted, target, noise)


def update_weights(run: TrainingRun, corrupted: Tensor, target: Tensor, noise: Tensor) -> None:
    """Take the optimizer step on the device. What differs between steps is in tensors: a CUDA graph can repeat it."""
    rate, beta, scale = run.scalars[:3].float().unbind()
    step = run.scalars[3].long()

    # Forward and backward.
    loss_per_image, recon, kl = run.wrapped_objective(corrupted, target, noise, beta)
    loss = loss_per_image.sum() * scale
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    finite = loss.detach().isfinite()
    if run.recipe.optim.clip or run.world.size > 1:  # DDP brings another worker's nan into these gradients alone
        grads = [p.grad for p in run.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads, foreach=True)
        finite &= norm.isfinite()
        if run.recipe.optim.clip:
            nn.utils.clip_grads_with_norm_(run.model.parameters(), run.recipe.optim.clip, norm, foreach=True)
    run.nonfinite_step.copy_(torch.where((run.nonfinite_step < 0) & ~finite, step, run.nonfinite_step))

    # Update. Fused Adam skips it while found_inf is 1: the weights stay as before the first step that was not finite,
    # though the host reads that step only later.
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.found_inf = (run.nonfinite_step >= 0).float()  # pyright: ignore[reportAttributeAccessIssue]
    run.optimizer.step()
    run.epoch_sums += torch.stack([recon, kl, torch.ones_like(recon)]).detach().double().sum(1)


def learning_rate(optim: Optim, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step `step`, counted from 0 over the whole run.

    It rises linearly during the first `optim.warmup` epochs, then stays constant or falls to 0 along half a cosine
    until the end of the last epoch (Loshchilov and Hutter 2017, eq. 5, without restarts).
    """
    warmup_steps, total_steps = optim.warmup * steps_per_epoch, optim.epochs * steps_per_epoch
    if step < warmup_steps:
        return optim.lr * (step + 1) / (math.floor(warmup_steps) + 1)
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def kl_factor(loss: Loss, step: int, steps_per_epoch: int) -> float:
    """Return the KL factor of step `step`: it rises linearly during `loss.kl_warmup` epochs (Sønderby 2016)."""
    warmup_steps = loss.kl_warmup * steps_per_epoch
    return loss.kl_factor * min(1.0, (step + 1) / (math.floor(warmup_steps) + 1))


def gather_sums(run: TrainingRun) -> None:
    """Move the open epoch's sums of all workers to rank 0, whose checkpoint then stores them. A collective.

    Raises FloatingPointError on all workers if one of them had a loss that was not finite.
    """
    total, nonfinite_step = run.epoch_sums.clone(), run.nonfinite_step.clone()
    if run.world.size > 1:
        dist.all_reduce(total)
        dist.all_reduce(nonfinite_step, dist.ReduceOp.MAX)
    check_finite(run, nonfinite_step)
    run.state.sums = dict(zip(EPOCH_SUMS, total.tolist(), strict=True))
    run.epoch_sums.copy_(total if run.world.rank == 0 else torch.zeros_like(total))


def mean_losses(sums: dict[str, float], kl_factor: float) -> dict[str, float]:
    """Divide EPOCH_SUMS by their count; `loss` has the full KL factor, also during its warm-up."""
    recon, kl = (sums[name] / max(1.0, sums["count"]) for name in ("recon", "kl"))
    return {"loss": recon + kl_factor * kl, "recon": recon, "kl": kl}


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
    raise FloatingPointError(
        f"the loss or a gradient was not finite at step {step + 1} (epoch {epoch + 1}, {images}): "
        f"{DIVERGENCE_FIX}; parameter norms before it: {parameter_norms(run.model)}"
    )


def check_metrics(run: TrainingRun, metrics: dict[str, float]) -> None:
    """Raise FloatingPointError if a metric of the epoch's end is not finite: the update of its last step diverged.

    `check_finite` would notice it at the next step, since a step's loss is that of the weights before its update.
    """
    if nonfinite := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise FloatingPointError(
            f"the update of step {run.state.step}, the last of epoch {run.state.epochs}, diverged "
            f"({', '.join(nonfinite)} not finite): {DIVERGENCE_FIX}; parameter norms: {parameter_norms(run.model)}"
        )


def parameter_norms(model: Autoencoder) -> str:
    """Return the norm of each parameter, for an error message."""
    return ", ".join(f"{name} {float(p.detach().norm()):.3g}" for name, p in model.named_parameters())


def configure_cuda(device: torch.device, deterministic: bool) -> None:
    """Choose the fastest CUDA algorithms, or if `deterministic` those that repeat bit by bit."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic


def rewind_to_epoch_start(run: TrainingRun) -> None:
    """Set the counters back to the start of the open epoch; the weights stay as they are."""
    state, first_step = run.state, run.state.epochs * run.steps_per_epoch
    if repeated := state.step - first_step:
        log.warning(
            "the epoch began or goes on as a stream, which cannot resume within it: repeating %d steps of epoch %d",
            repeated,
            state.epochs + 1,
        )
    state.step, state.samples, state.sums = first_step, state.epochs * len(run.train), {}


def memory_usage(device: torch.device) -> dict[str, float]:
    """Return this process's anonymous memory (no mapped files) and the GPU memory's peak, in MB."""
    with open("/proc/self/status") as status:
        rss_kb = next((line.split()[1] for line in status if line.startswith("RssAnon")), "0")
    usage = {"memory_mb": int(rss_kb) / 1000}
    if device.type == "cuda":
        usage["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return usage
