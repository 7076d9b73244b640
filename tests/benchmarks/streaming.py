"""Measure `data.cache=none`: images/s that a training streams through Ray Data, its CPU time and private memory.

    python tests/benchmarks/streaming.py [--rows 200000] [--epochs 3] [--dataset URI]

A dataset of `--rows` JPEGs of 96x96 is written to a temporary folder: 2,048 drawn faces, repeated in shards of 1,024.
One worker of a TorchTrainer reads batches of 256 and does nothing else. It holds half of Ray's CPUs, as a training
does; with ZPOINT_CPUS=3 two cores have two tasks at a time. After each epoch one process per core decodes the same
shards: the ceiling. Ray runs at niceness 0, so that other work of lower priority changes little.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.fs as pafs  # noqa: E402

from aecore.config import Recipe, check_recipe  # noqa: E402
from aecore.data.dataset import Dataset  # noqa: E402
from aecore.data.images import encode_image  # noqa: E402
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard  # noqa: E402
from aecore.data.synthetic_faces import draw_face  # noqa: E402
from cluster.storage import open_uri  # noqa: E402

FACES, SIZE, SHARD_ROWS, BATCH = 2_048, 96, 1_024, 256
SAMPLE_S = 2.0  # between two samples of the memory, which take 20 ms of CPU
GROUPS = ("training", "tasks", "rest of Ray")


def write_dataset(root: str, rows: int) -> None:
    """Write `rows` JPEGs of `FACES` drawn faces as the split train, without attributes."""
    with multiprocessing.Pool() as pool:
        faces = pool.map(encode_face, range(FACES))
    fs, shards = pafs.LocalFileSystem(), []
    for first in range(0, rows, SHARD_ROWS):
        indices = range(first, min(rows, first + SHARD_ROWS))
        names = pa.table({"name": [f"{index:07d}" for index in indices]})
        table = shard_table(names, [faces[(index + first // FACES) % FACES] for index in indices])
        shards.append(write_shard(fs, root, f"train-{len(shards):05d}.parquet", table))
    splits = {"train": tuple(shards)}
    save_manifest(
        fs, root, Manifest(dataset="faces", options={}, size=SIZE, channels=3, encoding="jpeg", splits=splits)
    )


def encode_face(index: int) -> bytes:
    return encode_image(draw_face(0, index, SIZE)[0], "jpeg")


def decode_all(uri: str, processes: int) -> tuple[float, float]:
    """Return the images/s of `processes` that decode the split train and their CPU seconds, both without reading."""
    dataset = Dataset.open(*open_uri(uri))
    with multiprocessing.Pool(processes) as pool:
        times = list(pool.imap_unordered(partial(decode_shard, dataset), dataset.shards("train")))
    seconds, cpu_s = np.sum(times, axis=0).tolist()
    return processes * dataset.count("train") / seconds, cpu_s


def decode_shard(dataset: Dataset, shard: Any) -> tuple[float, float]:
    """Return the seconds and CPU seconds of decoding `shard`."""
    images = dataset.read_shard(shard)["image"].to_pylist()
    started, cpu_started = time.perf_counter(), time.process_time()
    dataset.decode_rows(shard, images)
    return time.perf_counter() - started, time.process_time() - cpu_started


class Usage:
    """Measure CPU seconds and the largest private memory (RssAnon), by group of processes, of a worker's Ray."""

    def __enter__(self) -> "Usage":
        self.peak_mb: Counter[str] = Counter()
        self.before, _ = read_usage()
        self.ended, self.sampler = Event(), Thread(target=self._sample)
        self.sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.sampler.join()
        after, private_mb = read_usage()
        self.peak_mb |= private_mb
        self.cpu_s = {group: after[group] - self.before[group] for group in GROUPS}

    def _sample(self) -> None:
        while not self.ended.wait(SAMPLE_S):
            self.peak_mb |= read_usage()[1]


