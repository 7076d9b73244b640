"""The exchange of gradients between DDP's workers, and how long a worker waits for it."""

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

SAMPLED_STEPS = 8  # one of so many is timed


class GradientExchange:
    """The state of DDP's communication hook: averages gradients in float32 or bf16 and times the wait for the mean.

    The wait lasts from when the worker's last gradients are ready to their mean over all workers. It is taken by the
    clock, on a GPU by events on its streams, so that no step waits for it.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.average: Callable[..., Future[Tensor]] = bf16_compress_hook if precision == "bf16" else allreduce_hook
        self.device, self._steps = device, 0
        self._waits: list[tuple[Any, Any]] = []  # begin and end of the timed ones: seconds, or CUDA events

    def wrap(self, module: nn.Module) -> DistributedDataParallel:
        """Return `module`, all of whose parameters get a gradient in each step, in DistributedDataParallel."""
        wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=True)
        wrapped.register_comm_hook(self, GradientExchange._average_bucket)
        return wrapped

    def pop_wait(self) -> float:
        """Return the seconds that the steps since the last call waited, extrapolated from the timed ones."""
        seconds = [
            end - start if isinstance(start, float) else start.elapsed_time(end) / 1000 for start, end in self._waits
        ]
        total = self._steps * fmean(seconds) if seconds else 0.0
        self._steps = 0
        self._waits.clear()
        return total

    def _average_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        self._steps += bucket.is_last()
        # Not an epoch's first step: it waits for a worker that evaluates longer.
        if not bucket.is_last() or self._steps % SAMPLED_STEPS != 2:
            return self.average(dist.group.WORLD, bucket)
        start = self._now()

        def stop(future: Future[Tensor]) -> Tensor:
            self._waits.append((start, self._now()))
            return future.value()

        return self.average(dist.group.WORLD, bucket).then(stop)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
