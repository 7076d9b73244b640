"""`zpoint ingest`: read a source, cut its images square, and write them as shards and a manifest.

Runs on Ray, one call per shard. Until the manifest is written, last, each finished shard has a record in `.ingest/`,
from which the same command goes on after a kill. The bytes depend on source and options alone.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.images import ENCODINGS, JPEG_QUALITY, Crop
from aecore.data.io import read_bytes, read_json, sha256, write_atomic, write_json
from aecore.data.shards import Manifest, Shard, find_manifest, save_manifest
from aecore.data.sources import Source, SourceOptions, open_source
from aecore.data.splits import RULES
from cluster.ray_connection import connect
from cluster.storage import check_uri, describe_s3_error, open_uri
from jobs.ingest.pool import run_shard_writers
from jobs.ingest.shard_task import RECORDS, IngestSpec

REJECTS = "rejects.jsonl"


def ingest(
    dataset: str,
    source: str | None,
    to: str,
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
    """Write `dataset`, read from `source`, to the URI `to`, and give its facts.

    `crop` is a text that `Crop.parse` takes, `encoding` one of ENCODINGS (by default png up to 32 pixels, jpeg
    above), `quality` that of jpeg, `split` one of RULES. `progress(done, total)` counts images, from when the first
    worker is up. The result has uri, digest, counts (per split), bytes, images_per_second, shards, skipped_shards,
    unchanged (nothing had to be written) and rejects (how many).
    Raises ValueError for a user's mistake, more than `max_bad` bad images, or storage that fails.
    """
    _check(size=size, shard_rows=shard_rows, max_bad=max_bad, encoding=encoding, quality=quality, split=split)
    cut = Crop.parse(crop)
    check_uri(to)
    fs, root = open_uri(to)
    found = _open(dataset, source, limit=limit, seed=seed, size=size, split=split, download=download)
    total = sum(table.num_rows for table in found.splits.values())
    encoding, quality = _encoding(encoding, quality, found.size)
    options = {
        "dataset": dataset,
        "source": found.fingerprint,
        "size": found.size,
        "crop": str(cut),
        "encoding": encoding,
        "quality": quality if encoding == "jpeg" else None,
        "split": found.rule,
        "limit": limit,
        "shard_rows": shard_rows,
    }
    plan = sha256(json.dumps(options, sort_keys=True).encode())
    work = IngestSpec(fs, root, plan, found.size, found.channels, cut, encoding, quality)
    try:
        existed = fs.get_file_info(root).type is not pafs.FileType.NotFound
        known = _known_records(work, find_manifest(fs, root), options, to)
        _begin(work)
        connect()
        started = time.perf_counter()
        results = _run_all(work, list(_chunks(found, shard_rows, known)), total, max_bad, progress)
        rejects = [reject for result in results for reject in result["rejects"]]
        if len(rejects) > max_bad:
            _undo(work, results, existed)
            raise ValueError(_too_many(rejects, max_bad))
        seconds = time.perf_counter() - started
        manifest = _finish(work, found, options, results, rejects)
    except OSError as error:
        raise ValueError(f"cannot write to {to}: {describe_s3_error(error)}") from error
    return _facts(to, manifest, results, seconds) | {"unchanged": bool(known) and all(r["skipped"] for r in results)}


def _facts(to: str, manifest: Manifest, results: list[dict], seconds: float) -> dict[str, Any]:
    """What there is to tell of the dataset at `to` and of the tasks that made it in `seconds`."""
    made = [result for result in results if not result["skipped"]]
    return {
        "uri": to,
        "digest": manifest.digest,
        "counts": {split: manifest.count(split) for split in manifest.splits},
        "bytes": sum(shard.bytes for shards in manifest.splits.values() for shard in shards),
        "images_per_second": round(sum(result["done"] for result in made) / seconds, 1),
        "shards": len(results),
        "skipped_shards": len(results) - len(made),
        "rejects": sum(len(result["rejects"]) for result in results),
    }


def _check(
    *, size: int | None, shard_rows: int, max_bad: int, encoding: str | None, quality: int | None, split: str | None
) -> None:
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


def _encoding(encoding: str | None, quality: int | None, size: int) -> tuple[str, int]:
    """The encoding of images of `size` pixels a side, and jpeg's quality, where none were asked for."""
    encoding = encoding or ("png" if size <= 32 else "jpeg")
    if encoding != "jpeg" and quality is not None:
        raise ValueError(f"quality is jpeg's, and these images become {encoding}: leave it out or choose jpeg")
    return encoding, quality or JPEG_QUALITY


def _open(dataset: str, source: str | None, **request: Any) -> Source:
    """List what there is to ingest, on a disk or on S3."""
    if source is None or "://" not in source:
        return open_source(dataset, SourceOptions(path=source, **request))
    check_uri(source)
    fs, path = open_uri(source)
    try:
        return open_source(dataset, SourceOptions(path=path, fs=fs, **request))
    except OSError as error:
        raise ValueError(f"cannot read {source}: {describe_s3_error(error)}") from error


