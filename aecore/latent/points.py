"""z-points of real images that are stored with a model, their map in the plane, and thumbnails on one sprite sheet."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aecore.data.images import fit_square
from aecore.data.splits import SPLITS
from aecore.image_grid import tile
from aecore.latent.directions import principal_axes
from aecore.latent.stats import tsne

THUMBNAIL_SIZE = 32  # pixels a side, at most
WEBP_QUALITY = 80
TSNE_ITERATIONS = 500  # 2.4 ms of CPU a point; 1,000 cost twice as much for 2 % more of the neighbours
MIN_TSNE_POINTS = 16  # fewer have no neighbourhoods: their map is PCA
ATTRIBUTE_PREFIX = "attribute."


@dataclass(frozen=True)
class StoredPoints:
    """z-points of real images; all fields have their rows in the order of the sprites.

    `z` float32 (n, z_dim), `xy` float32 (n, 2) in [-1, 1] by `method` (tsne or pca), `split` uint8 (n,), an index of
    SPLITS, `attributes` name to float32 (n,). `sprites` is a WebP file: a grid of `columns`, row by row, of thumbnails
    of `size` pixels a side.
    """

    z: Tensor
    xy: Tensor
    method: str
    split: Tensor
    sprites: bytes
    columns: int
    size: int
    attributes: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.z)

    def nearest(self, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the distances, float64, and rows of the nearest stored z-points, nearest first.

        Both are (n, min(k, len(self))).
        """
        return _nearest(z, self.z, k)

    def nearest_on_map(self, xy: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the same as `nearest` for positions on the map, (n, 2), by the distance there."""
        return _nearest(xy, self.xy, k)

    def z_at(self, xy: Tensor, k: int) -> Tensor:
        """Return z-points (n, z_dim) for positions on the map, (n, 2): the mean of the k nearest stored ones there.

        They are weighted by the inverse of the squared distance (Shepard 1968), so at a stored point it is that one.
        """
        distances, rows = self.nearest_on_map(xy, k)
        weights = 1 / distances.square().clamp_min(1e-18)
        weights /= weights.sum(1, keepdim=True)
        return (weights[..., None] * self.z[rows].double()).sum(1).float()

    @cached_property
    def _sheet(self) -> np.ndarray:
        with Image.open(io.BytesIO(self.sprites), formats=("WEBP",)) as image:
            return np.asarray(image.convert("RGB"))

    def _fits_its_sheet(self) -> bool:
        """Return True if `sprites` is an image with room for a thumbnail of each row, by its header."""
        try:
            with Image.open(io.BytesIO(self.sprites), formats=("WEBP",)) as image:
                width, height = image.size
        except OSError:
            return False
        return width >= self.columns * self.size and height >= -(-len(self) // self.columns) * self.size

    @cached_property
    def sprites_sha256(self) -> str:
        """The digest of `sprites`, hexadecimal."""
        return hashlib.sha256(self.sprites).hexdigest()

    def thumbnail(self, row: int) -> np.ndarray:
        """Return the thumbnail of a row, uint8 (size, size, 3)."""
        top, left = row // self.columns * self.size, row % self.columns * self.size
        return self._sheet[top : top + self.size, left : left + self.size]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the content as tensors alone, for a safetensors file."""
        tensors = {
            "z": self.z, f"map.{self.method}": self.xy, "split": self.split,
            "sprites": torch.frombuffer(bytearray(self.sprites), dtype=torch.uint8),
            "grid": torch.tensor([self.columns, self.size]),
        }  # fmt: skip
        return tensors | {ATTRIBUTE_PREFIX + name: values for name, values in self.attributes.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "StoredPoints":
        """Return the points of `to_tensors`, attributes in the order of their names.

        Raises ValueError if they do not fit together.
        """
        try:
            [method] = [name.removeprefix("map.") for name in tensors if name.startswith("map.")]
            columns, size = tensors["grid"].tolist()
            points = cls(
                tensors["z"], tensors[f"map.{method}"], method, tensors["split"], tensors["sprites"].numpy().tobytes(),
                columns, size,
                {name.removeprefix(ATTRIBUTE_PREFIX): values for name, values in sorted(tensors.items())
                 if name.startswith(ATTRIBUTE_PREFIX)},
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise ValueError(f"the stored points lack a tensor: {error}") from None
        rows = {len(column) for column in (points.xy, points.split, *points.attributes.values())}
        fits = rows == {len(points)} and points.xy.shape[1:] == (2,) and bool((points.split < len(SPLITS)).all())
        if not (fits and min(columns, size) >= 1 and points._fits_its_sheet()):
            raise ValueError("the stored points do not fit together: their rows or their sprites are damaged")
        return points


def make_points(z: Tensor, images: np.ndarray, split: Tensor, attributes: Mapping[str, Tensor]) -> StoredPoints:
    """Return the stored points of z-points (n, z_dim) of `images` uint8 (n, size, size, channels)."""
    method = "tsne" if len(z) >= MIN_TSNE_POINTS else "pca"
    size = min(THUMBNAIL_SIZE, images.shape[1])
    sheet = tile(np.stack([fit_square(image, size, 3) for image in images]))
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=WEBP_QUALITY)
    xy = _scale(torch.from_numpy(tsne(z, max_iter=TSNE_ITERATIONS)) if method == "tsne" else _pca(z))
    return StoredPoints(z, xy, method, split, buffer.getvalue(), sheet.shape[1] // size, size, dict(attributes))


def split_name(split: Tensor, row: int) -> str:
    """Return the name of the split of a row."""
    return SPLITS[int(split[row])]


def _pca(z: Tensor) -> Tensor:
    centred = z.double() - z.double().mean(0)
    _, axes = principal_axes(centred.T @ centred / len(z))
    return centred @ axes[:2].double().T


def _scale(xy: Tensor) -> Tensor:
    """Centre a map and scale it to [-1, 1], both axes alike."""
    low, high = xy.amin(0), xy.amax(0)
    return ((xy - (low + high) / 2) / ((high - low).max() / 2).clamp_min(1e-12)).float().clamp(-1, 1)


def _nearest(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # Not by matrix products, whose rounding would hide small distances. In float64: float32 rounds distances far from
    # the points to the same number, and their squares overflow from 1.8e19 on.
    distances = torch.cdist(queries.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(min(k, len(points)), largest=False)
    return nearest.values, nearest.indices
