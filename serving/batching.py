"""Concurrent small requests decoded together: while one batch decodes, the next gathers. No timer."""

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np

Decode = Callable[[np.ndarray], np.ndarray]


class Batcher:
    """Makes a blocking `decode` awaitable; the unit of a batch is the z-point, not the request.

    `decode` maps float32 (n, z_dim) to uint8 (n, H, W, C), n <= max_points; it runs in a thread, one call at
    a time.
    """

    def __init__(self, decode: Decode, max_points: int = 64):
        self._decode, self._max_points = decode, max_points
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def decode(self, z: np.ndarray) -> np.ndarray:
        """Images uint8 (n, H, W, C) of z-points float32 (n, z_dim), n >= 1; raises what `decode` raises."""
        pieces = np.split(z, range(self._max_points, len(z), self._max_points))
        # One piece after the other, so that others' requests come in between those of a large one.
        done = [await self._decode_piece(piece) for piece in pieces]
        return done[0] if len(done) == 1 else np.concatenate(done)

    def _decode_piece(self, z: np.ndarray) -> asyncio.Future[np.ndarray]:
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((z, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return future

    async def _work(self) -> None:
        while batch := self._take():
            pieces, futures = zip(*batch, strict=True)
            try:
                images = await asyncio.to_thread(self._decode, np.concatenate(pieces))
            except Exception as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            ends = np.cumsum([len(piece) for piece in pieces])
            for future, part in zip(futures, np.split(images, ends[:-1]), strict=True):
                if not future.done():
                    future.set_result(part)
        self._worker = None

    def _take(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray]]]:
        batch, points = [], 0
        while self._waiting and points + len(self._waiting[0][0]) <= self._max_points:
            z, future = self._waiting.popleft()
            if not future.cancelled():  # whoever asked has gone
                batch.append((z, future))
                points += len(z)
        return batch
