"""The devices of a training: what they are, and for how many hours its workers have held them."""

import platform
import re
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from aecore.data.shuffle import World

CPUINFO = Path("/proc/cpuinfo")


def describe_devices(world: World, device: torch.device) -> str:
    """Return the devices of all workers, as in `8 x NVIDIA H100 80GB HBM3 on 2 hosts`. A collective."""
    own = (socket.gethostname(), device_name(device))
    workers = [own] * world.size
    if world.size > 1:
        dist.all_gather_object(workers, own)
    hosts = len({host for host, _ in workers})
    devices = " + ".join(f"{count} x {name}" for name, count in Counter(name for _, name in workers).items())
    return f"{devices} on {hosts} hosts" if hosts > 1 else devices


def device_name(device: torch.device) -> str:
    """Return the model of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if match := re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.machine()  # Linux on ARM names no model


def held_units(world: World, device: torch.device, gpu_share: float) -> tuple[str, float]:
    """Return the metric's name and how many units all workers hold: gpu_hours and GPUs, or core_hours and cores.

    `gpu_share` is the fraction of its GPU that each worker takes.
    """
    if device.type == "cuda":
        return "gpu_hours", world.size * gpu_share
    return "core_hours", world.size * torch.get_num_threads()  # Ray gives a worker as many threads as CPUs
