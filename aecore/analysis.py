"""What a study measures of one finished model: parts, each a function that gives figures and pictures.

Points of a sweep come from one seed: the same directions at every boundary, radius or temperature. Add a part by
writing a function and naming it in PARTS.
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
from aecore.latent.interpolation import PATHS, principal_axes
from aecore.latent.samplers import SAMPLERS, LatentStats, attribute_directions, fit_latent_stats, sample
from aecore.latent.stats import describe, structure, tsne
from aecore.metrics.pixel import chroma, psnr, ssim
from aecore.metrics.suite import METRICS, MetricSuite
from aecore.model.autoencoder import DiagonalGaussian, to_float, to_uint8
from aecore.model.corruptions import BatchNoise, corrupt
from aecore.training.checkpoint import SavedModel

BATCH = 64  # images or z-points that go through the model at once
CHUNK = 512  # images that are floats at once
SHOWN = 10  # pictures of each kind
SEED = 0
PAIRS = 64  # of images joined by a way
STEPS = 11  # points on a way
PAIRS_SHOWN = 3
CROWD = 2_000  # z-points that a way may go through
AXES = 5  # principal axes shown
REACH = 3.0  # sds to either side on one
ALONG = 9  # pictures along one
MAPPED = 1_000  # z-points on a map
CORRELATED = 64  # components whose correlations are shown
RADII = np.geomspace(0.125, 32, 65)  # bins of a radius in units of sqrt(z_dim)
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# the parameter of a sampler, and its values
SWEEPS: dict[str, tuple[str, tuple[float, ...]]] = {
    "cube": ("boundary", (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)),
    "sphere": ("radius", (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)),
    "diagonal": ("temperature", TEMPERATURES),
    "gaussian": ("temperature", TEMPERATURES),
    "gmm": ("temperature", TEMPERATURES),
}


@dataclass(frozen=True)
class Part:
    """Figures, as JSON takes them, and arrays: pictures uint8 (..., size, size, channels) or points on a map."""

    figures: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Subject:
    """A finished model, images of its dataset uint8 (n, size, size, channels), and the metrics of that dataset.

    `judged` pictures are decoded and judged at each point. `encoded` gives what the encoder answers to more training
    images than `train` holds.
    """

    saved: SavedModel
    train: np.ndarray
    test: np.ndarray
    scores: MetricSuite
    judged: int
    encoded: Callable[[], DiagonalGaussian] | None = None

    @cached_property
    def latent(self) -> DiagonalGaussian:
        """What the encoder answers to the training images, as its task shows them."""
        return self.encoded() if self.encoded else encode_images(self.saved, self.train)

    @cached_property
    def z(self) -> Tensor:
        """The training images' z-points (n, z_dim), drawn from q(z|x) as the decoder saw them in training."""
        return self.latent.sample(torch.randn(self.latent.mean.shape, generator=torch.Generator().manual_seed(SEED)))

    @cached_property
    def latents(self) -> LatentStats:
        """What the samplers need: where the model was stored without a mixture, one fitted here."""
        return self.saved.latents if self.mixture_stored else fit_latent_stats(self.z) | self.saved.latents

    @property
    def mixture_stored(self) -> bool:
        return "gmm_weights" in self.saved.latents

    @cached_property
    def unseen(self) -> np.ndarray:
        """Test images, at most `judged`, evenly spread: a split may be stored class by class."""
        return self.test[evenly_spaced(len(self.test), self.judged)]

    @cached_property
    def tested(self) -> Tensor:
        """The `unseen` images' z-points, means of q(z|x)."""
        return self.encode(self.seen(self.unseen)).mean

    def seen(self, images: np.ndarray, task: Any = None) -> Tensor:
        """`images` as `task`, by default the model's own, shows them: float (n, channels, size, size) in [0, 1]."""
        return _seen(task or self.saved.recipe.task, images)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """The encoder's answer to float images, on the CPU."""
        return _encode(self.saved, images)

    def decode(self, z: Tensor) -> np.ndarray:
        """Images uint8 (n, size, size, channels)."""
        model = self.saved.model
        return torch.cat([model.decode(part.to(model.device)).cpu() for part in z.split(BATCH)]).numpy()

    def look(self, z: Tensor) -> tuple[dict[str, float], np.ndarray]:
        """What the decoded z-points score, and the first of the pictures."""
        images = self.decode(z)
        return self.scores(images), images[:SHOWN]

    def drawn(self, sampler: str, **parameters: float) -> Tensor:
        """`judged` z-points of a sampler."""
        return sample(sampler, self.judged, self.latents, SEED, **parameters)

    @cached_property
    def everywhere(self) -> dict[str, Tensor]:
        """Z-points of test images, of each sampler as it stands, and of the sphere at the z-points' own radius."""
        drawn = {name: self.drawn(name) for name in SAMPLERS if name != "cube"}  # which has no natural boundary
        own = self.drawn("sphere", radius=float(self.z.norm(dim=1).mean()))
        return {"reconstructions": self.tested, **drawn, "sphere, own radius": own}


