"""A small classifier of a dataset's own labels, with an outlier class for images that show none of them.

For datasets without faces it replaces the face detector: does a decoded z-point show something? A plain softmax is
confident even on noise, so the classifier also learns an outlier class (outlier exposure, Hendrycks 2019): flat images,
noise of several grains, shuffled patches, averages of two or of all images, and strongly blurred ones.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecore.model.autoencoder import to_float

INPUT_SIZE, STEPS, BATCH, LR = 32, 300, 64, 5e-3
PREDICT_BATCH = 512


@dataclass(frozen=True)
class Classifier:
    """A trained classifier; `classes`: the labels, int64 (k,), in the order of the network's first k outputs.

    The last output is the outlier class.
    """

    network: nn.Module
    classes: np.ndarray

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return float32 (n, k + 1) for images uint8 (n, size, size, channels); the last column is for outliers."""
        logits = [self.network(batch) for batch in _to_inputs(images).split(PREDICT_BATCH)]
        return torch.cat(logits).softmax(1).numpy()

    def score(self, images: np.ndarray) -> dict[str, float]:
        """Return metrics of images uint8 (n, size, size, channels).

        `recognised`: fraction of images with an outlier probability under 0.5. `confidence`: mean probability of the
        most probable class. `classes`: effective number of classes, the exponential of the entropy of their fractions.
        """
        probabilities = self.probabilities(images)[:, :-1]
        predicted = probabilities.argmax(1)
        recognised = (probabilities.sum(1) > 0.5).mean()
        fractions = np.bincount(predicted, minlength=len(self.classes)) / len(images)
        entropy = -(fractions * np.log(np.maximum(fractions, 1e-12))).sum()
        confidence = probabilities.max(1).mean()
        return {"recognised": float(recognised), "confidence": float(confidence), "classes": float(np.exp(entropy))}


def train_classifier(images: np.ndarray, labels: np.ndarray, *, steps: int = STEPS) -> Classifier:
    """Train a network of 3 convolutions on images uint8 (n, size, size, channels) with labels (n,) int.

    The result is a function of the arguments; the global random state stays as it is.
    """
    classes, class_indices = np.unique(labels, return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, targets = _to_inputs(images), torch.from_numpy(class_indices)
        network = _make_network(inputs.shape[1], len(classes) + 1)
        optimizer = torch.optim.AdamW(network.parameters(), LR)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
        for _ in range(steps):
            rows = torch.randint(len(inputs), (BATCH,))
            outliers = make_outliers(inputs[rows])
            softened = soften(inputs[rows])
            target = torch.cat([targets[rows], torch.full((len(outliers),), len(classes))])
            loss = F.cross_entropy(network(torch.cat([softened, outliers])), target, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Classifier(network.eval().requires_grad_(False), classes)


def soften(images: Tensor) -> Tensor:
    """Blur a random half of the images, each by a random amount: a decoder's images are softer than real ones.

    Float (n, channels, side, side) in [0, 1]; returns the same shape.
    """
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return torch.lerp(images, blurred, (2 * torch.rand(len(images), 1, 1, 1) - 1).clamp_min(0))


def make_outliers(images: Tensor) -> Tensor:
    """Return outliers with the colours of `images` (n, channels, side, side) float in [0, 1]: about 5/8 as many."""
    chunks = images.split(-(-len(images) // 8))
    n, channels, side = len(chunks[0]), *images.shape[1:3]
    flat = (1.5 * torch.rand(n, channels, 1, 1) - 0.25).clamp(0, 1).expand(-1, -1, side, side)  # often black or white
    grain = int(2 ** torch.randint(1, 6, ()))
    noise = F.interpolate(torch.rand(n, channels, grain, grain), size=side, mode="bicubic").clamp(0, 1)
    patches = chunks[0].unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)[:, :, torch.randperm((side // 8) ** 2)]
    shuffled = patches.unflatten(2, (side // 8, -1)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    averages = (chunks[1] + chunks[2]) / 2
    blurred = F.avg_pool2d(F.pad(chunks[3], (7, 7, 7, 7), mode="replicate"), 15, 1)
    mean_image = images.mean(0, keepdim=True).expand(n // 2, -1, -1, -1)
    return torch.cat([flat, noise, shuffled, averages, blurred, mean_image])


def _make_network(channels: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, outputs))


def _to_inputs(images: np.ndarray) -> Tensor:
    resized = [cv2.resize(image, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA) for image in images]
    return to_float(torch.from_numpy(np.stack(resized).reshape(len(images), INPUT_SIZE, INPUT_SIZE, -1)))
