"""Measure one finished model for a study: each measurement is a function that returns metrics and arrays.

Add a measurement: write a function and list it in MEASUREMENTS. All z-points come from one seed, so that every value of
a sweep decodes the same directions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aecore.config import TASKS
from aecore.data.shuffle import derive_seed, evenly_spaced
from aecore.latent.directions import attribute_directions, principal_axes
from aecore.latent.interpolation import INTERPOLATIONS
from aecore.latent.samplers import SAMPLERS, LatentStats, available_samplers, fit_latent_stats, sample
from aecore.latent.stats import compute_z_stats, measure_structure, tsne
from aecore.metrics.pixel import chroma, mean_squared_error, psnr, ssim
from aecore.metrics.suite import METRICS, MetricSuite
from aecore.model.autoencoder import BATCH_SIZE, DiagonalGaussian, decode_batches, to_float, to_uint8
from aecore.model.corruptions import BatchNoise, corrupt
from aecore.training.checkpoint import SavedModel

SEED = 0
ENCODE_CHUNK_SIZE = 512  # images that are converted to float together
IMAGES_STORED = 10  # of each sampler, sweep value and task
NUM_PAIRS = 64  # pairs of held-out images to interpolate between
INTERPOLATION_STEPS = 11
PAIRS_STORED = 3
NUM_PATH_POINTS = 2_000  # training z-points that an interpolation may pass through
NUM_AXES = 5  # principal axes that are decoded
DIRECTION_LIMIT = 3.0  # sds to either side of the mean z-point
DIRECTION_STEPS = 9
NUM_MAP_POINTS = 1_000  # z-points on a two-dimensional map
NUM_CORRELATED_DIMS = 64  # latent dimensions whose correlations are stored
RADIUS_BIN_EDGES = np.geomspace(0.125, 32, 65)  # in units of sqrt(z_dim)
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# sampler: its parameter and the values of the sweep
SWEEPS: dict[str, tuple[str, tuple[float, ...]]] = {
    "cube": ("boundary", (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)),
    "sphere": ("radius", (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)),
    "diagonal": ("temperature", TEMPERATURES),
    "gaussian": ("temperature", TEMPERATURES),
    "gmm": ("temperature", TEMPERATURES),
}


@dataclass(frozen=True)
class Measurement:
    """Metrics as JSON values; arrays of images uint8 (..., size, size, channels), map points or correlations."""

    metrics: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class StudiedModel:
    """A finished model, real images of its dataset, and the metric suite that compares with them.

    `train_images` and `held_out_images` are uint8 (n, size, size, channels). As many images as are held out are decoded
    and scored for each sampler and sweep value. `encode_train_images` returns q(z|x) of the training images; by default
    `train_images` are encoded in this process.
    """

    saved: SavedModel
    train_images: np.ndarray
    held_out_images: np.ndarray
    metric_suite: MetricSuite
    encode_train_images: Callable[[], DiagonalGaussian] | None = None

    @cached_property
    def posterior(self) -> DiagonalGaussian:
        """Return q(z|x) of the corrupted training images."""
        return self.encode_train_images() if self.encode_train_images else encode_images(self.saved, self.train_images)

    @cached_property
    def train_z(self) -> Tensor:
        """Return z-points (n, z_dim) of the training images, drawn from q(z|x) as in training."""
        noise = torch.randn(self.posterior.mean.shape, generator=torch.Generator().manual_seed(SEED))
        return self.posterior.sample(noise)

    @cached_property
    def latent_stats(self) -> LatentStats:
        """Return the statistics for the samplers. If the model was stored without a mixture, fit one."""
        return self.saved.latents if self.has_stored_mixture else fit_latent_stats(self.train_z) | self.saved.latents

    @property
    def has_stored_mixture(self) -> bool:
        return "gmm" in available_samplers(self.saved.latents)

    @cached_property
    def held_out_z(self) -> Tensor:
        """Return the z-points of the held-out images: means of q(z|x)."""
        return self.encode(self.corrupt(self.held_out_images)).mean

    def corrupt(self, images: np.ndarray, task: Any = None) -> Tensor:
        """Return the encoder's input for `task`, by default the model's: float (n, channels, size, size) in [0, 1]."""
        return _corrupt(task or self.saved.recipe.task, images)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Return q(z|x) of float images, on the CPU."""
        return _encode(self.saved, images)

    def decode(self, z: Tensor) -> np.ndarray:
        """Return the decoded images, uint8 (n, size, size, channels)."""
        return decode_batches(self.saved.model, z)

    def decode_and_score(self, z: Tensor) -> tuple[dict[str, float], np.ndarray]:
        """Return the metrics of the decoded z-points, and the first images."""
        images = self.decode(z)
        return self.metric_suite(images), images[:IMAGES_STORED]

    def sample(self, sampler: str, **parameters: float) -> Tensor:
        """Return z-points of a sampler, as many as there are held-out images."""
        return sample(sampler, len(self.held_out_images), self.latent_stats, SEED, **parameters)

    @cached_property
    def z_by_sampler(self) -> dict[str, Tensor]:
        """Return z-points of held-out images, of each sampler, and of the sphere at the z-points' mean radius."""
        samples = {name: self.sample(name) for name in SAMPLERS if name != "cube"}  # a cube has no natural boundary
        on_mean_radius = self.sample("sphere", radius=float(self.train_z.norm(dim=1).mean()))
        return {"reconstructions": self.held_out_z, **samples, "sphere, own radius": on_mean_radius}


