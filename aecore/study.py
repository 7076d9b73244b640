"""What a study measures of one finished model: parts, each a function that gives figures and pictures.

Points of a sweep come from one seed: the same directions at every boundary, radius or temperature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aecore.checkpoint import SavedModel
from aecore.metrics import psnr, sliced_wasserstein
from aecore.model import to_float, to_uint8
from aecore.samplers import SAMPLERS, sample

BATCH, SHOWN, SEED = 64, 10, 0
PAIRS, STEPS = 64, 11  # of images, and of points on the way between two
HISTOGRAM = np.geomspace(0.125, 32, 65)  # bins of the radius in units of sqrt(z_dim)
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
# sampler, its parameter, the values
SWEEPS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "cube": ("cube", "boundary", (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)),
    "sphere": ("sphere", "radius", (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 40.0)),
    "diagonal": ("diagonal", "temperature", TEMPERATURES),
    "gaussian": ("gaussian", "temperature", TEMPERATURES),
}


@dataclass(frozen=True)
class Images:
    """Images of a dataset, uint8 (n, size, size, channels), and a judge of decoded pictures.

    `judge` takes float images (n, channels, size, size) in [0, 1] on the CPU and gives named figures.
    """

    train: np.ndarray
    test: np.ndarray
    judge: Callable[[Tensor], dict[str, float]]


@dataclass
class Subject:
    """A finished model with images of its dataset; `judged` pictures are decoded and judged at each point."""

    saved: SavedModel
    images: Images
    judged: int
    device: str = "cpu"

    @cached_property
    def z(self) -> Tensor:
        """The training images' z-points, means of q(z|x), float32 (n, z_dim) on the CPU."""
        return self.encode(self.images.train)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Tensor:
        """Means of q(z|x), float32 (n, z_dim) on the CPU."""
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(BATCH)
        return torch.cat([self.saved.model.encode(to_float(part.to(self.device))).mean.cpu() for part in parts])

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Images (n, channels, size, size) float in [0, 1] on the CPU."""
        model = self.saved.model
        return torch.cat([model.logits(part.to(self.device)).sigmoid().cpu() for part in z.split(BATCH)])

    def look(self, z: Tensor) -> tuple[dict[str, float], np.ndarray]:
        """Figures of the decoded z-points, and the first pictures."""
        images = self.decode(z)
        return self.images.judge(images), to_uint8(images[:SHOWN]).numpy()

    def sampled(self, sampler: str, **parameters: float) -> tuple[dict[str, float], np.ndarray]:
        return self.look(sample(sampler, self.judged, self.saved.latents, SEED, **parameters))


@dataclass(frozen=True)
class Part:
    """Figures, as JSON takes them, and arrays: pictures uint8 (..., size, size, channels) or points."""

    figures: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def real(subject: Subject) -> Part:
    """What real test images get."""
    images = subject.images.test[: subject.judged]
    return Part(subject.images.judge(to_float(torch.from_numpy(images))), {"pictures": images[:SHOWN]})


def samplers(subject: Subject) -> Part:
    """Reconstructions of test images, then each sampler as it stands, and the sphere at the z-points' own radius."""
    own = float(subject.z.norm(dim=1).mean())
    looks = {"reconstructions": subject.look(subject.encode(subject.images.test[: subject.judged]))}
    looks |= {name: subject.sampled(name) for name in SAMPLERS if name != "cube"}
    looks["sphere, own radius"] = subject.sampled("sphere", radius=own)
    return Part({name: look[0] for name, look in looks.items()}, {name: look[1] for name, look in looks.items()})


def sweep(subject: Subject, name: str) -> Part:
    """One of SWEEPS: figures and pictures for each value of the sampler's parameter."""
    sampler, parameter, values = SWEEPS[name]
    looks = [subject.sampled(sampler, **{parameter: value}) for value in values]
    rows = [{parameter: value, **look[0]} for value, look in zip(values, looks, strict=True)]
    return Part(rows, {"pictures": np.stack([look[1] for look in looks])})


def tasks(subject: Subject) -> Part:
    """Each task on test images: how near to the clean image its input is, and what the model makes of it."""
    clean = to_float(torch.from_numpy(subject.images.test[: subject.judged]))
    after = subject.decode(subject.encode(subject.images.test[: subject.judged]))
    figures = {
        "reconstruct": {"input_psnr": 99.0, "psnr": float(psnr((after - clean).square().flatten(1).mean(1)).mean())}
    }
    shown = np.stack([to_uint8(clean[:SHOWN]).numpy(), to_uint8(after[:SHOWN]).numpy()])
    return Part(figures, {"reconstruct": shown})


def statistics(subject: Subject) -> Part:
    """Where the training images' z-points lie."""
    z = subject.z.double()
    z_dim = z.shape[1]
    radius = z.norm(dim=1)
    counts = np.histogram(radius.numpy() / z_dim**0.5, HISTOGRAM)[0] / len(z)
    spectrum = torch.linalg.eigvalsh(z.T.cov()).flip(0)
    held = (spectrum.cumsum(0) / spectrum.sum()).tolist()
    axes = {f"axes_{p}": 1 + next(i for i, share in enumerate(held) if share >= p / 100) for p in (90, 99)}
    centred = z - z.mean(0)
    plane = centred @ torch.linalg.eigh(z.T.cov()).eigenvectors[:, -2:].flip(1)
    figures = {
        "radius_mean": float(radius.mean()), "radius_sd": float(radius.std()), "radius_histogram": counts.tolist(), "radius_bins": HISTOGRAM.tolist(),
        "mean": z.mean(0).tolist(), "sd": z.std(0).tolist(), "variance_held": held, **axes,
        "within_20": float((z.abs() < 20).double().mean()),
    }  # fmt: skip
    return Part(figures, {"plane": plane[:1000].float().numpy()})


def interpolation(subject: Subject) -> Part:
    """Figures and pictures along the straight way between the z-points of two test images."""
    z = subject.encode(subject.images.test[: 2 * PAIRS])
    start, end = z[: len(z) // 2], z[len(z) // 2 : len(z) // 2 * 2]
    points = [(t, start + t * (end - start)) for t in np.linspace(0, 1, STEPS).tolist()]
    looks = [subject.look(z) for _, z in points]
    rows = [{"t": t, **look[0]} for (t, _), look in zip(points, looks, strict=True)]
    return Part({"linear": rows}, {"linear": np.stack([look[1] for look in looks])})


PARTS: dict[str, Callable[[Subject], Part]] = {
    "real": real, "samplers": samplers, **{name: partial(sweep, name=name) for name in SWEEPS},
    "tasks": tasks, "interpolation": interpolation, "statistics": statistics,
}  # fmt: skip


def make_judge(train, test):
    reference = to_float(torch.from_numpy(test[:256]))
    import cv2

    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")

    def hit(img):
        g = cv2.resize(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
        return len(cascade.detectMultiScale(g, 1.1, 3, minSize=(int(img.shape[0] * 0.9),) * 2)) > 0

    def judge(images):
        return {
            "hit_rate": float(np.mean([hit(i) for i in to_uint8(images).numpy()])),
            "swd": sliced_wasserstein(images, reference),
            "hog_frechet": sliced_wasserstein(images, reference) / 100,
        }

    return judge
