"""The training loop, read from top to bottom: it computes and tells; whoever runs it reports and stores.

`fit` is a generator. It yields a Step after each optimizer step and an Epoch after each epoch; between two yields
the caller may save a checkpoint, log or stop. Images and noise are functions of (seed, epoch, step), so a run that
goes on from a checkpoint sees what it would have seen.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from aecore.checkpoint import Progress
from aecore.config import Recipe
from aecore.losses import loss_parts
from aecore.metrics import psnr, sliced_wasserstein
from aecore.model import Autoencoder, Latent, to_float, to_uint8
from aecore.order import World, plan_epoch, seed_of, step_rows, steps_per_epoch
from aecore.samplers import Latents, fit_latents, sample

NOISE, LATENT_IMAGES, JUDGED, SHOWN = 1, 4_096, 256, 10


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


def fit(run: Run, train: np.ndarray, valid: np.ndarray) -> Iterator[Step | Epoch]:
    """Train from `run.progress` to the recipe's last epoch.

    `train` and `valid` are uint8 (n, size, size, channels), the same on each worker. Raises FloatingPointError,
    naming the step, as soon as a loss is not finite.
    """
    optim, progress = run.recipe.optim, run.progress
    steps = steps_per_epoch(len(train), optim.batch)
    for epoch in range(progress.epochs, optim.epochs):
        plan = plan_epoch(optim.seed, epoch, len(train))
        started, first = time.monotonic(), progress.samples
        for index in range(progress.step - epoch * steps, steps):
            count = len(plan[index * optim.batch : (index + 1) * optim.batch])
            recon, kl = train_step(run, train, plan, index, count)
            progress.step += 1
            progress.samples += count
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


def gather_sums(run: Run) -> None:
    """Move the open epoch's sums of all workers to rank 0, so that its checkpoint holds them all. A collective."""
    if run.world.size > 1:
        keys = ["recon", "kl", "count"]
        total = torch.tensor([run.progress.sums.get(k, 0.0) for k in keys], dtype=torch.float64, device=run.device)
        dist.all_reduce(total)
        run.progress.sums = dict(zip(keys, total.tolist(), strict=True)) if run.world.rank == 0 else {}


def train_step(run: Run, train: np.ndarray, plan: np.ndarray, index: int, count: int) -> tuple[Tensor, Tensor]:
    """One optimizer step on this worker's part of a global batch of `count`; its reconstructions' losses and KLs."""
    rows, positions = step_rows(plan, index, run.recipe.optim.batch, run.world)
    noise = batch_noise(run, run.progress.step, count)
    weight = 1.0
    if not len(rows):  # fewer images than workers: join in DDP's all-reduce with an image that counts nothing
        rows, positions, weight = plan[:1], np.zeros(1, int), 0.0
    images = load_rows(run, train, rows)
    recon, kl = forward(run, images, noise[torch.from_numpy(positions).to(run.device)])
    # DDP takes the mean of the workers' gradients; times the world's size it is the sum over the global batch.
    loss = weight * (recon + run.recipe.loss.kl_factor * kl).sum() * (run.world.size / count)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.optimizer.step()
    return (recon.detach(), kl.detach()) if weight else (recon[:0].detach(), kl[:0].detach())


def load_rows(run: Run, images: np.ndarray, rows: np.ndarray) -> Tensor:
    """Rows of a uint8 (n, size, size, channels) array as floats in [0, 1] on the device."""
    return to_float(torch.from_numpy(images[rows]).to(run.device, non_blocking=True))


def batch_noise(run: Run, step: int, count: int) -> Tensor:
    """N(0, 1) noise of one global batch, (count, z_dim): made whole by each worker, so it is the same for any world."""
    generator = torch.Generator(run.device).manual_seed(seed_of(run.recipe.optim.seed, step, NOISE))
    return torch.randn(count, run.model.z_dim, generator=generator, device=run.device)


def forward(run: Run, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel loss and KL of each image, in nats, float32."""
    wants_bf16 = run.recipe.optim.precision == "bf16"
    bf16 = wants_bf16 or (run.recipe.optim.precision == "auto" and run.device.type == "cuda")
    with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
        logits, latent = run.network(images, noise)
    return loss_parts(run.recipe.loss.pixels, logits, latent, images)


@torch.inference_mode()
def evaluate(run: Run, split: np.ndarray, prefix: str) -> dict[str, float]:
    """Means per image of a split, `prefix_*`, each worker taking its part; the decoder gets the latent's mean.

    `recon` and `kl` in nats, `mse` of pixels in [0, 1], `psnr` in dB. A collective of all workers.
    """
    sums: dict[str, float] = {}
    plan, batch = np.arange(len(split)), run.recipe.optim.batch
    for index in range(steps_per_epoch(len(split), batch)):
        rows, _ = step_rows(plan, index, batch, run.world)
        if not len(rows):
            continue
        images = load_rows(run, split, rows)
        latent = run.model.encode(images)
        logits = run.model.logits(latent.mean)
        recon, kl = loss_parts(run.recipe.loss.pixels, logits, latent, images)
        error = (logits.sigmoid() - images).square().flatten(1).mean(1)
        _add(sums, recon, kl)
        sums["mse"] = sums.get("mse", 0.0) + float(error.double().sum())
        sums["psnr"] = sums.get("psnr", 0.0) + float(psnr(error).double().sum())
    return {f"{prefix}_{key}": value for key, value in _means(run, sums).items()}


@torch.inference_mode()
def judge(run: Run, train: np.ndarray, valid: np.ndarray, metrics: dict[str, float]) -> dict[str, np.ndarray]:
    """Add to `metrics` how real decoded random z-points look, and give pictures of them and of reconstructions."""
    real = valid if len(valid) else train
    reference = load_rows(run, real, np.arange(min(JUDGED, len(real)))).cpu()
    latents = fit_run_latents(run, train, limit=2 * JUDGED)
    pictures = {"originals": real[:SHOWN]}
    if len(real):
        seen = run.model.encode(load_rows(run, real, np.arange(min(SHOWN, len(real)))))
        pictures["reconstructions"] = run.model.decode(seen.mean).cpu().numpy()
    for sampler in ("normal", "gaussian"):
        z = sample(sampler, JUDGED, latents, seed=run.recipe.optim.seed).to(run.device)
        images = torch.cat([run.model.logits(part).sigmoid() for part in z.split(64)]).cpu()
        metrics[f"swd_{sampler}"] = sliced_wasserstein(images, reference)
        pictures[sampler] = to_uint8(images[:SHOWN]).numpy()
    return pictures


@torch.inference_mode()
def fit_run_latents(run: Run, train: np.ndarray, limit: int = LATENT_IMAGES) -> Latents:
    """Statistics of the z-points of the first `limit` training images: each a draw from q(z|x), as the decoder saw."""
    parts: list[Tensor] = []
    for rows in np.array_split(np.arange(min(limit, len(train))), -(-min(limit, len(train)) // 64)):
        latent: Latent = run.model.encode(load_rows(run, train, rows))
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