def encode_images(saved: SavedModel, images: np.ndarray, first_index: int = 0) -> DiagonalGaussian:
    """Return q(z|x) of images uint8 (n, size, size, channels), corrupted by the model's task; on the CPU.

    `first_index` is the index of the first image in the split. It seeds the corruption.
    """
    starts = range(0, len(images), ENCODE_CHUNK_SIZE)  # all images at once as float would take four times the memory
    task = saved.recipe.task
    return _concatenate(
        [_encode(saved, _corrupt(task, images[i : i + ENCODE_CHUNK_SIZE], first_index + i)) for i in starts]
    )


def _corrupt(task: Any, images: np.ndarray, first_index: int = 0) -> Tensor:
    clean = to_float(torch.from_numpy(np.array(images)))
    generator = torch.Generator().manual_seed(derive_seed(SEED, first_index))
    return corrupt(task, clean, BatchNoise(generator, torch.arange(len(clean)), len(clean)))


@torch.inference_mode()
def _encode(saved: SavedModel, images: Tensor) -> DiagonalGaussian:
    batches = images.split(BATCH_SIZE)
    return _concatenate([saved.model.encode(batch.to(saved.model.device)) for batch in batches])


def _concatenate(posteriors: list[DiagonalGaussian]) -> DiagonalGaussian:
    means = torch.cat([posterior.mean.cpu() for posterior in posteriors])
    logvars = [posterior.logvar.cpu() for posterior in posteriors if posterior.logvar is not None]
    return DiagonalGaussian(means, torch.cat(logvars) if logvars else None)


def measure_real_images(model: StudiedModel) -> Measurement:
    """Score real held-out images: the best that a sampler can reach."""
    images = model.held_out_images
    return Measurement(model.metric_suite(images), {"pictures": images[:IMAGES_STORED]})


def measure_samplers(model: StudiedModel) -> Measurement:
    """Score reconstructions of held-out images, then each sampler of `StudiedModel.z_by_sampler`."""
    metrics, images = {}, {}
    for name, z in model.z_by_sampler.items():
        metrics[name], images[name] = model.decode_and_score(z)
    return Measurement(metrics, images)


def measure_inception(model: StudiedModel, score_images: Callable[[np.ndarray], dict[str, float]]) -> Measurement:
    """Score real held-out images and each sampler's images by `score_images` of `aecore.metrics.inception`."""
    samplers = {name: score_images(model.decode(z)) for name, z in model.z_by_sampler.items()}
    return Measurement({"real": score_images(model.held_out_images), "samplers": samplers})


def measure_sweep(model: StudiedModel, sampler: str) -> Measurement:
    """Score the images for each value of the sampler's parameter in SWEEPS."""
    parameter, values = SWEEPS[sampler]
    metrics, images = [], []
    for value in values:
        scores, first_images = model.decode_and_score(model.sample(sampler, **{parameter: value}))
        metrics.append({parameter: value, **scores})
        images.append(first_images)
    return Measurement(metrics, {"pictures": np.stack(images)})


def measure_tasks(model: StudiedModel) -> Measurement:
    """Compare input and output of each task with the clean held-out images; the model's own task as it was trained.

    A baseline is the mean training image, which needs no input image: its PSNR is `mean_psnr`. Colour images also get
    the PSNR of their chroma. Arrays are (3, n, size, size, channels): clean, input, output.
    """
    trained_task, metrics, arrays = model.saved.recipe.task, {}, {}
    images = model.held_out_images
    clean = to_float(torch.from_numpy(images))
    has_colour = clean.shape[1] == 3
    mean_image = torch.from_numpy(model.train_images.mean(0, dtype=np.float64) / 255.0).float().permute(2, 0, 1)[None]
    baseline = {"mean_psnr": _psnr(mean_image, clean)}
    if has_colour:
        baseline["mean_chroma_psnr"] = _chroma_psnr(mean_image, clean)
    for kind, settings in TASKS.items():
        if kind == "recolor" and not has_colour:
            continue
        is_trained = trained_task.kind == kind
        task = trained_task if is_trained else settings.model_validate({"kind": kind})
        corrupted = model.corrupt(images, task)
        output = model.decode(model.encode(corrupted).mean)
        metrics[kind] = {
            "settings": task.model_dump(exclude={"kind"}), "trained": is_trained,
            **_similarity(corrupted, clean, "input_"), **_similarity(to_float(torch.from_numpy(output)), clean),
            **baseline,
        }  # fmt: skip
        corrupted_images = to_uint8(corrupted[:IMAGES_STORED]).numpy()
        arrays[kind] = np.stack([images[:IMAGES_STORED], corrupted_images, output[:IMAGES_STORED]])
    return Measurement(metrics, arrays)