def _known_records(work: IngestSpec, manifest: Manifest | None, options: dict, to: str) -> dict[str, dict]:
    """Give what a manifest that is there already says of each shard, in the form of the tasks' records."""
    if manifest is None:
        return {}
    differ = [key for key, value in options.items() if manifest.options.get(key) != value]
    if differ:
        raise ValueError(
            f"{to} already holds another dataset ({manifest.dataset}, of another {', '.join(differ)}): "
            "choose another --to"
        )
    rejects: list[dict] = []
    if manifest.options.get("rejects"):
        try:
            lines = read_bytes(work.fs, f"{work.root}/{REJECTS}").decode().splitlines()
            rejects = [json.loads(line) for line in lines]
        except FileNotFoundError:
            return {}
    shards = [shard for split in manifest.splits.values() for shard in split]
    return {
        shard.path: {
            "plan": work.plan,
            "shard": shard.model_dump(),
            "rejects": [reject for reject in rejects if reject["shard"] == shard.path],
        }
        for shard in shards
    }


def _begin(work: IngestSpec) -> None:
    """Take the place: drop what an unfinished ingest with other options left there."""
    mark = work.path("plan.json")
    try:
        mine = read_json(work.fs, mark) == work.plan
    except (FileNotFoundError, ValueError):
        mine = False
    if not mine:
        for path in _record_paths(work):
            name = path.rsplit("/", 1)[-1].removesuffix(".json")
            if name.endswith(".parquet"):
                _delete(work.fs, f"{work.root}/{name}")
            _delete(work.fs, path)
        write_json(work.fs, mark, work.plan)
    _delete(work.fs, work.path("stop"))


def _record_paths(work: IngestSpec) -> list[str]:
    selector = pafs.FileSelector(f"{work.root}/{RECORDS}", allow_not_found=True)
    return [info.path for info in work.fs.get_file_info(selector) if info.is_file]


def _delete(fs: pafs.FileSystem, path: str) -> None:
    if fs.get_file_info(path).is_file:
        fs.delete_file(path)


def _chunks(source: Source, shard_rows: int, known: dict[str, dict]) -> Iterator[dict[str, Any]]:
    """Give one chunk per shard: its name, the items that belong in it, their reader, and what is known already."""
    for split, table in source.splits.items():
        for number, start in enumerate(range(0, table.num_rows, shard_rows)):
            name = f"{split}-{number:05d}.parquet"
            items = table.slice(start, shard_rows).combine_chunks()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(items)
            yield {
                "name": name,
                "items": sink.getvalue().to_pybytes(),
                "reader": source.reader.only(items["name"].to_pylist()),
                "known": json.dumps(known.get(name)),
            }


def _run_all(
    work: IngestSpec, chunks: list[dict], total: int, max_bad: int, progress: Callable[[int, int], None]
) -> list[dict]:
    """Run a task per chunk; give their results in the chunks' order. On failure the rest is called off."""
    results: dict[str, dict] = {}
    done = bad = 0
    failure = ""
    for result in run_shard_writers(work, chunks):
        if result.get("called_off"):
            continue
        if not result:
            progress(done, total)
            continue
        failure = failure or result.get("error", "")
        if not failure:
            results[result["name"]] = result
            done, bad = done + result["done"], bad + len(result["rejects"])
            progress(done, total)
        if failure or bad > max_bad:
            with suppress(OSError):  # storage that takes nothing more; the other tasks fail by themselves then
                write_atomic(work.fs, work.path("stop"), b"")  # running tasks end, waiting ones do nothing
    if failure:
        raise ValueError(failure)
    return [results[chunk["name"]] for chunk in chunks if chunk["name"] in results]


def _too_many(rejects: list[dict], max_bad: int) -> str:
    named = "; ".join(f"{reject['name']}: {reject['reason']}" for reject in rejects[:3])
    more = f" (and {len(rejects) - 3} more)" if len(rejects) > 3 else ""
    return f"{len(rejects)} bad images, {max_bad} allowed (--max-bad): {named}{more}"


def _undo(work: IngestSpec, results: list[dict], existed: bool) -> None:
    for result in results:
        if not result["skipped"]:
            _delete(work.fs, f"{work.root}/{result['name']}")
            _delete(work.fs, work.path(f"{result['name']}.json"))
    if not any(path.endswith(".parquet.json") for path in _record_paths(work)):
        work.fs.delete_dir(f"{work.root}/{RECORDS}")
    if not existed and not work.fs.get_file_info(pafs.FileSelector(work.root, allow_not_found=True)):
        work.fs.delete_dir(work.root)


def _finish(work: IngestSpec, source: Source, options: dict, results: list[dict], rejects: list[dict]) -> Manifest:
    """Write rejects and manifest, and clear the records away."""
    if rejects:
        lines = [json.dumps(reject, sort_keys=True) + "\n" for reject in rejects]
        write_atomic(work.fs, f"{work.root}/{REJECTS}", "".join(lines).encode())
    shards = {split: [] for split in source.splits}
    for result in results:
        shards[result["name"].rsplit("-", 1)[0]].append(Shard(**result["shard"]))
    manifest = Manifest(
        dataset=options["dataset"],
        options=options | {"rejects": len(rejects)},
        size=work.size,
        channels=3 if work.channels == 3 else 1,
        encoding=options["encoding"],
        splits={split: tuple(entries) for split, entries in shards.items()},
    )
    save_manifest(work.fs, work.root, manifest)
    work.fs.delete_dir(f"{work.root}/{RECORDS}")
    for info in work.fs.get_file_info(pafs.FileSelector(work.root)):
        if info.base_name.startswith(".") and info.base_name.endswith(".tmp"):  # of a task that was killed
            _delete(work.fs, info.path)
    return manifest
