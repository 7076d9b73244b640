"""Evaluation during training: means over a split, and how realistic decoded random z-points are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from aecore.data.loaders import Batch, Loader
from aecore.data.shuffle import derive_seed
from aecore.latent.samplers import N_COMPONENTS, LatentStats, fit_latent_stats, sample
from aecore.metrics.distribution import NUM_REFERENCE, FrechetDistance, hog_features
from aecore.metrics.pixel import psnr, ssim
from aecore.model.autoencoder import ACTIVE_VARIANCE, to_uint8
from aecore.model.corruptions import LATENT_NOISE, make_eval_pair
from aecore.model.losses import loss_terms
from aecore.training.state import RunningSums, TrainingRun

LATENT_IMAGES = 4_096  # training images whose z-points the stored latent statistics are fitted to
NUM_SAMPLES = 256  # decoded z-points of each sampler
NUM_PREVIEWS = 10  # images of each kind on an epoch's sheet
BATCH = 64  # images or z-points a call of the model


@torch.inference_mode()
def evaluate(run: TrainingRun, loader: Loader, prefix: str) -> tuple[dict[str, float], np.ndarray]:
    """Return means per image over a split, `PREFIX_NAME`, and the mean KL per dimension.

    `loss`, `recon` and `kl` in nats, `mse` of pixels in [0, 1], `psnr` in dB, `ssim`, and `active_units` of the z_dim
    (Burda 2016); if the task corrupts its input, `input_psnr` and `input_ssim` of that input too. Images are decoded
    from the mean of q(z|x). The KL per dimension is float64 `(z_dim,)` in nats. A collective.
    """
    recipe, z_dim = run.recipe, run.model.z_dim
    input_metrics = ("input_psnr", "input_ssim") if recipe.task.kind != "reconstruct" else ()
    scalars = ("recon", "mse", "psnr", "ssim", *input_metrics)
    totals = RunningSums(
        run.device, **dict.fromkeys((*scalars, "count"), 1), kl_per_dim=z_dim, mean=z_dim, square=z_dim
    )
    for step, batch in enumerate(loader.batches(None)):
        if not len(batch.images):
            continue
        corrupted, clean = make_eval_pair(recipe, batch, step)
        posterior = run.model.encode(corrupted)
        logits = run.model.logits(posterior.mean)
        recon, _, _ = loss_terms(recipe.loss, logits, posterior, clean)
        decoded = logits.sigmoid()
        mse = _mse(decoded, clean)
        input_values = (psnr(_mse(corrupted, clean)), ssim(corrupted, clean)) if input_metrics else ()
        totals.add(
            recon=recon, mse=mse, psnr=psnr(mse), ssim=ssim(decoded, clean),
            **dict(zip(input_metrics, input_values, strict=True)), count=torch.ones_like(recon),
            kl_per_dim=posterior.kl(), mean=posterior.mean, square=posterior.mean.square(),
        )  # fmt: skip
    sums = totals.all_reduce(run.world)
    means = {name: total / max(1.0, sums["count"][0]) for name, total in sums.items()}
    metrics = {name: float(means[name][0]) for name in scalars}
    metrics["kl"] = float(means["kl_per_dim"].sum())
    metrics["loss"] = metrics["recon"] + recipe.loss.kl_factor * metrics["kl"]
    metrics["active_units"] = float((means["square"] - means["mean"] ** 2 > ACTIVE_VARIANCE).sum())
    return {f"{prefix}_{name}": value for name, value in metrics.items()}, means["kl_per_dim"]


def _mse(images: Tensor, clean: Tensor) -> Tensor:
    """Return the mean squared error of each image, `(n,)`."""
    return (images - clean).square().flatten(1).mean(1)


@dataclass
class SampleEvaluator:
    """Measures how realistic decoded random z-points are, with the same reference images for all runs of a dataset."""

    run: TrainingRun

    @cached_property
    def frechet_distance(self) -> FrechetDistance:
        return FrechetDistance(hog_features(self.run.train.spaced_images(NUM_REFERENCE).cpu().numpy()))

    @torch.inference_mode()
    def evaluate(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return metrics of 256 decoded z-points of two samplers, and preview images.

        `hog_frechet_normal` of N(0, 1) and `hog_frechet_gaussian` of the Gaussian fitted to the training images'
        z-points are the Frechet distance in HOG features (`aecore.metrics.distribution`) to 2,048 evenly spaced
        training images. The images are uint8 (10 or fewer, size, size, channels): `originals`, `corrupted` (if the
        task corrupts its input), `reconstructions`, `normal`, `gaussian`.
        """
        run, metrics = self.run, {}
        images = self._reconstructions()
        latents = fit_run_latents(run, limit=2 * NUM_SAMPLES, n_components=0)
        for sampler in ("normal", "gaussian"):
            z = sample(sampler, NUM_SAMPLES, latents, seed=run.recipe.optim.seed).to(run.device)
            decoded = torch.cat([run.model.decode(batch) for batch in z.split(BATCH)]).cpu().numpy()
            metrics[f"hog_frechet_{sampler}"] = self.frechet_distance(hog_features(decoded))
            images[sampler] = decoded[:NUM_PREVIEWS]
        return metrics, images

    def _reconstructions(self) -> dict[str, np.ndarray]:
        run = self.run
        originals = (run.valid if len(run.valid) else run.train).spaced_images(NUM_PREVIEWS)
        corrupted = corrupt_images(run, originals, 0)
        images = {"originals": originals.cpu().numpy()}
        if run.recipe.task.kind != "reconstruct":
            images["corrupted"] = to_uint8(corrupted).cpu().numpy()
        return images | {"reconstructions": run.model.decode(run.model.encode(corrupted).mean).cpu().numpy()}


@torch.inference_mode()
def fit_run_latents(
    run: TrainingRun, limit: int = LATENT_IMAGES, attributes: Mapping[str, Tensor] | None = None,
    n_components: int = N_COMPONENTS,
) -> LatentStats:  # fmt: skip
    """Return `fit_latent_stats` of the z-points of at most `limit` evenly spaced training images.

    A z-point is a draw from q(z|x) of the image as its task corrupts it: the decoder was trained on such draws.
    `attributes` (name to values (n,)) are those of the images `run.train.spaced_images(limit)`.
    """
    z_points: list[Tensor] = []
    for step, images in enumerate(run.train.spaced_images(limit).split(BATCH)):
        posterior = run.model.encode(corrupt_images(run, images, step))
        generator = torch.Generator(run.device).manual_seed(derive_seed(run.recipe.optim.seed, step, LATENT_NOISE))
        noise = torch.randn(posterior.mean.shape, generator=generator, device=run.device)
        z_points.append(posterior.sample(noise).cpu())
    return fit_latent_stats(torch.cat(z_points), attributes, n_components=n_components)


def corrupt_images(run: TrainingRun, images: Tensor, step: int) -> Tensor:
    """Return the encoder's input for images uint8 (n, size, size, channels) in evaluation step `step`."""
    batch = Batch(images, torch.arange(len(images), device=run.device), len(images))
    return make_eval_pair(run.recipe, batch, step)[0]