def encode_images(saved: SavedModel, images: np.ndarray, first: int = 0) -> DiagonalGaussian:
    """What the encoder answers to images uint8 (n, size, size, channels), as its task shows them; on the CPU.

    `first` numbers the first of them: what draws the task's noise.
    """
    starts = range(0, len(images), CHUNK)  # as floats, all images together would take four times the memory
    task = saved.recipe.task
    return _joined([_encode(saved, _seen(task, images[i : i + CHUNK], first + i)) for i in starts])


def _seen(task: Any, images: np.ndarray, first: int = 0) -> Tensor:
    clean = to_float(torch.from_numpy(np.array(images)))
    draws = BatchNoise(torch.Generator().manual_seed(derive_seed(SEED, first)), torch.arange(len(clean)), len(clean))
    return corrupt(task, clean, draws)


@torch.inference_mode()
def _encode(saved: SavedModel, images: Tensor) -> DiagonalGaussian:
    return _joined([saved.model.encode(part.to(saved.model.device)) for part in images.split(BATCH)])


def _joined(parts: list[DiagonalGaussian]) -> DiagonalGaussian:
    logvars = [part.logvar.cpu() for part in parts if part.logvar is not None]
    return DiagonalGaussian(torch.cat([part.mean.cpu() for part in parts]), torch.cat(logvars) if logvars else None)


def real(subject: Subject) -> Part:
    """What real test images score."""
    images = subject.unseen
    return Part(subject.scores(images), {"pictures": images[:SHOWN]})


def samplers(subject: Subject) -> Part:
    """Reconstructions of test images, then each sampler: see `Subject.everywhere`."""
    looks = {name: subject.look(z) for name, z in subject.everywhere.items()}
    return Part({name: look[0] for name, look in looks.items()}, {name: look[1] for name, look in looks.items()})


def inception(subject: Subject, scored: Callable[[np.ndarray], dict[str, float]]) -> Part:
    """What `scored`, of `aecore.metrics.inception`, tells of real test images and of each sampler's pictures."""
    found = {name: scored(subject.decode(z)) for name, z in subject.everywhere.items()}
    return Part({"real": scored(subject.unseen), "samplers": found})


def sweep(subject: Subject, sampler: str) -> Part:
    """One of SWEEPS: scores and pictures for each value of the sampler's parameter."""
    parameter, values = SWEEPS[sampler]
    looks = [subject.look(subject.drawn(sampler, **{parameter: value})) for value in values]
    rows = [{parameter: value, **look[0]} for value, look in zip(values, looks, strict=True)]
    return Part(rows, {"pictures": np.stack([look[1] for look in looks])})


def tasks(subject: Subject) -> Part:
    """Each task on test images: how near input and output are to the clean image; the run's own as it was trained.

    Of colour images also how near their colours are, and those of the training images' mean (`mean_chroma_psnr`), which
    whoever knows the set but not the image can give. Pictures are (3, n, size, size, channels): clean, input, output.
    """
    own, figures, pictures = subject.saved.recipe.task, {}, {}
    images = subject.unseen
    clean = to_float(torch.from_numpy(images))
    known = {}
    if clean.shape[1] == 3:
        mean = torch.from_numpy(subject.train.mean(0, dtype=np.float64) / 255.0).float().permute(2, 0, 1)
        known["mean_chroma_psnr"] = _chroma_psnr(mean[None], clean)
    for kind, settings in TASKS.items():
        if kind == "recolor" and clean.shape[1] != 3:
            continue
        task = own if own.kind == kind else settings.model_validate({"kind": kind})
        seen = subject.seen(images, task)
        made = subject.decode(subject.encode(seen).mean)
        scores = _closeness(seen, clean, "input_") | _closeness(to_float(torch.from_numpy(made)), clean, "")
        figures[kind] = {"settings": task.model_dump(exclude={"kind"}), "trained": own.kind == kind, **scores, **known}
        pictures[kind] = np.stack([images[:SHOWN], to_uint8(seen[:SHOWN].clone()).numpy(), made[:SHOWN]])
    return Part(figures, pictures)


