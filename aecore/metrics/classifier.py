"""A small classifier of a set's own labels, which knows when an image shows none of them.

For sets without faces it answers what the face detector answers for faces: does a decoded z-point show something?
A plain softmax is sure of itself even on noise; so it also learns a class of its own for images of nothing (outlier
exposure, Hendrycks 2019): flat ones, noise of all grains, patches in disorder, two or all images in one, smeared ones.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecore.model.autoencoder import to_float

SIDE, STEPS, BATCH, LR = 32, 300, 64, 5e-3


@dataclass(frozen=True)
class Classifier:
    """`classes`: the labels, int64 (k,), in the order of the network's outputs; after them comes 'nothing'."""

    network: nn.Module
    classes: np.ndarray

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, k + 1) of images uint8 (n, size, size, channels); the last column is 'nothing'."""
        logits = [self.network(part) for part in _inputs(images).split(512)]
        return torch.cat(logits).softmax(1).numpy()

    def score(self, images: np.ndarray) -> dict[str, float]:
        """`recognised`: the share of images that show some class rather than nothing; `confidence`: the mean
        probability of the best class; `classes`: how many classes are shown, the exponential of their shares' entropy.
        """
        probabilities = self.probabilities(images)[:, :-1]
        best = probabilities.argmax(1)
        recognised = (probabilities.sum(1) > 0.5).mean()
        shares = np.bincount(best, minlength=len(self.classes)) / len(images)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum()
        confidence = probabilities.max(1).mean()
        return {"recognised": float(recognised), "confidence": float(confidence), "classes": float(np.exp(entropy))}

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The share of images whose most probable class is their label: for reconstructions, or real images."""
        probabilities = self.probabilities(images)
        found = np.append(self.classes, np.iinfo(np.int64).min)[probabilities.argmax(1)]
        return float((found == labels).mean())


def train_classifier(images: np.ndarray, labels: np.ndarray, *, seed: int = 0, steps: int = STEPS) -> Classifier:
    """A conv net of 3 layers, trained for `steps` on images uint8 (n, size, size, channels) with labels (n,)."""
    classes, targets = np.unique(labels, return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs, wanted = _inputs(images), torch.from_numpy(targets)
        network = _network(inputs.shape[1], len(classes) + 1)
        optimizer = torch.optim.AdamW(network.parameters(), LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (BATCH,))
            nothing = make_outliers(inputs[rows])
            real = soften(inputs[rows])
            target = torch.cat([wanted[rows], torch.full((len(nothing),), len(classes))])
            loss = F.cross_entropy(network(torch.cat([real, nothing])), target, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Classifier(network.eval().requires_grad_(False), classes)


def soften(real: Tensor) -> Tensor:
    """The images, half of them blurred, each by as much as it happens: a decoder's pictures are soft and yet clear."""
    blurred = F.avg_pool2d(F.pad(real, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return torch.lerp(real, blurred, (2 * torch.rand(len(real), 1, 1, 1) - 1).clamp_min(0))


def make_outliers(real: Tensor) -> Tensor:
    """Fewer images than `real` (n, channels, side, side), with its colours and none of its sense."""
    part = real.split(-(-len(real) // 8))
    n, channels, side = len(part[0]), *real.shape[1:3]
    flat = (1.5 * torch.rand(n, channels, 1, 1) - 0.25).clamp(0, 1).expand(-1, -1, side, side)  # often black or white
    grain = int(2 ** torch.randint(1, 6, ()))
    noise = F.interpolate(torch.rand(n, channels, grain, grain), size=side, mode="bicubic").clamp(0, 1)
    patches = part[0].unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, torch.randperm((side // 8) ** 2)]
    disorder = patches.unflatten(2, (side // 8, -1)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    double = (part[1] + part[2]) / 2
    smeared = F.avg_pool2d(F.pad(part[3], (7, 7, 7, 7), mode="replicate"), 15, 1)
    return torch.cat([flat, noise, disorder, double, smeared, real.mean(0, keepdim=True).expand(n // 2, -1, -1, -1)])


def _network(channels: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, outputs))


def _inputs(images: np.ndarray) -> Tensor:
    small = [cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images]
    return to_float(torch.from_numpy(np.stack(small).reshape(len(images), SIDE, SIDE, -1)))
