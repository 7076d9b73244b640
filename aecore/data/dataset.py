"""A dataset: the folder of a manifest and its shards, on any pyarrow file system."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aecore.data.images import decode_rows
from aecore.data.shards import Manifest, Shard, load_manifest, read_shard_bytes
from aecore.data.shuffle import evenly_spaced

SAMPLED_SHARDS = 32  # shards that a sample of a split is read from, unless it needs more


@dataclass(frozen=True)
class Dataset:
    """The encoded images of a dataset, read and decoded shard by shard."""

    fs: pafs.FileSystem
    root: str
    manifest: Manifest

    @classmethod
    def open(cls, fs: pafs.FileSystem, root: str) -> "Dataset":
        """Open the dataset in folder `root`. Raises ValueError when it has no manifest or a broken one."""
        return cls(fs, root, load_manifest(fs, root))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (size, size, channels) of a decoded image."""
        return self.manifest.size, self.manifest.size, self.manifest.channels

    @property
    def decoded_bytes(self) -> int:
        """Return the bytes of the decoded images of all splits."""
        return sum(map(self.count, self.manifest.splits)) * math.prod(self.image_shape)

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of `split` in order. Raises ValueError when the dataset has no such split."""
        return self.manifest.shards(split)

    def count(self, split: str) -> int:
        """Return the number of images in `split`. Raises ValueError when the dataset has no such split."""
        return self.manifest.count(split)

    def images(self, split: str, limit: int | None = None) -> np.ndarray:
        """Decode the images of `split`, or `limit` of them evenly spaced over it, uint8 (n, size, size, channels).

        Raises ValueError naming a shard that is missing or damaged, UnreadShardError when storage fails.
        """
        rows_by_shard = self.spaced_rows(split, self.count(split) if limit is None else limit)
        decoded = [self.decode_shard(shard, rows) for shard, rows in rows_by_shard]
        return np.concatenate([np.empty((0, *self.image_shape), np.uint8), *decoded])

    def spaced_rows(self, split: str, limit: int) -> list[tuple[Shard, np.ndarray]]:
        """Return the shards that hold `spaced_indices`, and of each its rows, int64 (n,)."""
        shards, indices = self.shards(split), self.spaced_indices(split, limit)
        offsets = shard_offsets(shards)
        needed = np.searchsorted(offsets, indices, side="right") - 1  # (n,) a shard for each row
        return [(shards[index], indices[needed == index] - offsets[index]) for index in np.unique(needed)]

    def spaced_indices(self, split: str, limit: int) -> np.ndarray:
        """Return the rows of `split`, int64 (n,), that `images` decodes: at most `limit`, evenly spaced."""
        shards = self.shards(split)
        sufficient = next((n for n in range(len(shards)) if sum(s.rows for s in shards[:n]) >= limit), len(shards))
        chosen = evenly_spaced(len(shards), max(SAMPLED_SHARDS, sufficient))  # (k,) indices of shards
        offsets, chosen_offsets = shard_offsets(shards), shard_offsets([shards[index] for index in chosen])
        rows = evenly_spaced(int(chosen_offsets[-1]), limit)  # (n,) of the chosen shards together
        position = np.searchsorted(chosen_offsets, rows, side="right") - 1  # (n,) a chosen shard for each row
        return rows - chosen_offsets[position] + offsets[chosen[position]]

    def read_shard(self, shard: Shard) -> pa.Table:
        """Read the table of `shard`, checked against the manifest.

        Raises ValueError when it is missing or damaged, UnreadShardError when storage fails.
        """
        data = read_shard_bytes(self.fs, self.root, shard)
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)

    def decode_shard(self, shard: Shard, rows: np.ndarray | None = None) -> np.ndarray:
        """Decode the images of `shard`, or its `rows`, uint8 (n, size, size, channels). Raises as `images`."""
        column = self.read_shard(shard)["image"]
        return self.decode_rows(shard, (column if rows is None else column.take(rows)).to_pylist())

    def iter_blocks(self, shard: Shard, block_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the images of `shard` in blocks of about `block_bytes`: the first row and uint8 (n, ...)."""
        column = self.read_shard(shard)["image"]
        rows = max(1, block_bytes // int(np.prod(self.image_shape)))
        for first_row in range(0, len(column), rows):
            yield first_row, self.decode_rows(shard, column.slice(first_row, rows).to_pylist(), first_row)

    def decode_rows(
        self, shard: Shard, encoded: list[bytes], first_row: int = 0, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Decode `encoded`, consecutive images of `shard` from `first_row` on, into `out` or a new array.

        Raises ValueError naming the shard and the row that does not decode.
        """
        if out is None:
            out = np.empty((len(encoded), *self.image_shape), np.uint8)
        try:
            decode_rows(encoded, self.manifest.encoding, self.manifest.size, self.manifest.channels, out, first_row)
        except ValueError as error:
            raise ValueError(f"shard {shard.path}: {error}") from error
        return out


def shard_offsets(shards: list[Shard] | tuple[Shard, ...]) -> np.ndarray:
    """Return the first row of each shard in their concatenation, then the total, int64 (len(shards) + 1,)."""
    return np.cumsum([0, *(shard.rows for shard in shards)])
