"""Evaluation during training: means over a split, and how realistic decoded random z-points are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from aecore.config import STORED_SAMPLERS, Recipe
from aecore.data.loaders import Batch, Loader
from aecore.data.shuffle import World
from aecore.data.splits import SPLITS
from aecore.latent.points import StoredPoints, make_points
from aecore.latent.samplers import LatentStats, fit_latent_stats, sample
from aecore.metrics.distribution import NUM_REFERENCE, FrechetDistance, hog_features
from aecore.metrics.pixel import mean_squared_error, psnr, ssim
from aecore.model.autoencoder import ACTIVE_VARIANCE, BATCH_SIZE, Autoencoder, decode_batches, to_uint8
from aecore.model.corruptions import LATENT_NOISE, make_batch_noise, make_eval_pair
from aecore.model.losses import loss_terms

LATENT_IMAGES = 4_096  # training images whose z-points the stored latent statistics are fitted to
NUM_SAMPLES = 256  # decoded z-points of each sampler
EPOCH_SAMPLERS = ("normal", "gaussian")  # judged after some epochs: each costs as much as some steps
NUM_PREVIEWS = 10  # images of each kind on an epoch's sheet
DIVERGENCE_FIX = "try a smaller optim.lr, or optim.clip=1000"


@torch.inference_mode()
def evaluate(
    model: Autoencoder, recipe: Recipe, loader: Loader, world: World, prefix: str
) -> tuple[dict[str, float], np.ndarray]:
    """Return means per image over a split, `PREFIX_NAME`, and the mean KL per dimension.

    `loss`, `recon` and `kl` in nats, `mse` of pixels in [0, 1], `psnr` in dB, `ssim`, and `active_units` of the z_dim
    (Burda 2016); if the task corrupts its input, `input_psnr` and `input_ssim` of that input too. Images are decoded
    from the mean of q(z|x). The KL per dimension is float64 `(z_dim,)` in nats. An empty split gives no metrics and an
    empty array. A collective.
    """
    if not len(loader):
        return {}, np.empty(0)
    input_metrics = ("input_psnr", "input_ssim") if recipe.task.kind != "reconstruct" else ()
    scalars = ("recon", "mse", "psnr", "ssim", *input_metrics)
    sums = torch.zeros(1 + len(scalars) + 3 * model.z_dim, dtype=torch.float64, device=model.device)
    for step, batch in enumerate(loader.batches(None)):
        if not len(batch.images):
            continue
        corrupted, clean = make_eval_pair(recipe, batch, step)
        posterior = model.encode(corrupted)
        logits = model.logits(posterior.mean)
        recon, _, _ = loss_terms(recipe.loss, logits, posterior, clean)
        decoded = logits.sigmoid()
        mse = mean_squared_error(decoded, clean)
        columns = [torch.ones_like(recon), recon, mse, psnr(mse), ssim(decoded, clean)]
        if input_metrics:
            columns += [psnr(mean_squared_error(corrupted, clean)), ssim(corrupted, clean)]
        vectors = [posterior.kl(), posterior.mean, posterior.mean.square()]
        sums += torch.cat([torch.stack(columns, 1), *vectors], 1).double().sum(0)
    if world.size > 1:
        dist.all_reduce(sums)
    means = (sums[1:] / sums[0]).cpu().numpy()
    kl_per_dim, mean, square = means[len(scalars) :].reshape(3, model.z_dim)
    metrics: dict[str, float] = dict(zip(scalars, means[: len(scalars)].tolist(), strict=True))
    metrics["kl"] = float(kl_per_dim.sum())
    metrics["loss"] = metrics["recon"] + recipe.loss.kl_factor * metrics["kl"]
    metrics["active_units"] = float((square - mean**2 > ACTIVE_VARIANCE).sum())
    return {f"{prefix}_{name}": value for name, value in metrics.items()}, kl_per_dim


@dataclass
class SampleEvaluator:
    """Measures how realistic decoded random z-points are, with the same reference images for all runs of a dataset."""

    model: Autoencoder
    recipe: Recipe
    train: Loader
    valid: Loader

    @cached_property
    def frechet_distance(self) -> FrechetDistance:
        return FrechetDistance(hog_features(self.train.spaced_images(NUM_REFERENCE).cpu().numpy()))

    @torch.inference_mode()
    def evaluate(self, stored_latents: LatentStats | None = None) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Return metrics of 256 decoded z-points of each sampler, and preview images.

        `hog_frechet_SAMPLER` is the Frechet distance in HOG features (`aecore.metrics.distribution`) to 2,048 evenly
        spaced training images. With the `stored_latents` of a finished model the samplers are STORED_SAMPLERS, else
        EPOCH_SAMPLERS, fitted to 512 training images. The images are uint8 (10 or fewer, size, size, channels):
        `originals`, `corrupted` (if the task corrupts its input), `reconstructions`, and those of each sampler.
        """
        model, metrics = self.model, {}
        images = self._reconstructions()
        latents, samplers = stored_latents, tuple(STORED_SAMPLERS)
        if latents is None:
            z = draw_train_points(model, self.recipe, self.train, limit=2 * NUM_SAMPLES)
            latents = fit_latent_stats(z, n_components=0)
            samplers = EPOCH_SAMPLERS
        for sampler in samplers:
            decoded = decode_batches(model, sample(sampler, NUM_SAMPLES, latents, seed=self.recipe.optim.seed))
            metrics[f"hog_frechet_{sampler}"] = self.frechet_distance(hog_features(decoded))
            images[sampler] = decoded[:NUM_PREVIEWS]
        return metrics, images

    def _reconstructions(self) -> dict[str, np.ndarray]:
        originals = (self.valid if len(self.valid) else self.train).spaced_images(NUM_PREVIEWS)
        corrupted, _ = make_eval_pair(self.recipe, Batch.whole(originals), 0)
        images = {"originals": originals.cpu().numpy()}
        if self.recipe.task.kind != "reconstruct":
            images["corrupted"] = to_uint8(corrupted).cpu().numpy()
        return images | {"reconstructions": self.model.decode(self.model.encode(corrupted).mean).cpu().numpy()}


