"""The devices of a training, and its share of them."""

from pathlib import Path

import pytest
import torch

from aecore.data.shuffle import World
from jobs.train import devices
from jobs.train.devices import device_name, find_devices

CPU = torch.device("cpu")


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
    assert find_devices(World(1, len(workers)), CPU).text == text


def test_hours_are_of_gpus_or_else_of_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        devices.dist, "all_gather_object", lambda target, own: target.__setitem__(slice(None), [own] * 2)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    on_cpus, on_gpus = find_devices(World(0, 2), CPU), find_devices(World(0, 2), torch.device("cuda"), 0.25)
    assert (on_cpus.metric, on_cpus.count) == ("core_hours", 6)
    assert (on_gpus.metric, on_gpus.count, on_gpus.text) == ("gpu_hours", 0.5, "2 x H100")
