"""Small datasets of noise whose images carry an id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard

FS = pafs.LocalFileSystem()


def noise_images(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Return gray noise, uint8 (count, size, size, 1); the first four bytes of each image are its index."""
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 1), np.uint8)
    images.reshape(count, size * size)[:, :4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    return images


def image_ids(images: np.ndarray) -> list[int]:
    """Return the indices that `noise_images` wrote into these images."""
    return np.ascontiguousarray(images.reshape(len(images), -1)[:, :4]).view(">u4").ravel().tolist()


def make_dataset(root: Path, rows: dict[str, list[int]], size: int = 8, seed: int = 0) -> Dataset:
    """Write a dataset of the `noise_images` of each split, as PNG, in shards of the given numbers of rows."""
    splits = {}
    for split, lengths in rows.items():
        images, shards = noise_images(sum(lengths), size, seed), []
        for index, end in enumerate(np.cumsum(lengths)):
            start = end - lengths[index]
            encoded = [encode_image(image, "png") for image in images[start:end]]
            table = shard_table(pa.table({"name": [str(start + i) for i in range(len(encoded))]}), encoded)
            shards.append(write_shard(FS, str(root), f"{split}-{index:05d}.parquet", table))
        splits[split] = tuple(shards)
    manifest = Manifest(dataset="noise", options={}, size=size, channels=1, encoding="png", splits=splits)
    save_manifest(FS, str(root), manifest)
    return Dataset(FS, str(root), manifest)
