"""`zpoint data`: describe a dataset in numbers and pictures, and verify its shards."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from aecore.data.dataset import Dataset, shard_offsets
from aecore.data.images import fit_square
from aecore.data.io import write_atomic
from aecore.data.shards import MANIFEST, Manifest, Shard, UnreadShardError, find_manifest
from aecore.data.shuffle import evenly_spaced
from aecore.data.splits import SPLITS
from aecore.image_grid import grid, titled_sheet, to_png
from cluster.storage import check_uri, describe_s3_error

COLUMNS, MAX_THUMBNAIL_SIZE = 16, 128  # of the contact sheet: images per row, and their edge in pixels
SHEET_ROWS = {"train": 6, "valid": 2, "test": 2}
BLOCK_BYTES = 1 << 25  # of pixels that a thread decodes at once
ImagesCallback = Callable[[int, int], None]  # takes the images done and their total


def show(uri: str, out: str, progress: ImagesCallback = lambda done, total: None) -> dict[str, Any]:
    """Describe the dataset at `uri`; write contact-sheet.png and mean-image.png into the folder `out`.

    `out` is a path or an s3:// URI.
    Means and standard deviations are per channel over all pixels of all splits, 0 to 255; `text` is for printing.
    Each shard is read and checked. Raises ValueError when the dataset is missing or has no images, a shard is missing
    or damaged, or `out` refuses the pictures, UnreadShardError when storage fails.
    """
    out_fs, out_root = check_uri(out)
    dataset = Dataset.open(*check_uri(uri))
    manifest = dataset.manifest
    if not _count_images(manifest):
        raise ValueError(f"{uri} holds no images")
    statistics = _ImageStatistics(manifest)

    def add_shard(split: str, start: int, shard: Shard) -> None:
        for first_row, images in dataset.iter_blocks(shard, BLOCK_BYTES):
            statistics.add(split, start + first_row, images)

    for _ in _map_shards(manifest, add_shard, progress):
        pass
    try:
        write_atomic(out_fs, f"{out_root}/contact-sheet.png", statistics.contact_sheet())
        write_atomic(out_fs, f"{out_root}/mean-image.png", statistics.mean_image())
    except OSError as error:
        cause = error.strerror or describe_s3_error(error)
        raise ValueError(f"cannot write pictures to --out {out}: {cause}") from error
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
        **statistics.mean_and_sd(),
        "contact_sheet": os.path.join(out, "contact-sheet.png"),
        "mean_image": os.path.join(out, "mean-image.png"),
    }
    return facts | {"text": _describe(facts)}


def verify(uri: str, progress: ImagesCallback = lambda done, total: None) -> dict[str, Any]:
    """Verify that each shard of the dataset at `uri` exists, has its length and sha256, and decodes row by row.

    `bad` in the result lists each faulty file with the reason; `exit_status` is 1 if there is one. Raises ValueError
    when the dataset is missing or storage denies access.
    """
    fs, root = check_uri(uri)
    try:
        manifest = find_manifest(fs, root)
    except ValueError as error:
        return _verification(uri, 0, 0, [{"shard": MANIFEST, "reason": str(error)}])
    if manifest is None:
        raise ValueError(f"no dataset at {uri}: {MANIFEST} is missing; create one with `zpoint ingest`")
    dataset = Dataset(fs, root, manifest)

    def check_shard(split: str, start: int, shard: Shard) -> str:
        try:
            rows = sum(len(images) for _, images in dataset.iter_blocks(shard, BLOCK_BYTES))
        except (UnreadShardError, ValueError) as error:
            return str(error)
        return "" if rows == shard.rows else f"shard {shard.path} has {rows} rows, not {shard.rows}"

    reasons = _map_shards(manifest, check_shard, progress)
    bad = [{"shard": shard.path, "reason": reason} for shard, reason in reasons if reason]
    return _verification(uri, sum(len(shards) for shards in manifest.splits.values()), _count_images(manifest), bad)


def _verification(uri: str, shards: int, images: int, bad: list[dict[str, str]]) -> dict[str, Any]:
    lines = [f"bad: {file['shard']}: {file['reason']}" for file in bad]
    summary = f"{len(bad)} bad" if bad else "every digest matches and every image decodes"
    text = "\n".join([*lines, f"{uri}: {shards} shards, {images:,} images: {summary}"])
    return {"uri": uri, "shards": shards, "images": images, "bad": bad, "text": text, "exit_status": int(bool(bad))}


def _count_images(manifest: Manifest) -> int:
    return sum(manifest.count(split) for split in manifest.splits)


def _map_shards(
    manifest: Manifest, function: Callable[[str, int, Shard], Any], progress: ImagesCallback
) -> Iterator[tuple[Shard, Any]]:
    """Yield each shard and the result of `function(split, row of its first image, shard)`, on all CPUs."""
    tasks = []
    for split in SPLITS:
        shards = manifest.shards(split)
        tasks += [(split, start, shard) for start, shard in zip(shard_offsets(shards).tolist(), shards, strict=False)]
    done, total = 0, _count_images(manifest)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for (_, _, shard), result in zip(tasks, pool.map(lambda task: function(*task), tasks), strict=True):
                done += shard.rows
                progress(done, total)
                yield shard, result
        finally:
            pool.shutdown(cancel_futures=True)


class _ImageStatistics:
    """Accumulates sums and thumbnails over all images, from several threads."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.sums = np.zeros((manifest.size, manifest.size, manifest.channels), np.int64)
        self.squares = np.zeros_like(self.sums)
        self.sheet_rows = {split: evenly_spaced(manifest.count(split), SHEET_ROWS[split] * COLUMNS) for split in SPLITS}
        self.thumbnails: dict[tuple[str, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def add(self, split: str, first_row: int, images: np.ndarray) -> None:
        """Add `images`, of which the first is row `first_row` of its split."""
        sums = images.sum(axis=0, dtype=np.int64)
        squares = np.square(images, dtype=np.uint16).sum(axis=0, dtype=np.int64)  # 255 * 255 fits
        rows = self.sheet_rows[split]
        rows = rows[(rows >= first_row) & (rows < first_row + len(images))].tolist()
        size = min(self.manifest.size, MAX_THUMBNAIL_SIZE)
        thumbnails = {(split, row): fit_square(images[row - first_row], size, 3) for row in rows}
        with self._lock:
            self.sums += sums
            self.squares += squares
            self.thumbnails |= thumbnails

    def mean_and_sd(self) -> dict[str, list[float]]:
        """Return the mean and the standard deviation of each channel."""
        pixels = _count_images(self.manifest) * self.manifest.size**2
        mean = self.sums.sum(axis=(0, 1)) / pixels
        sd = np.sqrt(np.maximum(self.squares.sum(axis=(0, 1)) / pixels - mean**2, 0))
        return {"mean": mean.round(3).tolist(), "sd": sd.round(3).tolist()}

    def mean_image(self) -> bytes:
        """Return the mean of all images as PNG."""
        mean = np.rint(self.sums / _count_images(self.manifest)).astype(np.uint8)
        return to_png(grid([mean[None]]))

    def contact_sheet(self) -> bytes:
        """Return images evenly spaced over each split as PNG."""
        sections = []
        for split, rows in self.sheet_rows.items():
            thumbnails = [self.thumbnails[split, row] for row in rows.tolist()]
            lines = [np.stack(thumbnails[start : start + COLUMNS]) for start in range(0, len(thumbnails), COLUMNS)]
            if lines:
                sections.append((f"{split}: {len(thumbnails)} of {self.manifest.count(split):,}", lines))
        return to_png(titled_sheet(sections))


def _describe(facts: dict[str, Any]) -> str:
    lines = [f"{facts['dataset']} at {facts['uri']}"]
    for split, its in facts["splits"].items():
        shards = "shard " if its["shards"] == 1 else "shards"
        lines.append(f"  {split:<6} {its['images']:>10,} images {its['shards']:>6,} {shards} {its['bytes']:>16,} bytes")
    lines.append(f"form      {facts['size']} x {facts['size']} x {facts['channels']}, {facts['encoding']}")
    lines.append(
        "options   " + ", ".join(f"{key} {value}" for key, value in facts["options"].items() if value is not None)
    )
    lines.append(f"digest    {facts['digest']}")
    lines.append(f"mean      {'  '.join(f'{value:.2f}' for value in facts['mean'])}   of 255, by channel")
    lines.append(f"sd        {'  '.join(f'{value:.2f}' for value in facts['sd'])}")
    lines.append(f"pictures  {facts['contact_sheet']}, {facts['mean_image']}")
    return "\n".join(lines)
