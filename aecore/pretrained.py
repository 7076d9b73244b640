"""A finished model for notebooks and scripts: numpy arrays, PIL images and paths in, numpy arrays out."""

import os
import secrets
from dataclasses import dataclass
from operator import index

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch

from aecore.config import Recipe, sampler_distances
from aecore.data.image_input import ImageInputs, is_z_point, read_end, read_images, split_ends
from aecore.data.images import decode_image, fit_square
from aecore.data.io import absolute_path
from aecore.errors import one_line
from aecore.latent.arrays import Images, ZPoints
from aecore.latent.interpolation import interpolate
from aecore.latent.points import StoredPoints
from aecore.latent.samplers import LatentStats, sample
from aecore.model.autoencoder import BATCH_SIZE, ImageShape, decode_batches, to_float
from aecore.training.checkpoint import SavedModel, load_model


@dataclass(frozen=True)
class PretrainedModel:
    """A finished model; `aecore.load` returns one. Its methods are those of `serving.client.Client`."""

    saved: SavedModel

    @property
    def z_dim(self) -> int:
        """The number of latent dimensions."""
        return self.saved.model.z_dim

    @property
    def image(self) -> ImageShape:
        """The size and channels of the decoded images."""
        return self.saved.model.image

    @property
    def recipe(self) -> Recipe:
        """The recipe that the model was trained by."""
        return self.saved.recipe

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last epoch and of the test images."""
        return self.saved.metrics

    @property
    def latents(self) -> LatentStats:
        """The statistics of the training images' z-points that the samplers take."""
        return self.saved.latents

    @property
    def points(self) -> StoredPoints | None:
        """The z-points of real images that were stored with the model, with their map and thumbnails."""
        return self.saved.points

    def encode(self, images: ImageInputs) -> ZPoints:
        """Return the z-points float32 (n, z_dim), the means of q(z|x), of images in any form of `read_images`.

        They are cropped to squares and resized. Raises ValueError for what is no image.
        """
        shape = self.image
        arrays = [decode_image(item) if isinstance(item, bytes) else item for item in read_images(images)]
        if not arrays:
            raise ValueError("there are no images to encode")
        batch = torch.from_numpy(np.stack([fit_square(array, shape.size, shape.channels) for array in arrays]))
        model = self.saved.model
        with torch.inference_mode():
            means = [model.encode(to_float(x.to(model.device))).mean.cpu() for x in batch.split(BATCH_SIZE)]
        return ZPoints(torch.cat(means).numpy())

    def decode(self, z: np.ndarray) -> Images:
        """Return the images uint8 (n, size, size, channels) of z-points (n, z_dim), or of one, (z_dim,).

        Raises ValueError if their shape differs or a number is not finite.
        """
        points = self._check_z(z)
        return Images(decode_batches(self.saved.model, torch.from_numpy(np.ascontiguousarray(points))), points)

    @property
    def best_sampler(self) -> str:
        """The sampler with the lowest distance `hog_frechet_SAMPLER` of the metrics; normal if they have none."""
        distances = sampler_distances(self.metrics)
        return min(distances, key=distances.__getitem__, default="normal")

    def sample(self, sampler: str | None = "normal", n: int = 1, seed: int | None = 0, **parameters: float) -> Images:
        """Return the images of `n` z-points of a sampler, with `z` and `seed`; `parameters` are the sampler's.

        None stands for the `best_sampler`, or for a random seed. Raises ValueError for an unknown sampler or parameter.
        """
        seed = secrets.randbelow(1 << 32) if seed is None else index(seed)
        images = self.decode(sample(sampler or self.best_sampler, index(n), self.latents, seed, **parameters).numpy())
        images.seed = seed
        return images

    def interpolate(self, ends: ImageInputs, steps: int = 8, path: str = "straight") -> Images:
        """Return the images of `steps` z-points from one end to the other, with `z`.

        `ends` are two z-points, as (2, z_dim) or a pair of (z_dim,) or of what `encode` returns for one image, or two
        images, or one of each. `path` is one of `aecore.latent.interpolation.INTERPOLATIONS`. Raises ValueError for
        other ends or another path.
        """
        start, end = (torch.from_numpy(self._to_z(item)) for item in split_ends(ends))
        return self.decode(interpolate(start, end, index(steps), path, self.latents, self.points).numpy())

    def _check_z(self, z: np.ndarray) -> np.ndarray:
        """Return z-points as float32 (n, z_dim). Raises ValueError if their shape differs or one is not finite."""
        points = np.atleast_2d(np.asarray(z, np.float32))
        if points.ndim != 2 or points.shape[1] != self.z_dim or not len(points):
            raise ValueError(f"z has the shape {np.shape(z)}: this model takes (n, {self.z_dim})")
        if not np.isfinite(points).all():
            raise ValueError("z holds NaN or infinity: every component must be a finite float32")
        return points

    def _to_z(self, end: np.ndarray | ImageInputs) -> np.ndarray:
        return self._check_z(np.asarray(end))[0] if is_z_point(end) else np.asarray(self.encode([read_end(end)]))[0]


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> PretrainedModel:
    """Load a model folder; see `aecore.load`."""
    uri = os.fspath(path)
    try:
        fs, root = pafs.FileSystem.from_uri(uri if "://" in uri else absolute_path(uri).as_uri())
        if fs.get_file_info(f"{root}/model/config.json").type is not pafs.FileType.NotFound:  # of a run
            root = f"{root}/model"
        return PretrainedModel(load_model(fs, root, device))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no finished model at {uri}: name the folder of a run, or of its model") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"cannot open {uri}: {one_line(error)}; it takes a path, file:// or s3://") from None
