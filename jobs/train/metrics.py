"""Metrics of a training worker on Ray's exporter, which Prometheus scrapes on each node as `ray_zpoint_train_*`."""

import math
from typing import Any

import torch

from aecore.training.loop import StepEnd, memory_usage


class TrainingMetrics:
    """The metrics of one worker of a run, with the labels `run` and `rank`. Close it when the worker's loop ends."""

    def __init__(self, run: str, rank: int, device: torch.device) -> None:
        from ray.util.metrics import Counter, Gauge

        labels = {"run": run, "rank": str(rank)}

        def make(kind: type, name: str, description: str) -> Any:
            return kind(f"zpoint_train_{name}", description, tuple(labels)).set_default_tags(labels)

        self._images = make(Counter, "images", "images that all workers together trained on; of rank 0")
        self._loss = make(Gauge, "loss", "mean loss of the open epoch's images on this worker, nats")
        self._data_wait = make(Gauge, "data_wait", "share of the open epoch's time that the worker waited for images")
        self._gpu_memory = make(Gauge, "gpu_memory_bytes", "peak of the GPU memory that torch allocated; 0 on a CPU")
        self._active = make(Gauge, "active", "1 while the worker trains")
        self._rank, self._device, self._samples = rank, device, -1

    def observe_step(self, step: StepEnd) -> None:
        """Take a step that has metrics."""
        if self._rank == 0 and step.samples > self._samples >= 0:  # the first one may resume a run
            self._images.inc(step.samples - self._samples)
        self._samples = step.samples
        self._loss.set(step.metrics["loss"])
        self._data_wait.set(step.data_wait)
        self._gpu_memory.set(memory_usage(self._device).get("gpu_memory_mb", 0.0) * 1e6)
        self._active.set(1)

    def close(self) -> None:
        """Mark the worker as no longer training: its process may train another run, and Ray drops no series."""
        self._active.set(0)
        for gauge in (self._loss, self._data_wait, self._gpu_memory):
            gauge.set(math.nan)
