"""Dynamic batches of concurrent requests: while the model computes one batch, the next one gathers. No timer.

`serve.batch` of Ray 2.60 closes a batch before the model is free, so batches grow only with its timer: at 60 requests/s
on 2 busy cores it answers 37/s with a median of 2 s (1.5 to 2.3 z-points a batch), this one 57/s with 0.1 to 0.3 s. It
also needs a Serve replica, so the app could not be tested without Ray.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from serving.runtime.metrics import EndpointMetrics

BatchFn = Callable[[np.ndarray], np.ndarray]
DECAY = 0.8  # weight of earlier batches in the throughput estimate, per batch
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 30.0


class Overloaded(Exception):
    """The request would wait too long in the queue; retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float):
        super().__init__(f"server overloaded; retry after {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Batcher:
    """Make the blocking `batch_fn` awaitable and batch its concurrent calls. Batches count items, not requests.

    `batch_fn` maps an array (n, ...) to an array (n, ...), n <= max_batch_size; it runs in `executor`, one call at a
    time. A request that would wait longer than `max_wait_s` is refused at once with Overloaded. `name` labels the
    metrics.
    """

    def __init__(
        self, name: str, batch_fn: BatchFn, *, executor: Executor | None = None, max_batch_size: int = 64,
        max_wait_s: float = 10.0, metrics: EndpointMetrics | None = None,
    ):  # fmt: skip
        self._name, self._batch_fn, self._executor = name, batch_fn, executor
        self._max_batch_size, self._max_wait_s = max_batch_size, max_wait_s
        self._metrics = metrics or EndpointMetrics()
        self._queue: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._batch_task: asyncio.Task[None] | None = None
        self._pending_items = 0  # of requests that are not answered yet
        self._recent_items, self._recent_seconds = 0.0, 0.0  # decayed sums over batches

    async def __call__(self, items: np.ndarray) -> np.ndarray:
        """Return `batch_fn` of `items` (n, ...), n >= 1. Raises its errors, or Overloaded."""
        # Per item of full batches: an item alone costs many times its share of one, and more on a busy machine. So the
        # first batch of a new version, often of one item, refuses nobody.
        wait_s = self._pending_items * self._recent_seconds / max(self._recent_items, self._max_batch_size)
        if wait_s > self._max_wait_s:
            self._metrics.count_shed(self._name)
            raise Overloaded(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s - self._max_wait_s)))
        self._pending_items += len(items)
        self._metrics.add_waiting(self._name, len(items))
        try:
            if len(items) <= self._max_batch_size:
                return await self._enqueue(items)
            chunks = np.split(items, range(self._max_batch_size, len(items), self._max_batch_size))
            # One chunk after the other, so that other requests get their turn between the chunks of a large one.
            return np.concatenate([await self._enqueue(chunk) for chunk in chunks])
        finally:
            self._pending_items -= len(items)
            self._metrics.add_waiting(self._name, -len(items))

    def _enqueue(self, items: np.ndarray) -> asyncio.Future[np.ndarray]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._queue.append((items, future))
        if self._batch_task is None:
            self._batch_task = loop.create_task(self._run_batches(loop))
        return future

    async def _run_batches(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run batches until the queue is empty."""
        try:
            while batch := self._next_batch():
                inputs, futures = zip(*batch, strict=True)
                try:
                    items = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
                    outputs, seconds = await loop.run_in_executor(self._executor, _timed, self._batch_fn, items)
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                    continue
                self._recent_items = DECAY * self._recent_items + len(items)
                self._recent_seconds = DECAY * self._recent_seconds + seconds
                self._metrics.observe_batch(self._name, len(items), seconds)
                start = 0
                for request_items, future in zip(inputs, futures, strict=True):
                    if not future.done():
                        future.set_result(outputs[start : start + len(request_items)])
                    start += len(request_items)
        finally:
            self._batch_task = None

    def _next_batch(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]:
        """Take requests from the queue, at most max_batch_size items in all; empty if the queue is."""
        batch, batch_size = [], 0
        while self._queue and batch_size + len(self._queue[0][0]) <= self._max_batch_size:
            items, future = self._queue.popleft()
            if not future.cancelled():  # the client has disconnected
                batch.append((items, future))
                batch_size += len(items)
        return batch


def _timed(batch_fn: BatchFn, items: np.ndarray) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    return batch_fn(items), time.perf_counter() - start
