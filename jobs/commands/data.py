"""`zpoint data`: what a dataset holds, in numbers and pictures, and whether every byte of it stands."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.data.dataset import Dataset, shard_offsets
from aecore.data.images import fit_square
from aecore.data.io import write_atomic
from aecore.data.shards import MANIFEST, Manifest, Shard, UnreadShardError, find_manifest
from aecore.data.splits import SPLITS
from aecore.image_grid import grid, titled_sheet, to_png
from cluster.storage import check_uri, open_uri

COLUMNS, THUMB = 16, 128  # of the contact sheet: pictures in a row, and their largest edge
SHEET_ROWS = {"train": 6, "valid": 2, "test": 2}
BLOCK_BYTES = 1 << 25  # of pixels that a thread decodes at once
Progress = Callable[[int, int], None]


def show(uri: str, out: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Give the facts of the dataset at `uri`; write contact-sheet.png and mean-image.png into the folder `out`.

    Means and standard deviations are each channel's over every pixel of all splits, 0 to 255; `text` says it all
    to a person. Every shard is read and checked on the way. Raises ValueError when there is no dataset, one
    without images, or a shard is missing or damaged, UnreadShardError where storage does not give one.
    """
    check_uri(uri)
    dataset = Dataset.open(*open_uri(uri))
    manifest = dataset.manifest
    if not _images(manifest):
        raise ValueError(f"{uri} holds no images")
    totals = _Totals(manifest)

    def add_shard(split: str, start: int, shard: Shard) -> None:
        for first, images in dataset.iter_blocks(shard, BLOCK_BYTES):
            totals.add(split, start + first, images)

    for _ in _each_shard(manifest, add_shard, progress):
        pass
    sheet, mean_image = Path(out) / "contact-sheet.png", Path(out) / "mean-image.png"
    try:
        write_atomic(pafs.LocalFileSystem(), str(sheet), totals.sheet())
        write_atomic(pafs.LocalFileSystem(), str(mean_image), totals.mean_image())
    except OSError as error:
        raise ValueError(f"cannot write pictures to --out {out}: {error.strerror}") from error
    facts = {
        "uri": uri,
        "dataset": manifest.dataset,
        "splits": {
            split: {"images": manifest.count(split), "shards": len(shards), "bytes": sum(s.bytes for s in shards)}
            for split, shards in ((split, manifest.shards(split)) for split in SPLITS)
        },
        "size": manifest.size,
        "channels": manifest.channels,
        "encoding": manifest.encoding,
        "options": manifest.options,
        "digest": manifest.digest,
        **totals.moments(),
        "contact_sheet": str(sheet),
        "mean_image": str(mean_image),
    }
    return facts | {"text": _describe(facts)}


