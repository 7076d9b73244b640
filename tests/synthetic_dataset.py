"""Small made datasets whose every image is another one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard

FS = pafs.LocalFileSystem()


def pixels(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Gray noise, (count, size, size, 1); each image has its number in its first four bytes."""
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 1), np.uint8)
    images.reshape(count, size * size)[:, :4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    return images


def numbers(images: np.ndarray) -> list[int]:
    """The numbers of such images."""
    return np.ascontiguousarray(images.reshape(len(images), -1)[:, :4]).view(">u4").ravel().tolist()


def make_dataset(root: Path, rows: dict[str, list[int]], size: int = 8, seed: int = 0) -> Dataset:
    """A dataset with shards of so many `rows` for each split, losslessly encoded; `pixels` gives a split's images."""
    splits = {}
    for split, lengths in rows.items():
        images, shards = pixels(sum(lengths), size, seed), []
        for number, start in enumerate(np.cumsum([0, *lengths[:-1]])):
            encoded = [encode_image(image, "png") for image in images[start : start + lengths[number]]]
            table = shard_table(pa.table({"name": [str(start + i) for i in range(len(encoded))]}), encoded)
            shards.append(write_shard(FS, str(root), f"{split}-{number:05d}.parquet", table))
        splits[split] = tuple(shards)
    manifest = Manifest(dataset="made", options={}, size=size, channels=1, encoding="png", splits=splits)
    save_manifest(FS, str(root), manifest)
    return Dataset(FS, str(root), manifest)
