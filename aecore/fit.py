"""The training loop, read from top to bottom: it computes and tells; whoever runs it reports and stores.

`fit` is a generator. It yields a Step after each optimizer step and an Epoch after each epoch; between two yields
the caller may save a checkpoint, log or stop. Images and noise are functions of (seed, epoch, step), so a run that
goes on from a checkpoint sees what it would have seen.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.checkpoint import Progress
from aecore.config import Recipe
from aecore.feed import Batch, Feed, NodeFeed
from aecore.losses import loss_parts
from aecore.metrics import psnr, sliced_wasserstein
from aecore.model import Autoencoder, Latent, to_float, to_uint8
from aecore.order import Order, World, seed_of, steps_per_epoch
from aecore.samplers import Latents, fit_latents, sample
from aecore.task import NOISE, make_pair, stream

LATENT_IMAGES, JUDGED, SHOWN = 4_096, 256, 10
log = logging.getLogger(__name__)


@dataclass
class Run:
    """What a training holds: `network` is the model as called, wrapped for DDP where there are several workers."""

    recipe: Recipe
    model: Autoencoder
    network: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    world: World
    progress: Progress


@dataclass(frozen=True)
class Step:
    done: int  # images of the whole run seen so far
    total: int
    loss: float  # mean over this worker's images, per image; nan where it had none


@dataclass(frozen=True)
class Epoch:
    """Means per image over all workers. `pictures` (uint8 rows of images) are rank 0's only."""

    epoch: int
    metrics: dict[str, float]
    pictures: dict[str, np.ndarray]


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=recipe.optim.lr, fused=True)


def fit(run: Run, train: Feed | np.ndarray, valid: Feed | np.ndarray) -> Iterator[Step | Epoch]:
    """Train from `run.progress` to the recipe's last epoch.

    `train` and `valid` are feeds, or uint8 (n, size, size, channels), the same on each worker. Raises
    FloatingPointError, naming the step, as soon as a loss is not finite.
    """
    optim, progress = run.recipe.optim, run.progress
    train, valid = as_feed(run, train), as_feed(run, valid)
    steps = steps_per_epoch(len(train), optim.batch)
    if not train.resumable:
        rewind(progress, steps, len(train))
    for epoch in range(progress.epochs, optim.epochs):
        started, first = time.monotonic(), progress.samples
        for batch in train.batches(epoch, progress.step - epoch * steps):
            recon, kl = train_step(run, batch)
            progress.step += 1
            progress.samples += batch.count
            _add(progress.sums, recon, kl)
            here = float((recon + run.recipe.loss.kl_factor * kl).mean()) if len(recon) else float("nan")
            if len(recon) and not np.isfinite(here):
                raise FloatingPointError(f"the loss became {here} at step {progress.step}: try a smaller optim.lr")
            yield Step(progress.samples, optim.epochs * len(train), here)
        rate = (progress.samples - first) / (time.monotonic() - started)
        metrics = {f"train_{key}": value for key, value in _means(run, progress.sums).items()}
        metrics["images_per_second"] = rate
        progress.sums, progress.epochs = {}, epoch + 1
        run.model.eval()
        metrics |= evaluate(run, valid, "valid")
        pictures = judge(run, train, valid, metrics) if run.world.rank == 0 else {}
        run.model.train()
        yield Epoch(progress.epochs, metrics, pictures)


def as_feed(run: Run, images: Feed | np.ndarray) -> Feed:
    """`images` as a feed: an array becomes one."""
    if not isinstance(images, np.ndarray):
        return images
    return NodeFeed(images, Order(run.recipe.optim.seed, run.recipe.optim.batch, run.world), run.device)


def rewind(progress: Progress, steps: int, count: int) -> None:
    """Go back to the start of the epoch, of `steps` steps and `count` images; the weights stay as they are."""
    if again := progress.step - progress.epochs * steps:
        log.warning("a stream cannot go on within an epoch: %d steps of epoch %d again", again, progress.epochs + 1)
    progress.step, progress.samples, progress.sums = progress.epochs * steps, progress.epochs * count, {}


def gather_sums(run: Run) -> None:
    """Move the open epoch's sums of all workers to rank 0, so that its checkpoint holds them all. A collective."""
    if run.world.size > 1:
        keys = ["recon", "kl", "count"]
        total = torch.tensor([run.progress.sums.get(k, 0.0) for k in keys], dtype=torch.float64, device=run.device)
        dist.all_reduce(total)
        run.progress.sums = dict(zip(keys, total.tolist(), strict=True)) if run.world.rank == 0 else {}


