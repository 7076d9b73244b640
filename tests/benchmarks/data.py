"""Compare data pipelines: images/s from JPEGs on disk and on S3 to uint8 batches in the training process.

    python tests/benchmarks/data.py --images 20000 [--celeba FOLDER] [--rounds 3]

writes CelebA's faces (official layout, repeated as needed; without it drawn faces, whose JPEGs are half as long) in the
format of each library, serves them from an S3 server on loopback too, and runs each library in a process of its own,
one after another. Each rate is the best of the rounds. The libraries are no dependencies of zpoint: install them into
a temporary environment (pip install litdata webdataset mosaicml-streaming), else they are skipped.
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

import loaders  # noqa: E402

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
    parser.add_argument("--run", nargs=3, metavar=("NAME", "ROOT", "SCRATCH"), help=argparse.SUPPRESS)
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
                for root in (str(folder / "data"), "s3://bench"):
                    if root.startswith("s3") and name in LOCAL_ONLY:
                        continue
                    rows.append(measure_in_subprocess(name, root, folder / "scratch" / f"{len(rows)}"))
                    shutil.rmtree(folder / "scratch", ignore_errors=True)
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        server.terminate()
        server.wait()
    print(table(rows, args.images))


def contenders() -> list[str]:
    from peers import PEERS

    return [*OURS, *PEERS]


def measure(name: str, root: str, scratch: str) -> dict[str, float]:
    """Return the images/s of the first pass, without a cache, and of later passes."""
    from peers import PEERS

    if name == CEILINGS:
        return {"first": loaders.decode_ceiling(f"{root}/zpoint"), "later": loaders.copy_ceiling(f"{root}/zpoint")}
    Path(scratch).mkdir(parents=True, exist_ok=True)
    warm_up(name)
    started = time.perf_counter()
    batches = (OURS | PEERS)[name](root, Path(scratch))
    rates = []
    for _ in range(1 + LATER_PASSES):
        count = count_images(batches)
        rates.append(count / (time.perf_counter() - started))
        started = time.perf_counter()
    return {"first": rates[0], "later": sorted(rates[1:])[len(rates[1:]) // 2], "images": count}


def warm_up(name: str) -> None:
    """Import libraries and start Ray before the clock starts."""
    import pyarrow.fs
    import simplejpeg
    import torch
    import torchvision

    assert all((pyarrow.fs, simplejpeg, torch, torchvision))
    if name.startswith("Ray"):
        import ray
        import ray.data

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def count_images(batches: Iterable[Any]) -> int:
    count = 0
    for batch in batches:
        images = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list | tuple) else batch
        assert str(images.dtype).endswith("uint8")
        assert images[0, 0, 0, 0] >= 0  # reads the pixel
        count += len(images)
    return count


def measure_in_subprocess(name: str, root: str, scratch: Path) -> dict[str, Any]:
    storage = "S3" if root.startswith("s3") else "local"
    command = [sys.executable, __file__, "--run", name, root, str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    try:
        return {"name": name, "storage": storage} | json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {
            "name": name,
            "storage": storage,
            "error": (done.stderr.strip() or "?")[-int(os.environ.get("SHOWN", 200)) :],
        }


def prepare(root: Path, count: int, celeba: Path | None) -> None:
    """Write the same `count` JPEGs in each format below `root`; zpoint's shards in `root/zpoint`."""
    import ray
    from ingest import copy_celeba
    from peers import WRITERS
    from pyarrow.fs import LocalFileSystem

    from aecore.data.dataset import Dataset
    from jobs.ingest.job import ingest

    with tempfile.TemporaryDirectory() as source:
        if celeba:
            copy_celeba(celeba, -(-count // 4_500), Path(source))
        limit = -(-count * 5 // 4)  # 0.8 of both datasets are in the split train
        ingest("celeba" if celeba else "generated", source if celeba else None, str(root / "zpoint"), limit=limit)
    ray.shutdown()
    dataset = Dataset.open(LocalFileSystem(), str(root / "zpoint"))
    images = [data for shard in dataset.shards("train") for data in dataset.read_shard(shard)["image"].to_pylist()]
    for write in WRITERS:
        try:
            write(images, root)
        except ImportError as error:
            print(f"skipped: {write.__name__} ({error})", file=sys.stderr)


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
    for (name, storage), group in itertools.groupby(sorted(rows, key=_name_and_storage), _name_and_storage):
        rounds = list(group)
        errors = [row["error"] for row in rounds if "error" in row]
        first, later = (max(row.get(key, 0) for row in rounds) for key in ("first", "later"))
        lines.append(f"| {name} | {storage} | {errors[0] if errors else f'{first:,.0f} | {later:,.0f}'} |")
    return "\n".join(lines)


def _name_and_storage(row: dict[str, Any]) -> tuple[str, str]:
    return row["name"], row["storage"]


def zpoint(root: str, scratch: Path) -> Iterable[Any]:
    from peers import Passes

    loader = loaders.open_loader(f"{root}/zpoint", scratch)
    epochs = itertools.count()
    return Passes(lambda: (batch.images for batch in loader.batches(next(epochs))))


CEILINGS = "limits: decoding without I/O; numpy's gather"
OURS: dict[str, Any] = {CEILINGS: None, "zpoint": zpoint}
LOCAL_ONLY = {CEILINGS, "ImageFolder + DataLoader"}

if __name__ == "__main__":
    main()