def _similarity(images: Tensor, clean: Tensor, prefix: str = "") -> dict[str, float]:
    metrics = {"psnr": _psnr(images, clean), "ssim": float(ssim(images, clean).mean())}
    if clean.shape[1] == 3:
        metrics["chroma_psnr"] = _chroma_psnr(images, clean)
    return {prefix + name: value for name, value in metrics.items()}


def _psnr(images: Tensor, clean: Tensor) -> float:
    # The mean of each image's PSNR, as training reports it.
    return float(psnr(mean_squared_error(images, clean)).mean())


def _chroma_psnr(images: Tensor, clean: Tensor) -> float:
    return _psnr(chroma(images), chroma(clean))


def measure_interpolations(model: StudiedModel) -> Measurement:
    """Rate the images between the z-points of two held-out images, by each of INTERPOLATIONS.

    Arrays are (pairs, steps, size, size, channels).
    """
    z = model.held_out_z
    path_points = model.train_z[evenly_spaced(len(model.train_z), NUM_PATH_POINTS)]
    num_pairs = min(NUM_PAIRS, len(z) // 2)
    metrics, arrays = {}, {}
    for name, interpolate in INTERPOLATIONS.items():
        paths = [interpolate(z[i], z[num_pairs + i], INTERPOLATION_STEPS, path_points) for i in range(num_pairs)]
        images_by_step = [model.decode(z_of_step) for z_of_step in torch.stack(paths, 1)]
        rates = [METRICS["recognised"](model.metric_suite, images) for images in images_by_step]
        metrics[name] = [{"t": i / (INTERPOLATION_STEPS - 1), **rate} for i, rate in enumerate(rates)]
        arrays[name] = np.stack(images_by_step)[:, :PAIRS_STORED].swapaxes(0, 1)
    return Measurement({"pairs": num_pairs, "ways": metrics}, arrays)


def measure_directions(model: StudiedModel) -> Measurement:
    """Decode the mean z-point moved along the first principal axes and along the dataset's attributes."""
    latent_stats = model.saved.latents
    mean, covariance = latent_stats["mean"], latent_stats["covariance"]
    axes = principal_axes(covariance)[1][:NUM_AXES]
    directions = {f"axis {i}": axis for i, axis in enumerate(axes, 1)}
    # Sorted, so that runs list the attributes in one order: safetensors returns tensors in a random one.
    attributes = sorted(attribute_directions(latent_stats).items())
    directions |= {name: direction / direction.norm() for name, direction in attributes}
    offsets = torch.linspace(-DIRECTION_LIMIT, DIRECTION_LIMIT, DIRECTION_STEPS)[:, None]
    images = {}
    for name, unit in directions.items():
        sd = (unit @ covariance @ unit).sqrt()
        images[name] = model.decode(mean + offsets * sd * unit)
    return Measurement({"sds": DIRECTION_LIMIT}, images)


def measure_z_points(model: StudiedModel) -> Measurement:
    """Describe the training images' z-points: statistics, correlations, and two maps.

    The array `correlation` (n, n) float32 has the 64 latent dimensions with the greatest sd, in descending order.
    """
    stats, shape = compute_z_stats(model.posterior, model.train_z), measure_structure(model.train_z)
    mapped = model.train_z[evenly_spaced(len(model.train_z), NUM_MAP_POINTS)]
    plane = (mapped - mapped.mean(0)) @ principal_axes(torch.cov(model.train_z.T))[1][:2].T
    radius_counts = np.histogram(stats.radii / len(stats.mean) ** 0.5, RADIUS_BIN_EDGES)[0]
    scalars = stats.summary()
    metrics = scalars | {
        "kl_sum": scalars["kl"],
        "fragments": shape.fragments, "largest_fragment": shape.largest, "silhouette": shape.silhouette,
        "gaussian_silhouette": shape.gaussian_silhouette, "coherent": shape.coherent, "encoded": len(model.train_z),
        "mixture_stored": model.has_stored_mixture,
        "radius_bins": RADIUS_BIN_EDGES.tolist(), "radius_shares": (radius_counts / len(stats.radii)).tolist(),
        **{name: getattr(stats, name).tolist() for name in ("mean", "sd", "skew", "kurtosis", "kl", "variances")},
    }  # fmt: skip
    dims = np.argsort(-stats.sd)[:NUM_CORRELATED_DIMS]
    correlation = stats.correlation[np.ix_(dims, dims)].astype(np.float32)
    return Measurement(metrics, {"plane": plane.numpy(), "tsne": tsne(mapped), "correlation": correlation})


# The keys are those of metrics.json and of stored measurement files.
MEASUREMENTS: dict[str, Callable[[StudiedModel], Measurement]] = {
    "real": measure_real_images, "samplers": measure_samplers,
    **{name: partial(measure_sweep, sampler=name) for name in SWEEPS},
    "tasks": measure_tasks, "ways": measure_interpolations, "directions": measure_directions,
    "points": measure_z_points,
}  # fmt: skip
