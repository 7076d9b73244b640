"""Shards and their manifest: the one form in which zpoint stores images.

A dataset is a folder: `manifest.json` and one Parquet file per shard. A shard has the columns `name` (string)
and `image` (binary, encoded as the manifest says), then what the source knows of each image (label, identity,
factors).
"""

import io
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
    """One Parquet file of encoded images, as the manifest lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)  # relative to the manifest
    rows: int = Field(ge=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError("a shard's path must lie below its manifest")
        return path


class Manifest(BaseModel):
    """The list of a dataset's shards, and all that a reader must know to decode them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    dataset: str
    options: dict[str, JsonValue]  # what ingest was asked for, and the source's fingerprint
    size: int = Field(gt=0)
    channels: Literal[1, 3]
    encoding: Encoding
    splits: dict[str, tuple[Shard, ...]]

    @property
    def digest(self) -> str:
        """Give the sha256 of the content: equal for equal images and options, wherever and whenever made."""
        return sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Give the shards of `split` in order. Raises ValueError when the dataset has no such split."""
        if split not in self.splits:
            raise ValueError(f"the dataset has no split {split!r}, only {', '.join(self.splits)}")
        return self.splits[split]

    def count(self, split: str) -> int:
        """Give the number of images in `split`. Raises ValueError when the dataset has no such split."""
        return sum(shard.rows for shard in self.shards(split))


def shard_table(rows: pa.Table, images: list[bytes]) -> pa.Table:
    """Put `images` (encoded, one per row) as column `image` after column `name` of `rows`."""
    return rows.add_column(1, "image", pa.array(images, pa.binary()))


def write_shard(fs: pafs.FileSystem, root: str, path: str, table: pa.Table) -> Shard:
    """Write `table` (columns `name`, `image`, ...) as `root/path`, whole, and give its manifest entry.

    The bytes depend on the table alone: one row group, no compression (the images are compressed already).
    """
    assert table.column_names[:2] == ["name", "image"], table.column_names
    buffer = io.BytesIO()
    pq.write_table(
        table.combine_chunks(),
        buffer,
        row_group_size=max(1, table.num_rows),
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    data = buffer.getvalue()
    write_atomic(fs, f"{root}/{path}", data)
    return Shard(path=path, rows=table.num_rows, bytes=len(data), sha256=sha256(data))


def read_shard_bytes(fs: pafs.FileSystem, root: str, shard: Shard) -> bytes:
    """Give the bytes of `shard`. Raises an error that names it.

    That is a ValueError when it is missing or not what was written, an UnreadShardError when storage fails.
    """
    mend = "re-run `zpoint ingest` to mend it"

    def read(_: int) -> bytes:
        data = read_bytes(fs, f"{root}/{shard.path}")
        if len(data) != shard.bytes:
            raise ValueError(f"shard {shard.path} has {len(data)} bytes, not {shard.bytes}; {mend}")
        if sha256(data) != shard.sha256:
            raise ValueError(f"shard {shard.path} is damaged: its sha256 differs from the manifest's; {mend}")
        return data

    try:
        return retry_read(read, ValueError, remote=not isinstance(fs, pafs.LocalFileSystem))
    except FileNotFoundError:
        raise ValueError(f"shard {shard.path} is missing in {root}; {mend}") from None
    except OSError as error:
        raise UnreadShardError(f"shard {shard.path} cannot be read: {error}") from error


class UnreadShardError(OSError):
    """Storage did not give a shard: no fault of the shard, and it may give it later."""


def read_shard(fs: pafs.FileSystem, root: str, shard: Shard) -> pa.Table:
    """Read `shard` whole, check it, and give its table. Raises what `read_shard_bytes` does."""
    return pq.ParquetFile(pa.BufferReader(read_shard_bytes(fs, root, shard))).read(use_threads=False)


def save_manifest(fs: pafs.FileSystem, root: str, manifest: Manifest) -> None:
    """Write `root/manifest.json`, with the digest beside the content."""
    write_json(fs, f"{root}/{MANIFEST}", {**manifest.model_dump(mode="json"), "digest": manifest.digest})


def find_manifest(fs: pafs.FileSystem, root: str) -> Manifest | None:
    """Give the manifest in folder `root`, None where there is none. Raises ValueError when it is broken."""
    mend = "delete the folder and re-run `zpoint ingest`"
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
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{root}/{MANIFEST} is broken at {where}: {first['msg']}; {mend}") from error
    except ValueError as error:
        raise ValueError(f"{root}/{MANIFEST} is broken: {error}; {mend}") from error
    if digest != manifest.digest:
        raise ValueError(f"{root}/{MANIFEST} is broken: its digest does not match its content; {mend}")
    return manifest


def load_manifest(fs: pafs.FileSystem, root: str) -> Manifest:
    """Give the manifest in folder `root`. Raises ValueError when there is none or it is broken."""
    manifest = find_manifest(fs, root)
    if manifest is None:
        raise ValueError(f"no dataset at {root}: {MANIFEST} is missing; make one with `zpoint ingest`")
    return manifest
