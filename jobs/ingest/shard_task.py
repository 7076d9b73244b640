"""One task of `zpoint ingest`: read a shard's items, cut and encode them, write the shard and its record."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.images import Crop, decode_image, encode_image, fit_square
from aecore.data.io import read_json, write_json
from aecore.data.readers import Item, read_ahead
from aecore.data.shards import Shard, read_shard_bytes, shard_table, write_shard
from cluster.storage import describe_s3_error

RECORDS = ".ingest"


@dataclass(frozen=True)
class IngestSpec:
    """What every task of one ingest must know."""

    fs: pafs.FileSystem
    root: str
    plan: str  # digest of the options and the source: records of another plan do not count
    size: int
    channels: int
    crop: Crop
    encoding: str
    quality: int

    def path(self, name: str) -> str:
        """Give the path of a record or mark in `.ingest/`."""
        return f"{self.root}/{RECORDS}/{name}"


class ShardWriter:
    """Makes shards in a Ray worker."""

    def __init__(self, work: IngestSpec) -> None:
        self.work = work

    def make(self, chunk: dict[str, Any]) -> str:
        """Make one shard. What a user must know comes back as data, in JSON."""
        try:
            result = _make_shard(chunk, self.work)
        except (OSError, ValueError) as error:
            text = describe_s3_error(error) if isinstance(error, OSError) else str(error)
            result = {"error": f"shard {chunk['name']} could not be made: {text}"}
        return json.dumps(result)


def _make_shard(chunk: dict[str, Any], work: IngestSpec) -> dict[str, Any]:
    name, fs = chunk["name"], work.fs
    if fs.get_file_info(work.path("stop")).is_file:
        return {"called_off": True}
    record = json.loads(chunk["known"]) or _read_record(work, name)
    if record is not None and record["plan"] == work.plan and _stands(work, record):
        return _result(name, record, skipped=True)
    items = pa.ipc.open_stream(chunk["items"]).read_all()
    names = items["name"].to_pylist()
    images, good, rejects = [], [], []
    for item, found in zip(names, read_ahead(chunk["reader"], names), strict=True):
        try:
            images.append(_remake(found, work))
            good.append(True)
        except ValueError as error:
            rejects.append({"name": item, "shard": name, "reason": str(error)})
            good.append(False)
    table = shard_table(items.filter(np.array(good)), images)
    shard = write_shard(fs, work.root, name, table)
    record = {"plan": work.plan, "shard": shard.model_dump(), "rejects": rejects}
    write_json(fs, work.path(f"{name}.json"), record)
    return _result(name, record, skipped=False)


def _remake(found: Item | ValueError, work: IngestSpec) -> bytes:
    """Make the image that a shard holds of what a reader gave. Raises ValueError when it is bad."""
    if isinstance(found, ValueError):
        raise found
    pixels = decode_image(found) if isinstance(found, bytes) else found
    return encode_image(fit_square(pixels, work.size, work.channels, work.crop), work.encoding, work.quality)


def _read_record(work: IngestSpec, name: str) -> dict | None:
    try:
        return read_json(work.fs, work.path(f"{name}.json"))
    except (FileNotFoundError, ValueError):
        return None


def _stands(work: IngestSpec, record: dict) -> bool:
    try:
        read_shard_bytes(work.fs, work.root, Shard(**record["shard"]))
    except ValueError:
        return False
    return True


def _result(name: str, record: dict, *, skipped: bool) -> dict[str, Any]:
    done = record["shard"]["rows"] + len(record["rejects"])
    return {"name": name, "done": done, "skipped": skipped, **record}
