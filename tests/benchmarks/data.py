"""The data way against its peers: images/s from JPEGs on disk and on S3 to uint8 batches in the training process.

    python tests/benchmarks/data.py --images 20000 [--celeba FOLDER] [--rounds 3]

takes CelebA's faces (in its official layout, repeated as often as it takes; without it, drawn faces, whose JPEGs are
half as long), writes them in every library's own format, serves them from an S3 server on loopback too, and runs each
contender in a process of its own, one after another; each figure is the best of the rounds. The peers are no
dependencies of zpoint; install them into a throwaway environment (pip install litdata webdataset mosaicml-streaming),
else they are left out.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(Path(__file__).parent)]

import feed  # noqa: E402

LATER_PASSES = 3
S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--celeba", type=Path, help="folder with CelebA in its official layout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="contenders to run (all)")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "PLACE", "SCRATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(*args.run)))
        return
    with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
        compare(Path(folder), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    os.environ.update(S3 | {"ZPOINT_HOME": str(folder / "home"), "RAY_USAGE_STATS_ENABLED": "0"})
    prepare(folder / "data", args.images, args.celeba)
    server, url = serve_s3(folder / "data")
    os.environ.update({"AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url})
    rows = []
    try:
        for _ in range(args.rounds):
            for name in args.only or contenders():
                for place in (str(folder / "data"), "s3://bench"):
                    if place.startswith("s3") and name in LOCAL_ONLY:
                        continue
                    rows.append(in_own_process(name, place, folder / "scratch" / f"{len(rows)}"))
                    shutil.rmtree(folder / "scratch", ignore_errors=True)
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        server.terminate()
        server.wait()
    print(table(rows, args.images))


def contenders() -> list[str]:
    from peers import PEERS

    return [*OURS, *PEERS]


def measure(name: str, place: str, scratch: str) -> dict[str, float]:
    """Images/s of the first pass, from nothing, and of the passes after it."""
    from peers import PEERS

    if name == CEILINGS:
        return {"first": feed.decode_ceiling(f"{place}/zpoint"), "later": feed.copy_ceiling(f"{place}/zpoint")}
    Path(scratch).mkdir(parents=True, exist_ok=True)
    warm_up(name)
    started = time.perf_counter()
    batches = (OURS | PEERS)[name](place, Path(scratch))
    rates = []
    for _ in range(1 + LATER_PASSES):
        seen = run_through(batches)
        rates.append(seen / (time.perf_counter() - started))
        started = time.perf_counter()
    return {"first": rates[0], "later": sorted(rates[1:])[len(rates[1:]) // 2], "images": seen}


def warm_up(name: str) -> None:
    """Imports and Ray's start are no part of a pass."""
    import pyarrow.fs
    import simplejpeg
    import torch
    import torchvision

    assert all((pyarrow.fs, simplejpeg, torch, torchvision))
    if name.startswith("Ray"):
        import ray
        import ray.data

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def run_through(batches: Iterable[Any]) -> int:
    seen = 0
    for batch in batches:
        images = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
        assert str(images.dtype).endswith("uint8")
        assert images[0, 0, 0, 0] >= 0  # touch it
        seen += len(images)
    return seen


def in_own_process(name: str, place: str, scratch: Path) -> dict[str, Any]:
    where = "S3" if place.startswith("s3") else "local"
    command = [sys.executable, __file__, "--run", name, place, str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    try:
        return {"name": name, "where": where} | json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {
            "name": name,
            "where": where,
            "error": (done.stderr.strip() or "?")[-int(os.environ.get("SHOWN", 200)) :],
        }


def prepare(root: Path, count: int, celeba: Path | None) -> None:
    """The same `count` JPEGs in every format below `root`; zpoint's shards in `root/zpoint`."""
    import ray
    from ingest import many_copies
    from peers import WRITERS
    from pyarrow.fs import LocalFileSystem

    from aecore.data.shards import load_manifest, read_shard
    from jobs.ingest.job import ingest

    with tempfile.TemporaryDirectory() as source:
        if celeba:
            many_copies(celeba, -(-count // 4_500), Path(source))
        limit = -(-count * 5 // 4)  # of which 0.8, by both sets' splits, are for training
        ingest("celeba" if celeba else "generated", source if celeba else None, str(root / "zpoint"), limit=limit)
    ray.shutdown()
    fs, place = LocalFileSystem(), str(root / "zpoint")
    manifest = load_manifest(fs, place)
    images = [data for shard in manifest.shards("train") for data in read_shard(fs, place, shard)["image"].to_pylist()]
    for write in WRITERS:
        try:
            write(images, root)
        except ImportError as error:
            print(f"left out: {write.__name__} ({error})", file=sys.stderr)


def serve_s3(root: Path) -> tuple[subprocess.Popen[bytes], str]:
    import socket

    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    client = boto3.client("s3", endpoint_url=url)
    for _ in range(100):
        try:
            client.create_bucket(Bucket="bench")
            break
        except Exception:
            time.sleep(0.2)
    for path in sorted(root.rglob("*")):
        if path.is_file() and "folder" not in path.relative_to(root).parts:
            client.upload_file(str(path), "bench", str(path.relative_to(root)), ExtraArgs={"ACL": "public-read"})
    return server, url


def table(rows: list[dict[str, Any]], count: int) -> str:
    lines = [
        f"{date.today()}, {os.cpu_count()} cores, {platform.processor() or platform.machine()}, {count} JPEGs",
        "| contender | from | first pass, images/s | later passes, images/s |",
        "|---|---|---|---|",
    ]
    for (name, where), of_one in itertools.groupby(sorted(rows, key=_who), _who):
        tries = list(of_one)
        errors = [row["error"] for row in tries if "error" in row]
        first, later = (max(row.get(key, 0) for row in tries) for key in ("first", "later"))
        lines.append(f"| {name} | {where} | {errors[0] if errors else f'{first:,.0f} | {later:,.0f}'} |")
    return "\n".join(lines)


def _who(row: dict[str, Any]) -> tuple[str, str]:
    return row["name"], row["where"]


def zpoint(place: str, scratch: Path) -> Iterable[Any]:
    from peers import Passes

    images = feed.open_feed(f"{place}/zpoint", scratch)
    epochs = itertools.count()
    return Passes(lambda: (batch.images for batch in images.batches(next(epochs))))


CEILINGS = "limits: decoding without I/O; numpy's gather"
OURS: dict[str, Any] = {CEILINGS: None, "zpoint": zpoint}
LOCAL_ONLY = {CEILINGS, "ImageFolder + DataLoader"}

if __name__ == "__main__":
    main()
