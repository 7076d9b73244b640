"""`zpoint ingest celeba` from the zip against the same loop on all cores without a framework.

    python tests/benchmarks/ingest.py [FOLDER] [--copies 10] [--rounds 3]

FOLDER holds CelebA in its official layout (ZPOINT_TEST_DATA/celeba by default); its images are put several times into
one zip, so that a round lasts. Both sides decode, cut, resize and encode with the same functions; the loop reads with
Python's zipfile. Ingest also writes shards, fsyncs them and keeps its records, the loop throws its bytes away. The
clock starts when the loop's processes, which have read the zip's list, or the first of ingest's workers, are up.
Rounds alternate, so that other load hits both sides.
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

ROWS, SIZE = 1024, 96


def many_copies(folder: Path, copies: int, to: Path) -> None:
    """Write a CelebA of `copies` times the images of the one in `folder`."""
    split = dict(line.split() for line in (folder / "list_eval_partition.txt").read_text().splitlines())
    lines = []
    with (
        zipfile.ZipFile(folder / "img_align_celeba.zip") as source,
        zipfile.ZipFile(to / "img_align_celeba.zip", "w") as target,
    ):
        for copy in range(copies):
            for member in source.infolist():
                name = Path(member.filename).name
                if name in split:
                    target.writestr(f"img_align_celeba/{copy:02d}{name}", source.read(member))
                    lines.append(f"{copy:02d}{name} {split[name]}")
    (to / "list_eval_partition.txt").write_text("\n".join(lines))


@cache
def opened(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def remake(work: tuple[str, list[str]]) -> int:
    """Do to the members `names` of a zip what a task of ingest does, without writing."""
    path, names = work
    done = 0
    for name in names:
        image = decode_image(opened(path).read(name))
        done += len(encode_image(fit_square(image, SIZE, 3, CENTRE), "jpeg", JPEG_QUALITY)) > 0
    return done


def plain_rate(pool, source: str) -> float:
    """Images a second of the loop on `pool`."""
    path = f"{source}/img_align_celeba.zip"
    names = opened(path).namelist()
    chunks = [(path, names[start : start + ROWS]) for start in range(0, len(names), ROWS)]
    for _ in pool.imap_unordered(remake, [(path, names[:8])] * 16):  # opens the zip in each process
        pass
    began = time.perf_counter()
    done = sum(pool.imap_unordered(remake, chunks))
    assert done == len(names)
    return done / (time.perf_counter() - began)


def ingest_rate(source: str, to: Path) -> tuple[float, float]:
    """Images a second of ingest: from when its first worker is up, and with the start of its workers."""
    from jobs.ingest.job import ingest

    ready: list[float] = []
    shutil.rmtree(to, ignore_errors=True)
    chosen = {"size": SIZE, "shard_rows": ROWS, "progress": lambda done, total: ready.append(time.perf_counter())}
    result = ingest("celeba", source, str(to), **chosen)
    return sum(result["counts"].values()) / (time.perf_counter() - ready[0]), result["images_per_second"]


def compare(folder: Path, copies: int, rounds: int) -> list[tuple[float, float, float]]:
    """Give, in images a second for each round: ingest, ingest with the start of its workers, the loop."""
    from cluster.ray_connection import connect, disconnect

    cpus = int(os.environ.get("ZPOINT_CPUS") or os.cpu_count() or 1)
    rates = []
    with tempfile.TemporaryDirectory() as made, multiprocessing.get_context("spawn").Pool(cpus) as pool:
        few, many, to = Path(made, "few"), Path(made, "many"), Path(made, "to")
        for place, number in ((few, 1), (many, copies)):
            place.mkdir()
            many_copies(folder, number, place)
        connect()
        try:
            ingest_rate(str(few), to)  # starts Ray's workers, which import what they need
            for number in range(rounds):
                (ours, whole), plain = ingest_rate(str(many), to), plain_rate(pool, str(many))
                rates.append((ours, whole, plain))
                print(
                    f"round {number + 1}: ingest {ours:,.0f}/s (with the start of its workers {whole:,.0f}/s), "
                    f"loop {plain:,.0f}/s, {ours / plain:.2f} ({whole / plain:.2f})",
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
    print("\n| | images/s, best round | of the loop |\n|---|---:|---:|")
    ours, whole, plain = (max(column) for column in zip(*rates, strict=True))
    print(f"| the loop, {os.cpu_count()} processes, nothing written | {plain:,.0f} | 1.00 |")
    print(f"| zpoint ingest | {ours:,.0f} | {ours / plain:.2f} |")
    print(f"| zpoint ingest, with the start of its workers | {whole:,.0f} | {whole / plain:.2f} |")
    print(f"ratios by round: {', '.join(f'{ours / plain:.2f}' for ours, _, plain in rates)}")


if __name__ == "__main__":
    main()
