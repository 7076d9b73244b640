"""Threads: how many this process may use, and calls in a pool whose results are yielded in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def num_threads() -> int:
    """Return the threads that this process may use: OMP_NUM_THREADS, which Ray sets for its workers, else its CPUs."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdigit() and int(threads) else len(os.sched_getaffinity(0))


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Generator[R, None, None]:
    """Yield `function(item)` of each of `items` in order, while at most `ahead` further calls wait or run in `pool`.

    An item is taken when its call is submitted. Calls that have not started are cancelled when a call fails or the
    iterator is closed.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for call in pending:
            call.cancel()
