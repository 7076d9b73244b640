"""What devices a training has, and how much of them."""

from pathlib import Path

import pytest
import torch

from aecore.data.shuffle import World
from jobs.train import devices
from jobs.train.devices import describe_devices, device_name, held_units

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_processor_is_named_by_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(devices, "CPUINFO", cpuinfo)
    assert device_name(CPU) == devices.platform.machine()
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 143\nmodel name\t: Fast Chip 9 @ 3 GHz\nprocessor\t: 1\n")
    assert device_name(CPU) == "Fast Chip 9 @ 3 GHz"


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ([("a", "H100"), ("a", "H100")], "2 x H100"),
        ([("a", "H100"), ("b", "H100"), ("b", "A10")], "2 x H100 + 1 x A10 on 2 hosts"),
    ],
)
def test_devices_of_all_workers_are_counted(workers: list, text: str, monkeypatch: pytest.MonkeyPatch):
    def gather(target: list, own: tuple[str, str]) -> None:
        assert len(target) == len(workers)
        assert own == (devices.socket.gethostname(), device_name(CPU))
        target[:] = workers

    monkeypatch.setattr(devices.dist, "all_gather_object", gather)
    assert describe_devices(World(1, len(workers)), CPU) == text


def test_hours_are_of_gpus_or_else_of_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert held_units(World(0, 2), GPU, 0.25) == ("gpu_hours", 0.5)
    assert held_units(World(0, 2), CPU, 1.0) == ("core_hours", 6)
