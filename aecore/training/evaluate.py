"""Judging a model in training: means over a split, and how real decoded random z-points look."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from aecore.data.loaders import Batch, Loader
from aecore.data.shuffle import derive_seed
from aecore.latent.samplers import N_COMPONENTS, LatentStats, fit_latent_stats, sample
from aecore.metrics.distribution import REFERENCE, FrechetDistance, hog_features
from aecore.metrics.pixel import psnr, ssim
from aecore.model.autoencoder import ACTIVE_KL, DiagonalGaussian, to_uint8
from aecore.model.corruptions import NOISE, make_eval_pair
from aecore.model.losses import loss_parts
from aecore.training.state import RunningSums, TrainingRun, as_loader

LATENT_IMAGES, JUDGED, SHOWN = 4_096, 256, 10


@torch.inference_mode()
def evaluate(run: TrainingRun, split: Loader | np.ndarray, prefix: str) -> tuple[dict[str, float], np.ndarray]:
    """Means per image of a split, `prefix_*`, each worker taking its part; the decoder gets the latent's mean.

    `loss`, `recon` and `kl` in nats, `mse` of pixels in [0, 1], `psnr` in dB, `ssim`, `active_units` of the z_dim
    (Burda 2016); for a task that hides something of the images also `input_psnr` and `input_ssim` of what it leaves.
    With them the KL by component, in nats `(z_dim,)`. A collective of all workers.
    """
    recipe, z_dim = run.recipe, run.model.z_dim
    shown = ("input_psnr", "input_ssim") if recipe.task.kind != "reconstruct" else ()
    scalars = ("recon", "mse", "psnr", "ssim", *shown, "count")
    totals = RunningSums(run.device, **dict.fromkeys(scalars, 1), components=z_dim, mean=z_dim, square=z_dim)
    for step, batch in enumerate(as_loader(run, split).batches(None)):
        if not len(batch.images):
            continue
        seen, clean = make_eval_pair(recipe, batch, step)
        latent = run.model.encode(seen)
        logits = run.model.logits(latent.mean)
        recon, _, _ = loss_parts(recipe.loss, logits, latent, clean)
        decoded = logits.sigmoid()
        error = _error(decoded, clean)
        corrupted = {"input_psnr": psnr(_error(seen, clean)), "input_ssim": ssim(seen, clean)} if shown else {}
        totals.add(
            recon=recon, mse=error, psnr=psnr(error), ssim=ssim(decoded, clean), **corrupted,
            count=torch.ones_like(recon), components=latent.kl(), mean=latent.mean, square=latent.mean.square(),
        )  # fmt: skip
    sums = totals.read(run.world)
    mean = {key: value / max(1.0, sums["count"][0]) for key, value in sums.items()}
    found = {key: float(mean[key][0]) for key in scalars[:-1]}
    found["kl"] = float(mean["components"].sum())
    found["loss"] = found["recon"] + recipe.loss.kl_factor * found["kl"]
    found["active_units"] = float((mean["square"] - mean["mean"] ** 2 > ACTIVE_KL).sum())
    return {f"{prefix}_{key}": value for key, value in found.items()}, mean["components"]


def _error(images: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error of each image, `(n,)`."""
    return (images - clean).square().flatten(1).mean(1)


@dataclass
class SampleEvaluator:
    """How real decoded random z-points look: called after an epoch, it adds figures to `metrics` and gives pictures.

    `hog_frechet_normal` and `hog_frechet_gaussian`: the Frechet distance in HOG features
    (`aecore.metrics.distribution`) of 256 decoded z-points from N(0, 1), and from the Gaussian fitted to the training
    images' z-points, to 2,048 training images, evenly spread: the same ones for all runs on a dataset. The pictures,
    uint8 rows, are of these and of reconstructions.
    """

    run: TrainingRun
    train: Loader
    valid: Loader

    @cached_property
    def distance(self) -> FrechetDistance:
        return FrechetDistance(hog_features(self.train.spread(REFERENCE).cpu().numpy()))

    @torch.inference_mode()
    def __call__(self, metrics: dict[str, float]) -> dict[str, np.ndarray]:
        run = self.run
        pictures = self._reconstructions()
        latents = fit_run_latents(run, self.train, limit=2 * JUDGED, components=0)
        for sampler in ("normal", "gaussian"):
            z = sample(sampler, JUDGED, latents, seed=run.recipe.optim.seed).to(run.device)
            images = torch.cat([run.model.decode(part) for part in z.split(64)]).cpu().numpy()
            metrics[f"hog_frechet_{sampler}"] = self.distance(hog_features(images))
            pictures[sampler] = images[:SHOWN]
        return pictures

    def _reconstructions(self) -> dict[str, np.ndarray]:
        run, real = self.run, (self.valid if len(self.valid) else self.train).spread(SHOWN)
        seen = seen_images(run, real, 0)
        pictures = {"originals": real.cpu().numpy()}
        if run.recipe.task.kind != "reconstruct":
            pictures["seen"] = to_uint8(seen.clone()).cpu().numpy()
        return pictures | {"reconstructions": run.model.decode(run.model.encode(seen).mean).cpu().numpy()}


@torch.inference_mode()
def fit_run_latents(
    run: TrainingRun, train: Loader | np.ndarray, limit: int = LATENT_IMAGES,
    attributes: Mapping[str, Tensor] | None = None, components: int = N_COMPONENTS,
) -> LatentStats:  # fmt: skip
    """Statistics of the z-points of `limit` training images, as `fit_latent_stats` gives them.

    Each z-point is a draw from q(z|x) of what the task leaves of an image, as the decoder saw. `attributes` are those
    of the images that `train.spread(limit)` gives.
    """
    parts: list[Tensor] = []
    images = as_loader(run, train).spread(limit)
    for step, part in enumerate(images.split(64)):
        latent: DiagonalGaussian = run.model.encode(seen_images(run, part, step))
        generator = torch.Generator(run.device).manual_seed(derive_seed(run.recipe.optim.seed, step, NOISE))
        noise = torch.randn(latent.mean.shape, generator=generator, device=run.device)
        parts.append(latent.sample(noise).cpu())
    return fit_latent_stats(torch.cat(parts), attributes, components=components)


def seen_images(run: TrainingRun, images: Tensor, step: int) -> Tensor:
    """What the encoder sees of images uint8 (n, size, size, channels), with the draws of the judging step `step`."""
    return make_eval_pair(run.recipe, Batch(images, torch.arange(len(images), device=run.device), len(images)), step)[0]
