"""Check what a training worker exports through Ray; tests/cluster/deploy/test_services.py reads it from there."""

import math
from typing import Any

import pytest
import torch

from aecore.training.loop import StepEnd
from jobs.train.metrics import TrainingMetrics


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Record the values of Ray's counters and gauges by name."""
    values: dict[str, float] = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, tag_keys

        def set_default_tags(self, tags: dict[str, str]) -> Any:
            assert tuple(tags) == self.tag_keys
            return self

        def set(self, value: float) -> None:
            values[self.name] = value

        def inc(self, value: float) -> None:
            values[self.name] = values.get(self.name, 0) + value

    for name in ("Counter", "Gauge"):
        monkeypatch.setattr(f"ray.util.metrics.{name}", Metric)
    return values


def step(samples: int) -> StepEnd:
    return StepEnd(samples, 1000, {"loss": 5.0, "recon": 4.0, "kl": 1.0}, data_wait=0.25)


def test_a_resumed_worker_counts_only_the_images_that_it_saw(exported: dict[str, float]):
    metrics = TrainingMetrics("run", 0, torch.device("cpu"))
    for samples in (500, 508, 524):
        metrics.observe_step(step(samples))
    assert exported == {
        "zpoint_train_images": 24, "zpoint_train_loss": 5.0, "zpoint_train_data_wait": 0.25,
        "zpoint_train_gpu_memory_bytes": 0.0, "zpoint_train_active": 1,
    }  # fmt: skip


def test_other_ranks_count_no_images(exported: dict[str, float]):
    metrics = TrainingMetrics("run", 1, torch.device("cpu"))
    metrics.observe_step(step(8))
    metrics.observe_step(step(16))
    assert "zpoint_train_images" not in exported


def test_a_closed_worker_is_not_active_and_has_no_loss(exported: dict[str, float]):
    metrics = TrainingMetrics("run", 0, torch.device("cpu"))
    metrics.observe_step(step(8))
    metrics.close()
    assert exported["zpoint_train_active"] == 0
    assert math.isnan(exported["zpoint_train_loss"])
