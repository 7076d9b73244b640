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

SAMPLED_STEPS = 8  # one step in 8 is timed


class GradientExchange:
    """The state of DDP's communication hook: averages gradients in float32 or bf16 and times the wait for the mean.

    The wait lasts from when all of the worker's gradients are ready until all means are there. It is taken by the
    clock, on a GPU by events on its streams, so that no step waits for it.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.average: Callable[..., Future[Tensor]] = bf16_compress_hook if precision == "bf16" else allreduce_hook
        self.device, self._steps = device, 0
        # Of timed steps: when the last bucket was ready, and when each one's mean was there. Seconds, or CUDA events.
        self._waits: list[tuple[Any, list[Any]]] = []
        self._ends: list[Any] = []  # of the open step

    def wrap(self, module: nn.Module) -> DistributedDataParallel:
        """Return `module`, all of whose parameters get a gradient in each step, in DistributedDataParallel."""
        wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, static_graph=True)
        wrapped.register_comm_hook(self, GradientExchange._average_bucket)
        return wrapped

    def pop_wait(self) -> float | None:
        """Return the seconds that the steps since the last call waited, extrapolated from the timed ones.

        None if none was timed, as in an epoch of one step.
        """
        seconds = [max(_seconds(start, end) for end in ends) for start, ends in self._waits]
        total = self._steps * fmean(seconds) if seconds else None
        self._steps = 0
        self._waits.clear()
        return total

    def _average_bucket(self, bucket: GradBucket) -> Future[Tensor]:
        timed = self._steps % SAMPLED_STEPS == 1  # not an epoch's first, which waits for a worker that evaluates longer
        self._steps += bucket.is_last()
        if not timed:
            return self.average(dist.group.WORLD, bucket)
        ends = self._ends
        if bucket.is_last():
            self._waits.append((self._now(), ends))
            self._ends = []

        def stop(future: Future[Tensor]) -> Tensor:
            ends.append(self._now())
            return future.value()

        return self.average(dist.group.WORLD, bucket).then(stop)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
