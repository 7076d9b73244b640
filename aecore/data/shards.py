"""Shards and their manifest: the storage format of zpoint's datasets.

A dataset is a folder: `manifest.json` and one Parquet file per shard. A shard has the columns `name` (string)
and `image` (binary, in the manifest's encoding), then the attributes that the source has of each image (label,
identity, factors).
"""

import json
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from aecore.data.images import Encoding
from aecore.data.io import read_bytes, read_json, retry_read, sha256, write_atomic, write_json

MANIFEST = "manifest.json"


class Shard(BaseModel):
    """The manifest's entry for one Parquet file of encoded images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)  # relative to the manifest
    rows: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("a shard's path must lie below its manifest")
        return path


class Manifest(BaseModel):
    """The list of a dataset's shards, and the format of their images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    dataset: str
    options: dict[str, JsonValue]  # of ingest, and the source's fingerprint
    size: int = Field(gt=0)
    channels: Literal[1, 3]
    encoding: Encoding
    splits: dict[str, tuple[Shard, ...]]

    @property
    def digest(self) -> str:
        """Return the sha256 of the content: equal for equal images and options, on any machine."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    @property
    def summary(self) -> dict[str, JsonValue]:
        """Return the dataset's name, the size and channels of its images, and their number in each split."""
        counts: dict[str, JsonValue] = {split: self.count(split) for split in self.splits}
        return {"dataset": self.dataset, "size": self.size, "channels": self.channels, "images": counts}

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of `split` in order. Raises ValueError when the dataset has no such split."""
        if split not in self.splits:
            raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def count(self, split: str) -> int:
        """Return the number of images in `split`. Raises ValueError when the dataset has no such split."""
        return sum(shard.rows for shard in self.shards(split))


def shard_table(rows: pa.Table, images: list[bytes]) -> pa.Table:
    """Insert `images` (encoded, one per row) as column `image` after column `name` of `rows`."""
    return rows.add_column(1, "image", pa.array(images, pa.binary()))


def write_shard(fs: pafs.FileSystem, root: str, path: str, table: pa.Table) -> Shard:
    """Write `table` (columns `name`, `image`, ...) to `root/path` atomically and return its manifest entry.

    The bytes are a function of the table alone: one row group, no compression (the images are compressed already).
    """
    assert table.column_names[:2] == ["name", "image"], table.column_names
    buffer = pa.BufferOutputStream()  # six times as fast as a BytesIO
    pq.write_table(
        table.combine_chunks(),
        buffer,
        row_group_size=max(1, table.num_rows),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    data = buffer.getvalue().to_pybytes()
    write_atomic(fs, f"{root}/{path}", data)
    return Shard(path=path, rows=table.num_rows, bytes=len(data), sha256=sha256(data))


def read_shard_bytes(fs: pafs.FileSystem, root: str, shard: Shard) -> bytes:
    """Return the bytes of `shard`, checked against its sha256.

    Raises ValueError when it is missing or damaged, UnreadShardError when storage fails. Both name the shard.
    """
    fix = "re-run `zpoint ingest` to repair it"

    def read(_: int) -> bytes:
        data = read_bytes(fs, f"{root}/{shard.path}")
        if len(data) != shard.bytes:
            raise ValueError(f"shard {shard.path} has {len(data)} bytes, not {shard.bytes}; {fix}")
        if sha256(data) != shard.sha256:
            raise ValueError(f"shard {shard.path} is damaged: its sha256 differs from the manifest's; {fix}")
        return data

    try:
        return retry_read(read, ValueError, remote=not isinstance(fs, pafs.LocalFileSystem))
    except FileNotFoundError:
        raise ValueError(f"shard {shard.path} is missing in {root}; {fix}") from None
    except OSError as error:
        raise UnreadShardError(f"shard {shard.path} cannot be read: {error}") from error


class UnreadShardError(OSError):
    """Raised when storage fails to return a shard. The shard may be intact, so a retry may succeed."""


def save_manifest(fs: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write `root/manifest.json`: the manifest and its digest."""
    write_json(fs, f"{root}/{MANIFEST}", {**manifest.model_dump(mode="json"), "digest": manifest.digest})


def find_manifest(fs: pafs.FileSystem, root: str) -> Manifest | None:
    """Return the manifest in folder `root`, or None. Raises ValueError when it is damaged."""
    fix = "delete the folder and re-run `zpoint ingest`"
    try:
        content = read_json(fs, f"{root}/{MANIFEST}")
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        digest = content.pop("digest", None)
        manifest = Manifest.model_validate(content)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(key) for key in first["loc"])
        raise ValueError(f"{root}/{MANIFEST} is invalid at {location}: {first['msg']}; {fix}") from error
    except ValueError as error:
        raise ValueError(f"{root}/{MANIFEST} is invalid: {error}; {fix}") from error
    if digest != manifest.digest:
        raise ValueError(f"{root}/{MANIFEST} is invalid: its digest does not match its content; {fix}")
    return manifest


def load_manifest(fs: pafs.FileSystem, root: str) -> Manifest:
    """Return the manifest in folder `root`. Raises ValueError when it is missing or damaged."""
    manifest = find_manifest(fs, root)
    if manifest is None:
        raise ValueError(f"no dataset at {root}: {MANIFEST} is missing; create one with `zpoint ingest`")
    return manifest
