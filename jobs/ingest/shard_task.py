"""Write one shard of an ingest: read its items, crop and encode them, write the Parquet file and its record."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict

from aecore.data.images import Crop, decode_image, encode_image, fit_square
from aecore.data.io import read_json, write_json
from aecore.data.readers import Item, Reader, read_ahead
from aecore.data.shards import Shard, read_shard_bytes, shard_table, write_shard
from cluster.storage import describe_s3_error

RECORDS = ".ingest"  # folder of the records, below the dataset's root


@dataclass(frozen=True)
class IngestSpec:
    """The settings that all shards of one ingest share."""

    fs: pafs.FileSystem
    root: str
    plan: str  # sha256 of the options and the source's fingerprint; a record with another plan is ignored
    size: int  # pixels a side
    channels: int
    crop: Crop
    encoding: str
    quality: int  # of jpeg

    def record_path(self, shard_path: str) -> str:
        """Return the path of the record of the shard at `shard_path`, which is relative to `root`."""
        return f"{self.root}/{RECORDS}/{shard_path}.json"

    @property
    def plan_path(self) -> str:
        """Return the path of the file that holds the plan of the unfinished ingest."""
        return f"{self.root}/{RECORDS}/plan.json"


class Reject(BaseModel):
    """An image that could not be read or cropped; one line of rejects.jsonl."""

    model_config = ConfigDict(frozen=True)

    name: str
    shard: str
    reason: str


class ShardRecord(BaseModel):
    """The record of one finished shard, stored as JSON until the manifest is written."""

    model_config = ConfigDict(frozen=True)

    plan: str
    shard: Shard
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class ShardTask:
    """One shard to write."""

    path: str  # of the shard, relative to the dataset's root
    items: pa.Table  # column `name`, then the source's columns
    reader: Reader
    record: ShardRecord | None  # from the manifest of a finished ingest


@dataclass(frozen=True)
class ShardResult:
    """A shard that is on storage."""

    record: ShardRecord
    skipped: bool  # an earlier run wrote it

    @property
    def num_items(self) -> int:
        """Return the number of the source's items in this shard, good and bad."""
        return self.record.shard.rows + len(self.record.rejects)


@dataclass(frozen=True)
class ShardError:
    """A shard that could not be written."""

    message: str


class ShardWriter:
    """Ray actor that writes shards."""

    def __init__(self, spec: IngestSpec) -> None:
        self.spec = spec

    def write(self, task: ShardTask) -> ShardResult | ShardError:
        """Write one shard, unless it is on storage already. Return an error of storage or of the source as a value."""
        try:
            record = task.record or _read_record(self.spec, task.path)
            if record is not None and record.plan == self.spec.plan and _is_intact(self.spec, record.shard):
                return ShardResult(record, skipped=True)
            return ShardResult(_write_shard(self.spec, task), skipped=False)
        except (OSError, ValueError) as error:
            cause = describe_s3_error(error) if isinstance(error, OSError) else str(error)
            return ShardError(f"cannot write shard {task.path}: {cause}")


def _read_record(spec: IngestSpec, shard_path: str) -> ShardRecord | None:
    try:
        return ShardRecord.model_validate(read_json(spec.fs, spec.record_path(shard_path)))
    except (FileNotFoundError, ValueError):
        return None


def _is_intact(spec: IngestSpec, shard: Shard) -> bool:
    try:
        read_shard_bytes(spec.fs, spec.root, shard)
    except ValueError:
        return False
    return True


def _write_shard(spec: IngestSpec, task: ShardTask) -> ShardRecord:
    names = task.items["name"].to_pylist()
    images, rejects = [], []
    decoded = np.zeros(len(names), bool)
    for i, item in enumerate(read_ahead(task.reader, names)):
        try:
            images.append(_encode(spec, item))
            decoded[i] = True
        except ValueError as error:
            rejects.append(Reject(name=names[i], shard=task.path, reason=str(error)))
    shard = write_shard(spec.fs, spec.root, task.path, shard_table(task.items.filter(decoded), images))
    record = ShardRecord(plan=spec.plan, shard=shard, rejects=tuple(rejects))
    write_json(spec.fs, spec.record_path(task.path), record.model_dump(mode="json"))
    return record


def _encode(spec: IngestSpec, item: Item | ValueError) -> bytes:
    """Return `item` cropped, resized and encoded. Raises ValueError if it is a bad image."""
    if isinstance(item, ValueError):
        raise item
    pixels = decode_image(item) if isinstance(item, bytes) else item
    return encode_image(fit_square(pixels, spec.size, spec.channels, spec.crop), spec.encoding, spec.quality)