def _closeness(images: Tensor, clean: Tensor, prefix: str) -> dict[str, float]:
    figures = {"psnr": _psnr(images, clean), "ssim": float(ssim(images, clean).mean())}
    if clean.shape[1] == 3:
        figures["chroma_psnr"] = _chroma_psnr(images, clean)
    return {prefix + name: figure for name, figure in figures.items()}


def _psnr(images: Tensor, clean: Tensor) -> float:
    # Of the mean squared error of each image, then the mean: as training reports it.
    return float(psnr((images - clean).square().flatten(1).mean(1)).mean())


def _chroma_psnr(images: Tensor, clean: Tensor) -> float:
    return _psnr(chroma(images), chroma(clean))


def ways(subject: Subject) -> Part:
    """From one test image's z-point to another's, on each of PATHS: what share of the pictures shows something."""
    z, crowd = subject.tested, subject.z[evenly_spaced(len(subject.z), CROWD)]
    pairs = min(PAIRS, len(z) // 2)
    figures, pictures = {}, {}
    for name, path in PATHS.items():
        along = torch.stack([path(z[i], z[pairs + i], STEPS, crowd) for i in range(pairs)], 1)  # (steps, pairs, z_dim)
        images = [subject.decode(step) for step in along]
        scores = [METRICS["recognised"](subject.scores, step) for step in images]
        figures[name] = [{"t": i / (STEPS - 1), **score} for i, score in enumerate(scores)]
        pictures[name] = np.stack(images)[:, :PAIRS_SHOWN].swapaxes(0, 1)
    return Part({"pairs": pairs, "ways": figures}, pictures)


def directions(subject: Subject) -> Part:
    """Pictures along the first principal axes and the set's attributes: the mean z-point, 3 sds to either side."""
    mean, covariance = subject.saved.latents["mean"], subject.saved.latents["covariance"]
    axes = principal_axes(covariance)[1][:AXES]
    chosen = {f"axis {number}": axis for number, axis in enumerate(axes, 1)}
    known = attribute_directions(subject.saved.latents)
    chosen |= {name: direction / direction.norm() for name, direction in known.items()}
    pictures = {}
    for name, unit in chosen.items():
        sd = (unit @ covariance @ unit).sqrt()
        pictures[name] = subject.decode(mean + torch.linspace(-REACH, REACH, ALONG)[:, None] * sd * unit)
    return Part({"sds": REACH}, pictures)


def points(subject: Subject) -> Part:
    """Statistics of the training images' z-points, their correlations, and two maps of them.

    `correlation` (n, n) float32 is of the 64 components that vary most, the first most.
    """
    stats, shape = describe(subject.latent, subject.z), structure(subject.z)
    z = subject.z[evenly_spaced(len(subject.z), MAPPED)]
    plane = (z - z.mean(0)) @ principal_axes(torch.cov(subject.z.T))[1][:2].T
    histogram = np.histogram(stats.radii / len(stats.mean) ** 0.5, RADII)[0] / len(stats.radii)
    numbers, varied = stats.numbers(), np.argsort(-stats.sd)[:CORRELATED]
    figures = numbers | {
        "kl_sum": numbers["kl"],
        "fragments": shape.fragments, "largest_fragment": shape.largest, "silhouette": shape.silhouette,
        "gaussian_silhouette": shape.gaussian_silhouette, "coherent": shape.coherent, "encoded": len(subject.z),
        "mixture_stored": subject.mixture_stored,
        "radius_bins": RADII.tolist(), "radius_shares": histogram.tolist(),
        **{name: getattr(stats, name).tolist() for name in ("mean", "sd", "skew", "kurtosis", "kl", "variances")},
    }  # fmt: skip
    correlation = stats.correlation[np.ix_(varied, varied)].astype(np.float32)
    return Part(figures, {"plane": plane.numpy(), "tsne": tsne(z), "correlation": correlation})


PARTS: dict[str, Callable[[Subject], Part]] = {
    "real": real, "samplers": samplers, **{name: partial(sweep, sampler=name) for name in SWEEPS},
    "tasks": tasks, "ways": ways, "directions": directions, "points": points,
}  # fmt: skip