def verify(uri: str, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Check that each shard of the dataset at `uri` is there, has its bytes and sha256, and decodes row by row.

    The result's `bad` names each file that is not in order, with the reason; `exit_status` is 1 if there is one.
    Raises ValueError when there is no dataset or the storage does not let us in.
    """
    check_uri(uri)
    fs, root = open_uri(uri)
    try:
        manifest = find_manifest(fs, root)
    except ValueError as error:
        return _verdict(uri, 0, 0, [{"shard": MANIFEST, "reason": str(error)}])
    if manifest is None:
        raise ValueError(f"no dataset at {uri}: {MANIFEST} is missing; make one with `zpoint ingest`")
    dataset = Dataset(fs, root, manifest)

    def check(split: str, start: int, shard: Shard) -> str:
        try:
            rows = sum(len(images) for _, images in dataset.iter_blocks(shard, BLOCK_BYTES))
        except (UnreadShardError, ValueError) as error:
            return str(error)
        return "" if rows == shard.rows else f"shard {shard.path} has {rows} rows, not {shard.rows}"

    bad = [{"shard": shard.path, "reason": text} for shard, text in _each_shard(manifest, check, progress) if text]
    return _verdict(uri, sum(len(shards) for shards in manifest.splits.values()), _images(manifest), bad)


def _verdict(uri: str, shards: int, images: int, bad: list[dict[str, str]]) -> dict[str, Any]:
    lines = [f"bad: {each['shard']}: {each['reason']}" for each in bad]
    end = f"{len(bad)} bad" if bad else "every digest stands and every image decodes"
    text = "\n".join([*lines, f"{uri}: {shards} shards, {images:,} images: {end}"])
    return {"uri": uri, "shards": shards, "images": images, "bad": bad, "text": text, "exit_status": int(bool(bad))}


def _images(manifest: Manifest) -> int:
    return sum(manifest.count(split) for split in manifest.splits)


def _each_shard(
    manifest: Manifest, work: Callable[[str, int, Shard], Any], progress: Progress
) -> Iterator[tuple[Shard, Any]]:
    """Give each shard and what `work(split, number of its first image, shard)` said of it, on all cores."""
    todo = []
    for split in SPLITS:
        shards = manifest.shards(split)
        starts = shard_offsets(shards).tolist()
        todo += [(split, start, shard) for start, shard in zip(starts, shards, strict=False)]
    done, total = 0, _images(manifest)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for (_, _, shard), said in zip(todo, pool.map(lambda each: work(*each), todo), strict=True):
                done += shard.rows
                progress(done, total)
                yield shard, said
        finally:
            pool.shutdown(cancel_futures=True)


class _Totals:
    """What `show` gathers over all images, from several threads."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.sums = np.zeros((manifest.size, manifest.size, manifest.channels), np.int64)
        self.squares = np.zeros_like(self.sums)
        self.chosen = {split: _spread(manifest.count(split), SHEET_ROWS[split]) for split in SPLITS}
        self.thumbs: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def add(self, split: str, first: int, images: np.ndarray) -> None:
        """Count `images`, of which the first is number `first` of its split."""
        sums = images.sum(axis=0, dtype=np.int64)
        squares = np.square(images, dtype=np.uint16).sum(axis=0, dtype=np.int64)  # 255 * 255 fits
        picked = self.chosen[split]
        picked = picked[(picked >= first) & (picked < first + len(images))].tolist()
        edge = min(self.manifest.size, THUMB)
        thumbs = {(split, number): fit_square(images[number - first], edge, 3) for number in picked}
        with self._lock:
            self.sums += sums
            self.squares += squares
            self.thumbs |= thumbs

    def moments(self) -> dict[str, list[float]]:
        """Give mean and sd of each channel."""
        pixels = _images(self.manifest) * self.manifest.size**2
        mean = self.sums.sum(axis=(0, 1)) / pixels
        sd = np.sqrt(np.maximum(self.squares.sum(axis=(0, 1)) / pixels - mean**2, 0))
        return {"mean": mean.round(3).tolist(), "sd": sd.round(3).tolist()}

    def mean_image(self) -> bytes:
        """Give the mean of all images as PNG."""
        mean = np.rint(self.sums / _images(self.manifest)).astype(np.uint8)
        return to_png(grid([mean[None]]))

    def sheet(self) -> bytes:
        """Give the contact sheet as PNG: images spread evenly over each split."""
        parts = []
        for split, numbers in self.chosen.items():
            thumbs = [self.thumbs[split, number] for number in numbers.tolist()]
            rows = [np.stack(thumbs[start : start + COLUMNS]) for start in range(0, len(thumbs), COLUMNS)]
            if rows:
                parts.append((f"{split}: {len(thumbs)} of {self.manifest.count(split):,}", rows))
        return to_png(titled_sheet(parts))


def _spread(count: int, rows: int) -> np.ndarray:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, rows * COLUMNS)).round().astype(int))


def _describe(facts: dict[str, Any]) -> str:
    lines = [f"{facts['dataset']} at {facts['uri']}"]
    for split, its in facts["splits"].items():
        lines.append(f"  {split:<6} {its['images']:>10,} images {its['shards']:>6,} shards {its['bytes']:>16,} bytes")
    lines.append(f"form      {facts['size']} x {facts['size']} x {facts['channels']}, {facts['encoding']}")
    lines.append("options   " + ", ".join(f"{key} {value}" for key, value in facts["options"].items()))
    lines.append(f"digest    {facts['digest']}")
    lines.append(f"mean      {'  '.join(f'{value:.2f}' for value in facts['mean'])}   of 255, by channel")
    lines.append(f"sd        {'  '.join(f'{value:.2f}' for value in facts['sd'])}")
    lines.append(f"pictures  {facts['contact_sheet']}, {facts['mean_image']}")
    return "\n".join(lines)