@torch.inference_mode()
def encode_points(
    model: Autoencoder, recipe: Recipe, loaders: Mapping[str, Loader], attributes: Mapping[str, Mapping[str, Tensor]]
) -> StoredPoints | None:
    """Return the points to store with the model: the means of q(z|x) of evenly spaced training and test images.

    The encoder gets the images as their task corrupts them. `attributes` are by split those of
    `spaced_images(points_per_split(...)[split])`; one that a split lacks is left out. None if the recipe stores none.
    """
    z_points, images, splits, columns = [], [], [], []
    for split, limit in points_per_split(recipe, loaders).items():
        originals = loaders[split].spaced_images(limit)
        for step, batch in enumerate(originals.split(BATCH_SIZE)):
            z_points.append(model.encode(make_eval_pair(recipe, Batch.whole(batch), step)[0]).mean.cpu())
        images.append(originals.cpu().numpy())
        splits.append(torch.full((len(originals),), SPLITS.index(split), dtype=torch.uint8))
        columns.append(attributes.get(split, {}))
    if not z_points:
        return None
    names = [name for name in columns[0] if all(name in column for column in columns)]
    joined = {name: torch.cat([column[name] for column in columns]) for name in names}
    return make_points(torch.cat(z_points), np.concatenate(images), torch.cat(splits), joined)


def points_per_split(recipe: Recipe, loaders: Mapping[str, Loader]) -> dict[str, int]:
    """Return how many images of each split are stored as points: a fifth test images, the rest training images."""
    num_test = min(len(loaders["test"]), recipe.points.images // 5)
    counts = {"train": min(len(loaders["train"]), recipe.points.images - num_test), "test": num_test}
    return {split: count for split, count in counts.items() if count}


@torch.inference_mode()
def draw_train_points(model: Autoencoder, recipe: Recipe, train: Loader, limit: int = LATENT_IMAGES) -> Tensor:
    """Return z-points float32 `(n, z_dim)` on the CPU of at most `limit` evenly spaced training images.

    A z-point is a draw from q(z|x) of the image as its task corrupts it: the decoder was trained on such draws. Raises
    FloatingPointError if one is not finite: nothing else says so of a dataset without validation images.
    """
    z_points: list[Tensor] = []
    for step, images in enumerate(train.spaced_images(limit).split(BATCH_SIZE)):
        batch = Batch.whole(images)
        posterior = model.encode(make_eval_pair(recipe, batch, step)[0])
        noise = make_batch_noise(recipe.optim.seed, batch, step, LATENT_NOISE).normal(model.z_dim)
        z_points.append(posterior.sample(noise).cpu())
    z = torch.cat(z_points)
    if not z.isfinite().all():
        raise FloatingPointError(f"z-points of training images are not finite, the model diverged: {DIVERGENCE_FIX}")
    return z
