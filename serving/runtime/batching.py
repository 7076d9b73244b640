"""Concurrent small requests worked on together: while one batch is in the model, the next gathers. No timer."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from serving.runtime.metrics import EndpointMetrics

BatchFn = Callable[[np.ndarray], np.ndarray]


class Overloaded(Exception):
    """More waits than is worked off in `patience` seconds; retry after `retry_after_s`."""

    def __init__(self, retry_after_s: float):
        super().__init__(f"server overloaded; retry after {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Batcher:
    """Makes a blocking `work` awaitable; the unit of a batch is the item (z-point, image), not the request.

    `work` maps an array (n, ...) to an array (n, ...), n <= most; it runs in `executor`, one call at a time.
    A request that would wait for longer than `patience` seconds is refused at once with Overloaded.
    """

    def __init__(
        self, name: str, work: BatchFn, *, executor: Executor | None = None, most: int = 64, patience: float = 10.0,
        metrics: EndpointMetrics | None = None,
    ):  # fmt: skip
        self._name, self._work, self._executor = name, work, executor
        self._most, self._patience, self._metrics = most, patience, metrics or EndpointMetrics()
        self._queue: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._admitted = 0  # items of requests that are not answered yet
        self._items, self._seconds = 0.0, 0.0  # of the batches of late, each counted a fifth less than the next

    async def __call__(self, items: np.ndarray) -> np.ndarray:
        """What `work` makes of `items` (n, ...), n >= 1; raises what it raises, or Overloaded."""
        # By items, not batches: one item alone takes many times its share of a batch, and more on a busy machine.
        wait = self._admitted * self._seconds / max(self._items, 1.0)
        if wait > self._patience:
            self._metrics.count_shed(self._name)
            raise Overloaded(min(30.0, max(1.0, wait - self._patience)))
        self._admitted += len(items)
        try:
            if len(items) <= self._most:
                return await self._piece(items)
            pieces = np.split(items, range(self._most, len(items), self._most))
            # One piece after the other, so that others' requests come in between those of a large one.
            return np.concatenate([await self._piece(piece) for piece in pieces])
        finally:
            self._admitted -= len(items)
            self._metrics.set_waiting(self._name, self._admitted)

    def _piece(self, items: np.ndarray) -> asyncio.Future[np.ndarray]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self._queue.append((items, future))
        if self._worker is None:
            self._worker = loop.create_task(self._run(loop))
        return future

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while batch := self._take():
                pieces, futures = zip(*batch, strict=True)
                items = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
                try:
                    made, seconds = await loop.run_in_executor(self._executor, _timed, self._work, items)
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                    continue
                self._note(len(items), seconds)
                start = 0
                for piece, future in zip(pieces, futures, strict=True):
                    if not future.done():
                        future.set_result(made[start : start + len(piece)])
                    start += len(piece)
        finally:
            self._worker = None

    def _take(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]:
        batch, count = [], 0
        while self._queue and count + len(self._queue[0][0]) <= self._most:
            items, future = self._queue.popleft()
            if not future.cancelled():  # whoever asked has gone
                batch.append((items, future))
                count += len(items)
        return batch

    def _note(self, items: int, seconds: float) -> None:
        self._items, self._seconds = 0.8 * self._items + items, 0.8 * self._seconds + seconds
        self._metrics.observe_batch(self._name, items, seconds)


def _timed(work: BatchFn, items: np.ndarray) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    return work(items), time.perf_counter() - began
