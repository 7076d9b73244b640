"""Predict the images/s of a training on 1 to 256 GPUs, and check the prediction on hosts with limited links.

    python -m tests.benchmarks.scaling                              # the table of docs/scaling.md
    python -m tests.benchmarks.scaling --check --mbit 100 400       # root, iproute2: 2 and 3 hosts on this machine

A step takes the time of a worker's own step and of a ring all-reduce of the gradients: 2 (n - 1) / n times their bytes
over the slowest link, and 2 (n - 1) messages. The two do not overlap: nearly all gradients are in DDP's last bucket,
which is ready when the backward pass ends. An epoch adds validation, scores on rank 0 and the copy of a checkpoint.
The check trains by zpoint's loop over gloo, between network namespaces whose links `tc` limits. A worker's own step is
what the metric `allreduce_wait` leaves of that training's steps, so that other load on the machine does not matter.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from aecore.config import Recipe, check_recipe
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler, World
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training import loop

GIGABIT = 1e9 / 8  # bytes/s
EFFICIENCY = 0.94  # of a link: the headers of Ethernet, IP and TCP
GPUS_PER_HOST, NVLINK_BYTES = 8, 200e9  # bytes/s that NCCL's ring reaches over NVLink, assumed
MESSAGE_S = 15e-6  # of one message between hosts, assumed
GPU_IMAGES_PER_SECOND, GPU_STEP_S = 141_507, 3.6e-3  # compiled, at 512 images; the shortest step, bound by launches
EPOCH_S = (30.4 - 2_500_000 / 99_034) / 25  # beside the steps, of the reference run: tests/benchmarks/README.md
CHECK_STEPS, CHECK_BATCH, CHECK_SHAPE = 6, 4, ImageShape(48, 3)
CHECK_MODEL = {"model": {"z_dim": 1200}}  # many weights and few FLOP: the links of the check are slow


@dataclass(frozen=True)
class Training:
    """The costs of a training beside its links. `local_step_s`: a worker's own step on `local_batch` images."""

    local_batch: int
    local_step_s: float
    gradient_bytes: float
    images: int = 10_000_000  # an epoch
    epoch_s: float = 0.0  # of an epoch beside its steps

    def images_per_second(self, workers: int, link_bytes: float, message_s: float = MESSAGE_S) -> float:
        """Return the rate of a whole epoch of `workers` on a ring of links of `link_bytes` a second."""
        exchange_s = allreduce_seconds(self.gradient_bytes, workers, link_bytes, message_s)
        steps = math.ceil(self.images / (workers * self.local_batch))
        return self.images / (steps * (self.local_step_s + exchange_s) + self.epoch_s)


def allreduce_seconds(nbytes: float, workers: int, link_bytes: float, message_s: float) -> float:
    """Return the seconds of a ring all-reduce."""
    return 2 * (workers - 1) * (nbytes / workers / link_bytes + message_s)


def gradient_bytes(recipe: Recipe, shape: ImageShape, width: int = 4) -> int:
    return width * sum(parameter.numel() for parameter in build_model(recipe, shape).parameters())