def read_usage() -> tuple[Counter[str], Counter[str]]:
    """Return CPU seconds and private MB of this worker, of Ray's tasks and of all other processes of this local Ray."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has exited
            processes[int(folder.name)] = read_process(folder)
    driver = processes[os.getppid()].parent  # of the raylet, which started this worker
    cpu_s, private_mb = Counter(), Counter()
    for pid, process in processes.items():
        ancestor = process.parent
        while ancestor in processes and ancestor != driver:
            ancestor = processes[ancestor].parent
        if ancestor == driver:
            is_task = process.title.startswith(("ray::IDLE", "ray::MapBatches"))
            group = "training" if pid == os.getpid() else "tasks" if is_task else "rest of Ray"
            cpu_s[group] += process.cpu_s
            private_mb[group] += process.private_mb
    return cpu_s, private_mb


class Process(NamedTuple):
    title: str
    parent: int
    cpu_s: float  # with that of its children that have exited
    private_mb: float


def read_process(folder: Path) -> Process:
    stat = (folder / "stat").read_text().rpartition(")")[2].split()
    rss_kb = re.search(r"RssAnon:\s+(\d+)", (folder / "status").read_text())
    ticks = sum(map(int, stat[11:15]))
    return Process(
        title=(folder / "cmdline").read_text(),
        parent=int(stat[1]),
        cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        private_mb=int(rss_kb[1]) / 1000 if rss_kb else 0,
    )


def stream(recipe: Recipe, epochs: int, cores: int, output: str) -> None:
    """Iterate over the split train in a worker of Ray Train; write a JSON line to `output` after each epoch."""
    from jobs.train.worker import Worker, open_loaders

    loader = open_loaders(recipe, Dataset.open(*open_uri(recipe.data.uri)), Worker(on_ray=True))["train"]
    for epoch in range(epochs):
        with Usage() as usage:
            started = time.perf_counter()
            count = sum(len(batch.images) for batch in loader.batches(epoch))
            seconds = time.perf_counter() - started
        assert count == len(loader), (count, len(loader))
        command = [sys.executable, __file__, "--decode", str(cores), "--dataset", recipe.data.uri]
        ceiling, decode_s = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        cpu_us = {group: cpu_s / count * 1e6 for group, cpu_s in {"decode": decode_s, **usage.cpu_s}.items()}
        row = {"images": count, "rate": count / seconds, "ceiling": ceiling, "cpu_us": cpu_us}
        with open(output, "a") as file:
            print(json.dumps(row | {"private_mb": usage.peak_mb}), file=file)


def measure(uri: str, epochs: int, folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of each epoch of a TorchTrainer with one worker that streams the dataset at `uri`."""
    from cluster.ray_connection import connect, disconnect

    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # as in `make_trainer`
    connect(niceness=0)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.ray_data import streaming_datasets
    from jobs.train.placement import worker_resources

    recipe = check_recipe({"data": {"uri": uri, "cache": "none"}, "optim": {"batch": BATCH}})
    resources = worker_resources(recipe.scale, streaming=True)
    output = folder / "epochs.jsonl"
    try:
        TorchTrainer(
            lambda: stream(recipe, epochs, os.cpu_count() or 1, str(output)),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker=resources),
            run_config=RunConfig(storage_path=str(folder / "ray")),
            **streaming_datasets(recipe, Dataset.open(*open_uri(uri)).manifest),
        ).fit()
    finally:
        disconnect()
    return [json.loads(line) for line in output.read_text().splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{date.today()}, {os.cpu_count()} cores, {rows[0]['images']:,} JPEGs of {SIZE}x{SIZE}",
        "| epoch | streamed, images/s | decode ceiling | ratio | CPU us of an image: decode "
        f"| {', '.join(GROUPS)} | ratio | private MB: {', '.join(GROUPS)} |",
        "|---:" * 8 + "|",
    ]
    for epoch, row in enumerate(rows, 1):
        decode_us, *cpu_us = (row["cpu_us"][group] for group in ("decode", *GROUPS))
        cells = [f"{epoch}", f"{row['rate']:,.0f}", f"{row['ceiling']:,.0f}", f"{row['rate'] / row['ceiling']:.2f}"]
        cells += [f"{decode_us:.0f}", ", ".join(f"{us:.0f}" for us in cpu_us), f"{decode_us / sum(cpu_us):.2f}"]
        cells.append(", ".join(f"{row['private_mb'][group]:,.0f}" for group in GROUPS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dataset", help="stream this dataset instead of drawn faces")
    parser.add_argument("--decode", type=int, metavar="PROCESSES", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        return print(json.dumps(decode_all(args.dataset, args.decode)))
    with tempfile.TemporaryDirectory(prefix="zpoint-bench-") as folder:
        os.environ["ZPOINT_HOME"] = f"{folder}/home"
        uri = args.dataset or f"{folder}/data"
        if not args.dataset:
            write_dataset(uri, args.rows)
        print(table(measure(uri, args.epochs, Path(folder))))


if __name__ == "__main__":
    main()
