"""`zpoint ingest`: read the images of a source, crop them, and write them as shards and a manifest.

One Ray task writes one shard. A finished shard has a record in `.ingest/`; the same command resumes from the records
after a kill. The manifest is written last, and the records are then deleted. The bytes of a dataset depend on source
and options alone.
"""

import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.data.images import ENCODINGS, JPEG_QUALITY, Crop
from aecore.data.io import read_bytes, read_json, sha256, write_atomic, write_json
from aecore.data.shards import Manifest, Shard, find_manifest, save_manifest
from aecore.data.sources import Source, SourceOptions, open_source
from aecore.data.splits import RULES, SPLITS
from aecore.errors import list_names, printable
from cluster.lock import hold_lock
from cluster.ray_connection import connect
from cluster.storage import check_uri, describe_s3_error
from jobs.ingest.pool import write_shards
from jobs.ingest.shard_task import RECORDS, IngestSpec, Reject, ShardError, ShardRecord, ShardResult, ShardTask

REJECTS = "rejects.jsonl"
LOCK = ".lock/ingest"  # below the dataset's root, in a folder of its own: the records' folder is deleted under the lock
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.parquet")
FIRST_NAMES = 10  # of classes, attributes and entries passed over, in the result
log = logging.getLogger(__name__)


def ingest(
    dataset: str,
    source_uri: str | None,
    uri: str,
    *,
    size: int | None = None,
    crop: str = "square",
    encoding: str | None = None,
    quality: int | None = None,
    split: str | None = None,
    limit: int | None = None,
    shard_rows: int = 1024,
    seed: int = 0,
    max_bad: int = 0,
    download: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the images of `dataset`, read from `source_uri`, as shards and a manifest to `uri`.

    Args:
        size: pixels a side, 8 to 2048; by default the dataset's own.
        crop: a text that `Crop.parse` reads.
        encoding: one of ENCODINGS; by default png up to 32 pixels a side, jpeg above.
        quality: of jpeg, 1 to 100.
        split: one of RULES; by default official if the source has one, else hash.
        limit: maximum number of images.
        shard_rows: images in a shard.
        max_bad: number of bad images that are skipped and listed in rejects.jsonl; one more is an error. Those that a
            finished dataset lists already are allowed.
        progress: called with the images done and their total, first with 0 when a worker is ready.

    Returns uri, digest, counts (per split), split_rule, classes and attributes (their number and first names), notes,
    passed_over (number and first names of the source's other entries, by reason), bytes, images_per_second, shards,
    skipped_shards, rejects (their number) and unchanged (no shard had to be written).
    Raises ValueError if an option is invalid, the source is unreadable, more than `max_bad` images are bad, storage
    fails, another process writes to `uri`, or shards of no ingest lie there.
    """
    _check_options(
        size=size, shard_rows=shard_rows, max_bad=max_bad, encoding=encoding, quality=quality, split=split, seed=seed
    )
    crop_rule = Crop.parse(crop)
    fs, root = check_uri(uri)
    source = _open_source(dataset, source_uri, limit=limit, seed=seed, size=size, split=split, download=download)
    description = _describe_source(source)
    _warn_of_skipped(source_uri, source)
    encoding, quality = _resolve_encoding(encoding, quality, source.size)
    options = {
        "dataset": dataset, "source": source.fingerprint, "size": source.size, "crop": str(crop_rule),
        "encoding": encoding, "quality": quality if encoding == "jpeg" else None, "split": source.rule, "limit": limit,
        "shard_rows": shard_rows,
    }  # fmt: skip
    plan = sha256(json.dumps(options, sort_keys=True).encode())
    spec = IngestSpec(
        fs=fs, root=root, plan=plan, size=source.size, channels=source.channels, crop=crop_rule, encoding=encoding,
        quality=quality,
    )  # fmt: skip
    with _locked(uri, spec):
        finished = find_manifest(fs, root)
        records = _records_of_manifest(spec, finished, options, uri)
        if finished:
            max_bad = max(max_bad, _listed_rejects(finished))
        else:
            _discard_other_plan(spec, uri)
        tasks = _make_tasks(source, shard_rows, records)
        if edited := _find_edited(spec, source, tasks):
            if finished:
                _warn_of_edited(uri, edited)
            else:
                _discard_records(spec, edited)
        connect()
        started = time.perf_counter()
        results = _write_all(spec, tasks, max_bad, progress)
        seconds = time.perf_counter() - started
        if len(_rejects(results)) > max_bad:
            if not finished:  # a manifest lists these shards
                _delete_written(spec, results)
            raise _too_many_bad(_rejects(results), max_bad)
        manifest = _finish(spec, source, options, results)
    return {
        "uri": uri,
        "digest": manifest.digest,
        "counts": {split: manifest.count(split) for split in manifest.splits},
        **description,
        **_describe_results(results, seconds),
        "unchanged": bool(records) and all(result.skipped for result in results),
    }


def _check_options(
    *, size: int | None, shard_rows: int, max_bad: int, encoding: str | None, quality: int | None, split: str | None,
    seed: int,
) -> None:  # fmt: skip
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be 0 to {2**32 - 1}, not {seed}")
    if size is not None and not 8 <= size <= 2048:
        raise ValueError(f"size must be 8 to 2048 pixels, not {size}")
    if shard_rows < 1:
        raise ValueError(f"shard_rows must be at least 1, not {shard_rows}")
    if max_bad < 0:
        raise ValueError(f"max_bad must be at least 0, not {max_bad}")
    if encoding is not None and encoding not in ENCODINGS:
        raise ValueError(f"unknown encoding {encoding!r}; it is one of {', '.join(ENCODINGS)}")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1 to 100, not {quality}")
    if split is not None and split not in RULES:
        raise ValueError(f"unknown split {split!r}; it is one of {', '.join(RULES)}")


def _open_source(dataset: str, uri: str | None, **options: Any) -> Source:
    """List the items of a source on a local disk or on S3."""
    if uri is None:
        return open_source(dataset, SourceOptions(**options))
    fs, path = check_uri(uri)
    try:
        return open_source(dataset, SourceOptions(path=path, fs=fs, **options))
    except OSError as error:
        raise ValueError(f"cannot read {uri}: {describe_s3_error(error)}") from error


@contextmanager
def _locked(uri: str, spec: IngestSpec) -> Iterator[None]:
    """Hold the lock of the dataset at `uri` in the block, and raise an error of its storage as ValueError.

    A local folder that did not exist before is deleted if it is empty at the end.
    """
    root_existed = spec.fs.get_file_info(spec.root).type is not pafs.FileType.NotFound
    try:
        with hold_lock(f"{uri.rstrip('/')}/{LOCK}", f"the dataset {uri} is being written", "choose another --to"):
            yield
    except OSError as error:
        raise ValueError(f"cannot write to {uri}: {describe_s3_error(error)}") from error
    finally:
        if not root_existed and isinstance(spec.fs, pafs.LocalFileSystem):
            with suppress(OSError):  # it holds the dataset
                os.rmdir(spec.root)


def _describe_source(source: Source) -> dict[str, Any]:
    """Return what was found in a source: the rule of its splits, its classes, and what was passed over."""
    tables = [table for table in source.splits.values() if table.num_rows]
    columns = tables[0].column_names if tables else []
    class_column = next((column for column in ("class", "label") if column in columns), None)
    classes = {
        value for table in tables if class_column for value in table[class_column].drop_null().unique().to_pylist()
    }
    return {
        "split_rule": source.split_text,
        "classes": _count_names(sorted(classes)),
        "attributes": _count_names(column for column in columns if column not in ("name", "label", "class")),
        "notes": source.notes,
        "passed_over": {reason: _count_names(map(printable, names)) for reason, names in source.passed_over.items()},
    }


def _count_names(names: Iterable[Any]) -> dict[str, Any]:
    names = [str(name) for name in names]
    return {"count": len(names), "first": names[:FIRST_NAMES]}


def _describe_results(results: list[ShardResult], seconds: float) -> dict[str, Any]:
    written = [result for result in results if not result.skipped]
    return {
        "bytes": sum(result.record.shard.bytes for result in results),
        "images_per_second": round(sum(result.num_items for result in written) / seconds, 1),
        "shards": len(results),
        "skipped_shards": len(results) - len(written),
        "rejects": len(_rejects(results)),
    }


def _warn_of_skipped(uri: str | None, source: Source) -> None:
    """Log a warning if more files were passed over than images read, except text and what systems leave behind."""
    skipped = {
        reason: names for reason, names in source.passed_over.items()
        if reason not in ("hidden", "text", "thumbnail")
    }  # fmt: skip
    num_skipped, num_images = sum(map(len, skipped.values())), sum(table.num_rows for table in source.splits.values())
    if num_skipped > num_images:
        log.warning("%s: %d entries passed over, %d images read: %s", uri, num_skipped, num_images, ", ".join(skipped))


def _resolve_encoding(encoding: str | None, quality: int | None, size: int) -> tuple[str, int]:
    """Return encoding and jpeg quality of images of `size` pixels a side, with the defaults filled in."""
    encoding = encoding or ("png" if size <= 32 else "jpeg")
    if encoding != "jpeg" and quality is not None:
        raise ValueError(f"quality applies to jpeg, but the images are encoded as {encoding}: omit it or choose jpeg")
    return encoding, quality or JPEG_QUALITY


def _records_of_manifest(
    spec: IngestSpec, manifest: Manifest | None, options: dict[str, Any], uri: str
) -> dict[str, ShardRecord]:
    """Return the records, by shard path, of a finished ingest with the same options.

    Raises ValueError if the manifest is of another dataset.
    """
    if manifest is None:
        return {}
    differing = [key for key, value in options.items() if manifest.options.get(key) != value]
    if differing:
        raise ValueError(
            f"{uri} already holds a dataset ({manifest.dataset}) with another {', '.join(differing)}: "
            "choose another --to"
        )
    rejects: list[Reject] = []
    if _listed_rejects(manifest):
        try:
            lines = read_bytes(spec.fs, f"{spec.root}/{REJECTS}").decode().splitlines()
        except FileNotFoundError:
            return {}
        rejects = [Reject(**json.loads(line)) for line in lines]
    return {
        shard.path: ShardRecord(
            plan=spec.plan, shard=shard, rejects=tuple(reject for reject in rejects if reject.shard == shard.path)
        )
        for shards in manifest.splits.values()
        for shard in shards
    }


def _listed_rejects(manifest: Manifest) -> int:
    """Return the number of bad images that rejects.jsonl of a finished ingest lists."""
    num_rejects = manifest.options.get("rejects")
    return num_rejects if isinstance(num_rejects, int) else 0


def _discard_other_plan(spec: IngestSpec, uri: str) -> None:
    """Delete shards and records of an unfinished ingest that had other options, and store this ingest's plan.

    Raises ValueError if there are shards but no records: they may be the source.
    """
    try:
        stored_plan = read_json(spec.fs, spec.plan_path)
    except (FileNotFoundError, ValueError):
        stored_plan = None
    if stored_plan == spec.plan:
        return
    records = [info.path for info in _list_records(spec)]
    root_files = spec.fs.get_file_info(pafs.FileSelector(spec.root, allow_not_found=True))
    shards = [info.path for info in root_files if SHARD_NAME.fullmatch(info.base_name)]
    if shards and not records:
        raise ValueError(
            f"{uri} holds {list_names(path.rpartition('/')[2] for path in shards)}, which this ingest would overwrite: "
            "choose another --to, or delete them if they are of a dataset without its manifest"
        )
    for path in shards + records:
        _delete(spec.fs, path)
    write_json(spec.fs, spec.plan_path, spec.plan)


def _list_records(spec: IngestSpec) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(f"{spec.root}/{RECORDS}", allow_not_found=True)
    return [info for info in spec.fs.get_file_info(selector) if info.is_file]


def _delete(fs: pafs.FileSystem, path: str) -> None:
    if fs.get_file_info(path).is_file:
        fs.delete_file(path)


def _make_tasks(source: Source, shard_rows: int, records: dict[str, ShardRecord]) -> list[ShardTask]:
    tasks = []
    for split, table in source.splits.items():
        for index, start in enumerate(range(0, table.num_rows, shard_rows)):
            # A copy: a pickled slice would carry all rows of the table.
            items = table.take(np.arange(start, min(start + shard_rows, table.num_rows)))
            path = f"{split}-{index:05d}.parquet"
            tasks.append(ShardTask(path, items, source.reader, records.get(path)))
    return tasks


def _find_edited(spec: IngestSpec, source: Source, tasks: list[ShardTask]) -> dict[str, list[str]]:
    """Return, by shard path, the names of the images whose files are newer than their shard.

    The fingerprint has the length of a file, which an edited BMP, PPM or Parquet file often keeps. A time in the future
    is no edit's.
    """
    now_ns = time.time_ns()
    root_files = spec.fs.get_file_info(pafs.FileSelector(spec.root, allow_not_found=True))
    written_ns = {info.base_name: info.mtime_ns or 0 for info in root_files}
    edited = {
        task.path: [
            name for name in task.items["name"].to_pylist()
            if written_ns[task.path] < source.modified_ns(name) <= now_ns
        ]
        for task in tasks if task.path in written_ns
    }  # fmt: skip
    return {path: names for path, names in edited.items() if names}


def _warn_of_edited(uri: str, edited: dict[str, list[str]]) -> None:
    names = [name for shard_names in edited.values() for name in shard_names]
    log.warning(
        "%s is older than %d images of its source, such as %s; if they were edited, read them with another --to",
        uri, len(names), printable(names[0]),
    )  # fmt: skip


def _discard_records(spec: IngestSpec, shard_paths: Iterable[str]) -> None:
    """Delete the records of shards, which are then written again."""
    for path in shard_paths:
        _delete(spec.fs, spec.record_path(path))


def _write_all(
    spec: IngestSpec, tasks: list[ShardTask], max_bad: int, progress: Callable[[int, int], None]
) -> list[ShardResult]:
    """Run the tasks and return their results in the order of `tasks`.

    After more than `max_bad` bad images no further task starts, and the results so far are returned. The first error
    of a shard stops the ingest in the same way, and is raised as ValueError.
    """
    queue = deque(tasks)
    total = sum(task.items.num_rows for task in tasks)
    results: dict[str, ShardResult] = {}
    errors: list[ShardError] = []
    num_done = num_bad = 0
    for result in write_shards(spec, queue):
        if isinstance(result, ShardError):
            errors.append(result)
        elif result is not None:
            results[result.record.shard.path] = result
            num_done += result.num_items
            num_bad += len(result.record.rejects)
        if errors or num_bad > max_bad:
            queue.clear()
        if not errors:
            progress(num_done, total)
    if errors:
        raise ValueError(errors[0].message)
    return [results[task.path] for task in tasks if task.path in results]


def _too_many_bad(rejects: list[Reject], max_bad: int) -> ValueError:
    examples = "; ".join(f"{reject.name}: {reject.reason}" for reject in rejects[:3])
    more = f" (and {len(rejects) - 3} more)" if len(rejects) > 3 else ""
    return ValueError(f"{len(rejects)} bad images, {max_bad} allowed (--max-bad): {examples}{more}")


def _rejects(results: list[ShardResult]) -> list[Reject]:
    return [reject for result in results for reject in result.record.rejects]


def _delete_written(spec: IngestSpec, results: list[ShardResult]) -> None:
    """Delete the shards and records of this run."""
    for result in results:
        if not result.skipped:
            _delete(spec.fs, f"{spec.root}/{result.record.shard.path}")
            _delete(spec.fs, spec.record_path(result.record.shard.path))
    if not any(info.base_name.endswith(".parquet.json") for info in _list_records(spec)):
        spec.fs.delete_dir(f"{spec.root}/{RECORDS}")


def _finish(spec: IngestSpec, source: Source, options: dict[str, Any], results: list[ShardResult]) -> Manifest:
    """Write rejects.jsonl and the manifest, then delete the records and the temporary files of killed tasks."""
    if rejects := _rejects(results):
        lines = [json.dumps(reject.model_dump(), sort_keys=True) + "\n" for reject in rejects]
        write_atomic(spec.fs, f"{spec.root}/{REJECTS}", "".join(lines).encode())
    shards: dict[str, list[Shard]] = {split: [] for split in source.splits}
    for result in results:
        shards[result.record.shard.path.rsplit("-", 1)[0]].append(result.record.shard)
    manifest = Manifest(
        dataset=options["dataset"],
        options=options | {"rejects": len(rejects)},
        size=spec.size,
        channels=3 if spec.channels == 3 else 1,
        encoding=options["encoding"],
        splits={split: tuple(entries) for split, entries in shards.items()},
    )
    save_manifest(spec.fs, spec.root, manifest)
    if _list_records(spec):
        spec.fs.delete_dir(f"{spec.root}/{RECORDS}")
    for info in spec.fs.get_file_info(pafs.FileSelector(spec.root)):
        if info.base_name.startswith(".") and info.base_name.endswith(".tmp"):
            _delete(spec.fs, info.path)
    return manifest
