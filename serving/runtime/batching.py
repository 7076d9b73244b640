"""Dynamic batches of concurrent requests: while the model computes one batch, the next one gathers. No timer.

`serve.batch` of Ray 2.60 closes a batch before the model is free, so batches grow only with its timer: at 60 requests/s
on 2 busy cores it answers 37/s with a median of 2 s (1.5 to 2.3 z-points a batch), this one 57/s with 0.1 to 0.3 s. It
also needs a Serve replica, so the app could not be tested without Ray.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from serving.runtime.admission import AdmissionControl
from serving.runtime.metrics import EndpointMetrics

BatchFn = Callable[[np.ndarray], np.ndarray]


class Batcher:
    """Make the blocking `batch_fn` awaitable and batch its concurrent calls. Batches count items, not requests.

    `batch_fn` maps an array (n, ...) to an array (n, ...), n <= max_batch_size; it runs in `executor`, one call at a
    time. A request that would wait longer than `max_wait_s` is refused at once with Overloaded. `operation` labels the
    metrics.
    """

    def __init__(
        self, operation: str, batch_fn: BatchFn, *, executor: Executor | None = None, max_batch_size: int = 64,
        max_wait_s: float = 10.0, metrics: EndpointMetrics | None = None,
    ):  # fmt: skip
        self._batch_fn, self._max_batch_size = batch_fn, max_batch_size
        self._admission = AdmissionControl(
            operation, executor=executor, batch_size=max_batch_size, max_wait_s=max_wait_s, metrics=metrics
        )
        self._queue: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._batch_task: asyncio.Task[None] | None = None

    async def __call__(self, items: np.ndarray) -> np.ndarray:
        """Return `batch_fn` of `items` (n, ...), n >= 1. Raises its errors, or Overloaded."""
        with self._admission.admit(len(items)):
            if len(items) <= self._max_batch_size:
                return await self._enqueue(items)
            chunks = np.split(items, range(self._max_batch_size, len(items), self._max_batch_size))
            # One chunk after the other, so that other requests get their turn between the chunks of a large one.
            return np.concatenate([await self._enqueue(chunk) for chunk in chunks])

    def _enqueue(self, items: np.ndarray) -> asyncio.Future[np.ndarray]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._queue.append((items, future))
        if self._batch_task is None:
            self._batch_task = loop.create_task(self._run_batches())
        return future

    async def _run_batches(self) -> None:
        """Run batches until the queue is empty."""
        try:
            while batch := self._next_batch():
                inputs, futures = zip(*batch, strict=True)
                try:
                    items = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
                    outputs = await self._admission.run(len(items), self._batch_fn, items)
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                    continue
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
