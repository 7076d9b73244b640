"""A training worker: its loaders, the progress that they show, and what it writes after an epoch."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from aecore.config import Recipe
from aecore.data.cache_eviction import CacheSpaceError
from aecore.training.loop import EpochEnd
from jobs.dataset import open_dataset
from jobs.run_store import RunStore
from jobs.train.devices import Devices
from jobs.train.worker import Worker, _save_epoch, check_caches, open_loaders


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


def test_a_cache_too_small_for_all_splits_is_refused_before_the_first_is_filled(
    faces: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset, calls = open_dataset(str(faces)), []
    worker = Worker(show_progress=lambda *args: calls.append(args))
    monkeypatch.setenv("ZPOINT_CACHE_MAX", str((48 + 16 + 16) * 16 * 16 * 3 - 1))
    with pytest.raises(CacheSpaceError, match="ZPOINT_CACHE_MAX"):
        open_loaders(Recipe(), dataset, worker)
    assert not calls
    assert len(open_loaders(Recipe.model_validate({"data": {"cache": "none"}}), dataset, worker)["train"]) == 48
    monkeypatch.setenv("ZPOINT_CACHE_MAX", str((48 + 16 + 16) * 16 * 16 * 3))
    open_loaders(Recipe(), dataset, worker)
    assert len(calls) == 5


@pytest.mark.parametrize(("cache", "refused"), [("auto", False), ("device", False), ("node", True)])
def test_splits_that_a_gpu_takes_need_no_space_together(
    cache: str, refused: bool, faces: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset, recipe = open_dataset(str(faces)), Recipe.model_validate({"data": {"cache": cache}})
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1 << 30, 0))
    monkeypatch.setenv("ZPOINT_CACHE_MAX", str(48 * 16 * 16 * 3))  # of the largest split
    with pytest.raises(CacheSpaceError) if refused else nullcontext():
        check_caches(recipe, dataset, torch.device("cuda"))


def test_gpu_memory_too_small_for_all_splits_is_refused_before_the_first_is_filled(
    faces: Path, monkeypatch: pytest.MonkeyPatch
):
    calls, recipe = [], Recipe.model_validate({"data": {"cache": "device"}})
    worker = Worker(device=torch.device("cuda"), show_progress=lambda *args: calls.append(args))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (80 * 16 * 16 * 3 - 1, 0))  # of 80 images
    with pytest.raises(ValueError, match=r"data\.cache=device: the images take"):
        open_loaders(recipe, open_dataset(str(faces)), worker)
    assert not calls


def test_hours_of_the_devices_add_up_over_the_epochs(tmp_path: Path):
    run_store, devices = RunStore("mine", str(tmp_path), run_id=""), Devices("4 x H100", "gpu_hours", 4)
    for epoch, held_hours in ((1, 0.5), (2, 0.25)):
        _save_epoch(run_store, EpochEnd(epoch, {"train_loss": 1.0}, np.zeros(3), {}), devices, held_hours)
    assert [metrics["gpu_hours"] for metrics in run_store.epochs().values()] == pytest.approx([2.0, 3.0])
