"""The training's input against what limits it, images/s: the decoder's ceiling, first and later passes, memory copies.

    python tests/benchmarks/loaders.py --dataset URI

The dataset should be of JPEGs, for example 20,000 of 96x96. Each function gives the best of some
repetitions, since other work on the machine only ever takes away.
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
from aecore.data.node_cache import num_threads, open_cache
from aecore.data.shards import Manifest, load_manifest, read_shard
from aecore.data.shuffle import BatchSampler
from cluster.storage import open_uri

BATCH, REPEAT, ROUNDS = 256, 3, 3
CPU = torch.device("cpu")
_jpegs: list[list[bytes]] = []  # by shard; forked processes find them here


def decode_ceiling(uri: str) -> float:
    """simplejpeg on all CPUs with no I/O, into one reused buffer each; in threads or in processes, the better."""
    fs, root = open_uri(uri)
    manifest = load_manifest(fs, root)
    _jpegs[:] = [read_shard(fs, root, shard)["image"].to_pylist() for shard in manifest.shards("train")]
    rates = []
    pools: list[Executor] = [ThreadPoolExecutor(num_threads()), ProcessPoolExecutor(num_threads(), get_context("fork"))]
    for pool in pools:
        with pool:
            rates.append(best(manifest.count("train"), lambda pool=pool: list(pool.map(_decode, range(len(_jpegs))))))
    _jpegs.clear()
    return max(rates)


def first_pass(uri: str) -> float:
    """From an empty cache to the last uint8 batch of 256 in this process; the files' bytes are in the page cache."""
    rates = []
    for _ in range(REPEAT):
        with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
            began = time.perf_counter()
            feed = open_feed(uri, Path(folder))
            go_through(feed, 0)
            rates.append(len(feed) / (time.perf_counter() - began))
            del feed
    return max(rates)


def later_passes(uri: str) -> float:
    """A pass over a filled cache that this process has gone through once."""
    with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
        feed = open_feed(uri, Path(folder))
        go_through(feed, 0)
        epochs = iter(range(1, 1 + REPEAT))
        return best(len(feed), lambda: go_through(feed, next(epochs)))


def copy_ceiling(uri: str) -> float:
    """numpy's `images[rows]` for batches of 256 random rows of an array in memory."""
    manifest = _manifest(uri)
    images = np.ones((manifest.count("train"), manifest.size, manifest.size, manifest.channels), np.uint8)
    plan = np.random.default_rng(0).permutation(len(images))
    return best(len(images), lambda: [images[plan[at : at + BATCH]] for at in range(0, len(plan), BATCH)])


def open_feed(uri: str, folder: Path) -> NodeLoader:
    fs, root = open_uri(uri)
    images = open_cache(folder, Dataset.open(fs, root), "train")
    return NodeLoader(images, BatchSampler(0, BATCH), CPU)


def go_through(feed: NodeLoader, epoch: int) -> None:
    seen = sum(len(batch.images) for batch in feed.batches(epoch))
    assert seen == len(feed), (seen, len(feed))


def best(images: int, work: Callable[[], object]) -> float:
    rates = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        work()
        rates.append(images / (time.perf_counter() - began))
    return max(rates)


def _decode(shard: int) -> None:
    buffer = None
    for data in _jpegs[shard]:
        buffer = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)


def _manifest(uri: str) -> Manifest:
    return load_manifest(*open_uri(uri))


def main() -> None:
    """Print each figure and its share of its ceiling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    uri = parser.parse_args().dataset
    # In turns, so that what else the machine does falls on all of them alike.
    rounds = [
        [measure(uri) for measure in (decode_ceiling, first_pass, copy_ceiling, later_passes)] for _ in range(ROUNDS)
    ]
    decode, first, copy, later = (max(rates) for rates in zip(*rounds, strict=True))
    print("| what | images/s | of its ceiling |\n|---|---|---|")
    print(f"| decode ceiling, {num_threads()} CPUs | {decode:,.0f} | |")
    print(f"| first pass | {first:,.0f} | {first / decode:.2f} |")
    print(f"| memory-copy ceiling | {copy:,.0f} | |")
    print(f"| later passes | {later:,.0f} | {later / copy:.2f} |")


if __name__ == "__main__":
    main()
