"""The devices of a training: what they are, and for how many hours its workers have held them."""

import platform
import re
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from aecore.data.shuffle import World

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Devices:
    """The devices that all workers hold: `text`, as in `8 x NVIDIA H100 80GB HBM3 on 2 hosts`, and how many.

    `count` is of GPUs, then `metric` is gpu_hours, or of cores, for core_hours.
    """

    text: str
    metric: str
    count: float


def find_devices(world: World, device: torch.device, gpu_share: float = 1.0) -> Devices:
    """Return the devices of all workers, each of which takes the fraction `gpu_share` of its GPU. A collective."""
    own = (socket.gethostname(), device_name(device))
    workers = [own] * world.size
    if world.size > 1:
        dist.all_gather_object(workers, own)
    hosts = len({host for host, _ in workers})
    devices = " + ".join(f"{count} x {name}" for name, count in Counter(name for _, name in workers).items())
    text = f"{devices} on {hosts} hosts" if hosts > 1 else devices
    if device.type == "cuda":
        return Devices(text, "gpu_hours", world.size * gpu_share)
    return Devices(text, "core_hours", world.size * torch.get_num_threads())  # Ray gives a worker a thread for each CPU


def device_name(device: torch.device) -> str:
    """Return the model of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if match := re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.machine()  # Linux on ARM names no model
