"""Admission control: refuse requests that would wait too long for a model, the face detector or neighbours."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from serving.runtime.metrics import EndpointMetrics

T = TypeVar("T")
DECAY = 0.8  # weight of earlier calls in the throughput estimate, per call
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 30.0


class Overloaded(Exception):
    """The request would wait too long in the queue; retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float):
        super().__init__(f"server overloaded; retry after {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class AdmissionControl:
    """Run blocking calls in `executor` and admit requests whose wait is at most `max_wait_s`, by recent throughput.

    Both count items, such as z-points. `batch_size` is the most items of one call, `first_estimate` the items and
    seconds that count as those of earlier calls at first. `operation` labels the metrics.
    """

    def __init__(
        self, operation: str, *, executor: Executor | None = None, batch_size: int = 64, max_wait_s: float = 10.0,
        first_estimate: tuple[float, float] = (0, 0.0), metrics: EndpointMetrics | None = None,
    ):  # fmt: skip
        self._operation, self._executor, self._metrics = operation, executor, metrics or EndpointMetrics()
        self._batch_size, self._max_wait_s = batch_size, max_wait_s
        self._pending_items = 0  # of requests that are not answered yet
        self._recent_items, self._recent_seconds = first_estimate  # decayed sums over calls

    @contextmanager
    def admit(self, num_items: int) -> Iterator[None]:
        """Count a request's items as pending inside the block. Raises Overloaded if it would wait too long."""
        # Per item of full batches: an item alone costs many times its share of one, and more on a busy machine. So the
        # first batch of a new version, often of one item, leads to no refusal.
        wait_s = self._pending_items * self._recent_seconds / max(self._recent_items, self._batch_size)
        if wait_s > self._max_wait_s:
            self._metrics.count_shed(self._operation)
            raise Overloaded(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s - self._max_wait_s)))
        self._pending_items += num_items
        self._metrics.add_waiting(self._operation, num_items)
        try:
            yield
        finally:
            self._pending_items -= num_items
            self._metrics.add_waiting(self._operation, -num_items)

    async def run(self, num_items: int, function: Callable[..., T], *args: object) -> T:
        """Return `function(*args)`, which processes `num_items` of admitted requests. Raises its errors."""
        loop = asyncio.get_running_loop()
        result, seconds = await loop.run_in_executor(self._executor, _timed, function, *args)
        self._recent_items = DECAY * self._recent_items + num_items
        self._recent_seconds = DECAY * self._recent_seconds + seconds
        self._metrics.observe_batch(self._operation, num_items, seconds)
        return result


def _timed(function: Callable[..., T], *args: object) -> tuple[T, float]:
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start
