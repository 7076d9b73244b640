"""Measure the training's data loader against its limits in images/s: the JPEG decoder alone, and memory copies.

    python tests/benchmarks/loaders.py --dataset URI

The dataset should be of JPEGs, such as 20,000 of 96x96. Each function returns the best of several repetitions, since
other load on the machine can only slow them down.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import simplejpeg
import torch

from aecore.data.dataset import Dataset
from aecore.data.loaders import NodeLoader
from aecore.data.node_cache import open_cache
from aecore.data.shards import Manifest, load_manifest
from aecore.data.shuffle import BatchSampler
from aecore.data.threads import num_threads
from cluster.storage import open_uri

BATCH, REPEAT, ROUNDS = 256, 3, 3
CPU = torch.device("cpu")
_jpegs: list[list[bytes]] = []  # by shard; forked processes inherit them


def decode_ceiling(uri: str) -> float:
    """Return the rate of simplejpeg on all CPUs without I/O, into a reused buffer; threads or processes, the faster."""
    dataset = Dataset.open(*open_uri(uri))
    _jpegs[:] = [dataset.read_shard(shard)["image"].to_pylist() for shard in dataset.shards("train")]
    rates = []
    pools: list[Executor] = [ThreadPoolExecutor(num_threads()), ProcessPoolExecutor(num_threads(), get_context("fork"))]
    for pool in pools:
        with pool:
            rates.append(
                best_rate(dataset.count("train"), lambda pool=pool: list(pool.map(_decode, range(len(_jpegs)))))
            )
    _jpegs.clear()
    return max(rates)


def first_pass(uri: str) -> float:
    """Return the rate from an empty node cache to the last uint8 batch; the files are in the page cache."""
    rates = []
    for _ in range(REPEAT):
        with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
            started = time.perf_counter()
            loader = open_loader(uri, Path(folder))
            iterate(loader, 0)
            rates.append(len(loader) / (time.perf_counter() - started))
            del loader
    return max(rates)


def later_passes(uri: str) -> float:
    """Return the rate of a pass over a filled cache after a first pass in this process."""
    with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
        loader = open_loader(uri, Path(folder))
        iterate(loader, 0)
        epochs = iter(range(1, 1 + REPEAT))
        return best_rate(len(loader), lambda: iterate(loader, next(epochs)))


def copy_ceiling(uri: str) -> float:
    """Return the rate of numpy's `images[rows]` for batches of 256 random rows of an array in memory."""
    manifest = _manifest(uri)
    images = np.ones((manifest.count("train"), manifest.size, manifest.size, manifest.channels), np.uint8)
    plan = np.random.default_rng(0).permutation(len(images))
    return best_rate(len(images), lambda: [images[plan[at : at + BATCH]] for at in range(0, len(plan), BATCH)])


def open_loader(uri: str, folder: Path) -> NodeLoader:
    fs, root = open_uri(uri)
    images = open_cache(folder, Dataset.open(fs, root), "train")
    return NodeLoader(images, BatchSampler(0, BATCH), CPU)


def iterate(loader: NodeLoader, epoch: int) -> None:
    count = sum(len(batch.images) for batch in loader.batches(epoch))
    assert count == len(loader), (count, len(loader))


def best_rate(images: int, run: Callable[[], object]) -> float:
    rates = []
    for _ in range(REPEAT):
        started = time.perf_counter()
        run()
        rates.append(images / (time.perf_counter() - started))
    return max(rates)


def _decode(shard: int) -> None:
    buffer = None
    for data in _jpegs[shard]:
        buffer = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)


def _manifest(uri: str) -> Manifest:
    return load_manifest(*open_uri(uri))


def main() -> None:
    """Print each rate and its fraction of its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    uri = parser.parse_args().dataset
    # Alternating, so that other load on the machine affects all of them.
    rounds = [
        [measure(uri) for measure in (decode_ceiling, first_pass, copy_ceiling, later_passes)] for _ in range(ROUNDS)
    ]
    decode, first, copy, later = (max(rates) for rates in zip(*rounds, strict=True))
    print("| measurement | images/s | of its ceiling |\n|---|---|---|")
    print(f"| decode ceiling, {num_threads()} CPUs | {decode:,.0f} | |")
    print(f"| first pass | {first:,.0f} | {first / decode:.2f} |")
    print(f"| memory-copy ceiling | {copy:,.0f} | |")
    print(f"| later passes | {later:,.0f} | {later / copy:.2f} |")


if __name__ == "__main__":
    main()
