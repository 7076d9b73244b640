"""A training worker: its loaders, the progress that they show, and what it writes after an epoch."""

from pathlib import Path

import numpy as np
import pytest

from aecore.config import Recipe
from aecore.training.loop import EpochEnd
from jobs.dataset import open_dataset
from jobs.run_store import RunStore
from jobs.train.devices import Devices
from jobs.train.worker import Worker, _save_epoch, open_loaders


def test_progress_shows_only_the_first_filling_of_the_node_cache(faces: Path):
    calls: list[tuple[str, int, int]] = []

    def record(done: int, total: int, text: str) -> None:
        calls.append((text, done, total))

    filling = [("train", done, 48) for done in (16, 32, 48)] + [("valid", 16, 16), ("test", 16, 16)]
    for expected in (filling, []):
        calls.clear()
        loaders = open_loaders(Recipe(), open_dataset(str(faces)), Worker(show_progress=record))
        assert [len(loader) for loader in loaders.values()] == [48, 16, 16]
        assert calls == [(f"filling the node cache: {split}", done, total) for split, done, total in expected]


def test_hours_of_the_devices_add_up_over_the_epochs(tmp_path: Path):
    run_store, devices = RunStore("mine", str(tmp_path), run_id=""), Devices("4 x H100", "gpu_hours", 4)
    for epoch, held_hours in ((1, 0.5), (2, 0.25)):
        _save_epoch(run_store, EpochEnd(epoch, {"train_loss": 1.0}, np.zeros(3), {}), devices, held_hours)
    assert [metrics["gpu_hours"] for metrics in run_store.epochs().values()] == pytest.approx([2.0, 3.0])