def predict() -> str:
    """Return a table of images/s by GPUs and link, 512 images for each GPU, float32 / bf16 gradients."""
    recipe, shape = check_recipe({"model": {"z_dim": 200, "norm": "batch"}}), ImageShape(96, 3)
    columns = {"NVLink": NVLINK_BYTES} | {f"{rate} Gb/s": rate * GIGABIT * EFFICIENCY for rate in (400, 100, 25)}
    step_s = max(GPU_STEP_S, 512 / GPU_IMAGES_PER_SECOND)
    trainings = [
        Training(512, step_s, gradient_bytes(recipe, shape, width), epoch_s=EPOCH_S) for width in (4, 2)
    ]  # fmt: skip
    lines = [f"| GPUs | {' | '.join(columns)} |", "|---:" * (1 + len(columns)) + "|"]
    for workers in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        cells = []
        for link, link_bytes in columns.items():
            inside = link == "NVLink"
            if inside and workers > GPUS_PER_HOST:
                cells.append("")
                continue
            message_s = MESSAGE_S / 3 if inside else MESSAGE_S
            rates = [training.images_per_second(workers, link_bytes, message_s) / 1e6 for training in trainings]
            cells.append(f"{rates[0]:.2f} / {rates[1]:.2f}" if workers > 1 else f"{rates[0]:.2f}")
        lines.append(f"| {workers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(mbits: list[int]) -> str:
    """Return a table of predicted and measured images/s of 2 and 3 workers, each on a host of its own."""
    from tests.hosts.machines import make_hosts, missing_requirement

    if reason := missing_requirement():
        raise SystemExit(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the hosts end with the block
    nbytes = gradient_bytes(check_recipe(CHECK_MODEL), CHECK_SHAPE)
    lines = [
        "| workers | link, Mb/s | own step, s | predicted, images/s | measured | ratio | wait for gradients |",
        "|---:" * 7 + "|",
    ]
    names = ("host0", "host1", "host2")
    with tempfile.TemporaryDirectory(prefix="zsc", dir="/tmp") as folder, make_hosts(Path(folder), names) as hosts:
        for mbit in mbits:
            for host in hosts.values():
                limit = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "100ms"]
                subprocess.run(["tc", "-n", host.namespace, "qdisc", "replace", "dev", "eth0", *limit], check=True)
            for workers in (2, 3):
                metrics = _train_on(list(hosts.values())[:workers])
                measured, wait = metrics["images_per_second"], metrics["allreduce_wait"]
                step_s = metrics["epoch_seconds"] * (1 - wait) / CHECK_STEPS
                training = Training(CHECK_BATCH, step_s, nbytes, CHECK_STEPS * CHECK_BATCH * workers)
                predicted = training.images_per_second(workers, mbit * 1e6 / 8 * EFFICIENCY, 1e-4)
                lines.append(
                    f"| {workers} | {mbit} | {step_s:.2f} | {predicted:.2f} | {measured:.2f} "
                    f"| {predicted / measured:.2f} | {wait:.0%} |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _train_on(hosts: list[Any]) -> dict[str, float]:
    """Train with one worker on each host; return the metrics of rank 0."""
    processes = []
    for rank, host in enumerate(hosts):
        worker = ["--worker", rank, len(hosts), hosts[0].address]
        command = host.command([sys.executable, "-m", "tests.benchmarks.scaling", *worker], {})
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    return json.loads(outputs[0].splitlines()[-1])


def train(rank: int, size: int, address: str) -> None:
    """Train two epochs in one of `size` processes and print the metrics of the second."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://{address}:29500", rank=rank, world_size=size)
    recipe = check_recipe(CHECK_MODEL | {"optim": {"epochs": 100, "batch": CHECK_BATCH * size}})
    shape = (CHECK_STEPS * recipe.optim.batch, CHECK_SHAPE.size, CHECK_SHAPE.size, CHECK_SHAPE.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    world, device = World(rank, size), torch.device("cpu")
    sampler = BatchSampler(0, recipe.optim.batch, world)
    loaders = [NodeLoader(images[:count], sampler, device) for count in (len(images), 0)]
    run = loop.TrainingRun(recipe, build_model(recipe, CHECK_SHAPE), *loaders, world)
    run.distribute()
    epochs = (event for event in loop.fit(run) if isinstance(event, loop.EpochEnd))
    next(epochs)
    print(json.dumps(next(epochs).metrics), flush=True)
    os._exit(0)  # the other workers may have left the process group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="also measure, on hosts of this machine")
    parser.add_argument("--mbit", type=int, nargs="+", default=[100, 400], help="links of the check")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return train(int(args.worker[0]), int(args.worker[1]), args.worker[2])
    print(f"{date.today()}, million images/s, float32 / bf16 gradients:\n\n{predict()}")
    if args.check:
        print(f"\n{check(args.mbit)}")


if __name__ == "__main__":
    main()