def train_step(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """One optimizer step on this worker's part of a global batch; its reconstructions' losses and KLs."""
    noise = batch_noise(run, run.progress.step, batch.count)
    weight = 1.0
    if not len(batch.images):  # fewer images than workers: join in DDP's all-reduce with an image that counts nothing
        batch, weight = blank(run, batch), 0.0
    seen, target = make_pair(run.recipe, batch, run.progress.step)
    recon, kl = forward(run, seen, target, noise[batch.positions])
    # DDP takes the mean of the workers' gradients; times the world's size it is the sum over the global batch.
    loss = weight * (recon + run.recipe.loss.kl_factor * kl).sum() * (run.world.size / batch.count)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return (recon.detach(), kl.detach()) if weight else (recon[:0].detach(), kl[:0].detach())


def blank(run: Run, batch: Batch) -> Batch:
    """A black image in the place of none."""
    size, channels = run.model.image.size, run.model.image.channels
    images = torch.zeros((1, size, size, channels), dtype=torch.uint8, device=run.device)
    return Batch(images, torch.zeros(1, dtype=torch.int64, device=run.device), batch.count)


def batch_noise(run: Run, step: int, count: int) -> Tensor:
    """N(0, 1) noise of one global batch, (count, z_dim): made whole by each worker, so it is the same for any world."""
    generator = stream(run.device, run.recipe, step, NOISE)
    return torch.randn(count, run.model.z_dim, generator=generator, device=run.device)


def forward(run: Run, seen: Tensor, target: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel loss against `target` and KL of each image that the encoder has `seen`, in nats, float32."""
    wants_bf16 = run.recipe.optim.precision == "bf16"
    bf16 = wants_bf16 or (run.recipe.optim.precision == "auto" and run.device.type == "cuda")
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
        logits, latent = run.network(seen, noise)
    return loss_parts(run.recipe.loss.pixels, logits, latent, target)


@torch.inference_mode()
def evaluate(run: Run, split: Feed | np.ndarray, prefix: str) -> dict[str, float]:
    """Means per image of a split, `prefix_*`, each worker taking its part; the decoder gets the latent's mean.

    `recon` and `kl` in nats, `mse` of pixels in [0, 1], `psnr` in dB. A collective of all workers.
    """
    sums: dict[str, float] = {}
    for batch in as_feed(run, split).batches(None):
        if not len(batch.images):
            continue
        images = to_float(batch.images)
        latent = run.model.encode(images)
        logits = run.model.logits(latent.mean)
        recon, kl = loss_parts(run.recipe.loss.pixels, logits, latent, images)
        error = (logits.sigmoid() - images).square().flatten(1).mean(1)
        _add(sums, recon, kl)
        sums["mse"] = sums.get("mse", 0.0) + float(error.double().sum())
        sums["psnr"] = sums.get("psnr", 0.0) + float(psnr(error).double().sum())
    return {f"{prefix}_{key}": value for key, value in _means(run, sums).items()}


@torch.inference_mode()
def judge(run: Run, train: Feed, valid: Feed, metrics: dict[str, float]) -> dict[str, np.ndarray]:
    """Add to `metrics` how real decoded random z-points look, and give pictures of them and of reconstructions."""
    real = (valid if len(valid) else train).head(JUDGED)
    reference = to_float(real).cpu()
    latents = fit_run_latents(run, train, limit=2 * JUDGED)
    pictures = {"originals": real[:SHOWN].cpu().numpy()}
    if len(real):
        seen = run.model.encode(to_float(real[:SHOWN]))
        pictures["reconstructions"] = run.model.decode(seen.mean).cpu().numpy()
    for sampler in ("normal", "gaussian"):
        z = sample(sampler, JUDGED, latents, seed=run.recipe.optim.seed).to(run.device)
        images = torch.cat([run.model.logits(part).sigmoid() for part in z.split(64)]).cpu()
        metrics[f"swd_{sampler}"] = sliced_wasserstein(images, reference)
        pictures[sampler] = to_uint8(images[:SHOWN]).numpy()
    return pictures


@torch.inference_mode()
def fit_run_latents(run: Run, train: Feed | np.ndarray, limit: int = LATENT_IMAGES) -> Latents:
    """Statistics of the z-points of the first `limit` training images: each a draw from q(z|x), as the decoder saw."""
    parts: list[Tensor] = []
    images = as_feed(run, train).head(limit)
    for rows in np.array_split(np.arange(len(images)), -(-len(images) // 64)):
        latent: Latent = run.model.encode(to_float(images[rows[0] : rows[-1] + 1]))
        generator = torch.Generator(run.device).manual_seed(seed_of(run.recipe.optim.seed, int(rows[0]), NOISE))
        noise = torch.randn(latent.mean.shape, generator=generator, device=run.device)
        parts.append(latent.sample(noise).cpu())
    return fit_latents(torch.cat(parts))


def _add(sums: dict[str, float], recon: Tensor, kl: Tensor) -> None:
    for key, value in (("recon", recon), ("kl", kl)):
        sums[key] = sums.get(key, 0.0) + float(value.double().sum())
    sums["count"] = sums.get("count", 0.0) + len(recon)


def _means(run: Run, sums: dict[str, float]) -> dict[str, float]:
    """Sums over this worker's images to means over all workers' images."""
    keys = ["recon", "kl", "mse", "psnr", "count"]
    total = torch.tensor([sums.get(key, 0.0) for key in keys], dtype=torch.float64, device=run.device)
    if run.world.size > 1:
        dist.all_reduce(total)
    *values, count = total.tolist()
    means = {key: value / max(1.0, count) for key, value in zip(keys, values, strict=False) if key in sums}
    means["loss"] = means.get("recon", 0.0) + run.recipe.loss.kl_factor * means.get("kl", 0.0)
    return means
