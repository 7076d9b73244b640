"""Compare `zpoint ingest celeba` from the zip with the same loop on all cores without a framework.

    python tests/benchmarks/ingest.py [FOLDER] [--copies 10] [--rounds 3]

FOLDER holds CelebA in its official layout (ZPOINT_TEST_DATA/celeba by default); a zip with several copies of its images
makes a round long enough to measure. Ingest and loop decode, crop, resize and encode by the same functions; the loop
reads with Python's zipfile. Ingest also writes shards, fsyncs them and keeps records; the loop discards its bytes. The
clock starts when the first of ingest's workers is ready, or when the loop's processes have read the zip's directory.
Ingest and loop alternate, so that other load affects both.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import zipfile
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from aecore.data.images import CENTRE, JPEG_QUALITY, decode_image, encode_image, fit_square  # noqa: E402

SHARD_ROWS, SIZE = 1024, 96


def copy_celeba(folder: Path, copies: int, target_folder: Path) -> None:
    """Write to `target_folder` a CelebA with `copies` copies of the images in `folder`."""
    split_by_name = dict(line.split() for line in (folder / "list_eval_partition.txt").read_text().splitlines())
    lines = []
    with (
        zipfile.ZipFile(folder / "img_align_celeba.zip") as source,
        zipfile.ZipFile(target_folder / "img_align_celeba.zip", "w") as target,
    ):
        for copy in range(copies):
            for member in source.infolist():
                name = Path(member.filename).name
                if name in split_by_name:
                    target.writestr(f"img_align_celeba/{copy:02d}{name}", source.read(member))
                    lines.append(f"{copy:02d}{name} {split_by_name[name]}")
    (target_folder / "list_eval_partition.txt").write_text("\n".join(lines))


@cache
def open_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def encode_members(task: tuple[str, list[str]]) -> int:
    """Read, crop and encode members of a zip, (path, names), as ingest does; return their number."""
    path, names = task
    n_encoded = 0
    for name in names:
        image = decode_image(open_zip(path).read(name))
        n_encoded += len(encode_image(fit_square(image, SIZE, 3, CENTRE), "jpeg", JPEG_QUALITY)) > 0
    return n_encoded


def measure_loop(pool, source: str) -> float:
    """Return the images/s of the loop on `pool`."""
    path = f"{source}/img_align_celeba.zip"
    names = open_zip(path).namelist()
    tasks = [(path, names[start : start + SHARD_ROWS]) for start in range(0, len(names), SHARD_ROWS)]
    for _ in pool.imap_unordered(encode_members, [(path, names[:8])] * 16):  # open the zip in every process
        pass
    started = time.perf_counter()
    num_images = sum(pool.imap_unordered(encode_members, tasks))
    assert num_images == len(names)
    return num_images / (time.perf_counter() - started)


def measure_ingest(source: str, root: Path) -> tuple[float, float]:
    """Return the images/s of ingest from its first ready worker on, and with the start of its workers."""
    from jobs.ingest.job import ingest

    progress_times: list[float] = []
    shutil.rmtree(root, ignore_errors=True)
    result = ingest(
        "celeba", source, str(root), size=SIZE, shard_rows=SHARD_ROWS,
        progress=lambda done, total: progress_times.append(time.perf_counter()),
    )  # fmt: skip
    seconds = time.perf_counter() - progress_times[0]
    return sum(result["counts"].values()) / seconds, result["images_per_second"]


def compare(folder: Path, copies: int, rounds: int) -> list[tuple[float, float, float]]:
    """Return the images/s of each round: ingest, ingest with the start of its workers, the loop."""
    from cluster.ray_connection import connect, disconnect

    cpus = int(os.environ.get("ZPOINT_CPUS") or os.cpu_count() or 1)
    rates = []
    with tempfile.TemporaryDirectory() as temporary, multiprocessing.get_context("spawn").Pool(cpus) as pool:
        warmup_source, source, root = (Path(temporary, name) for name in ("warmup", "source", "dataset"))
        for path, n_copies in ((warmup_source, 1), (source, copies)):
            path.mkdir()
            copy_celeba(folder, n_copies, path)
        connect()
        try:
            measure_ingest(str(warmup_source), root)  # starts Ray's worker processes and their imports
            for index in range(rounds):
                (ready_rate, total_rate), loop_rate = measure_ingest(str(source), root), measure_loop(pool, str(source))
                rates.append((ready_rate, total_rate, loop_rate))
                print(
                    f"round {index + 1}: ingest {ready_rate:,.0f}/s "
                    f"(with the start of its workers {total_rate:,.0f}/s), loop {loop_rate:,.0f}/s, "
                    f"ratio {ready_rate / loop_rate:.2f} ({total_rate / loop_rate:.2f})",
                    flush=True,
                )
        finally:
            disconnect()
    return rates


def main() -> None:
    data = os.environ.get("ZPOINT_TEST_DATA", REPO.parent / "shared" / "data")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(data, "celeba"))
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rates = compare(args.folder, args.copies, args.rounds)
    print("\n| | images/s, best round | ratio to the loop |\n|---|---:|---:|")
    ready_rate, total_rate, loop_rate = (max(column) for column in zip(*rates, strict=True))
    print(f"| the loop, {os.cpu_count()} processes, nothing written | {loop_rate:,.0f} | 1.00 |")
    print(f"| zpoint ingest | {ready_rate:,.0f} | {ready_rate / loop_rate:.2f} |")
    print(f"| zpoint ingest, with the start of its workers | {total_rate:,.0f} | {total_rate / loop_rate:.2f} |")
    print(f"ratios by round: {', '.join(f'{ready_rate / loop_rate:.2f}' for ready_rate, _, loop_rate in rates)}")


if __name__ == "__main__":
    main()
