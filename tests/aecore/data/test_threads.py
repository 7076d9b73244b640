import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from aecore.data.threads import map_ahead, num_threads


def test_threads_are_those_that_ray_gives_a_worker(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert num_threads() == len(os.sched_getaffinity(0))


def test_results_come_in_order_with_as_many_calls_ahead_as_named():
    taken = []

    def items():
        for item in range(6):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        counts = [(result, len(taken)) for result in map_ahead(pool, lambda item: item * item, items(), 2)]
        assert list(map_ahead(pool, str, [], 2)) == []
    assert counts == [(0, 3), (1, 4), (4, 5), (9, 6), (16, 6), (25, 6)]


@pytest.mark.parametrize("fails", [False, True])
def test_calls_that_have_not_started_are_cancelled_if_one_fails_or_the_iterator_is_closed(fails: bool):
    started, go_on = [], threading.Event()

    def call(item: int) -> int:
        started.append(item)
        if item == 0:
            if fails:
                raise ValueError("the first one")
            return item
        go_on.wait(10)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, call, range(9), 5)
        if fails:
            with pytest.raises(ValueError, match="the first one"):
                next(results)
        else:
            assert next(results) == 0
            results.close()
        go_on.set()
    assert started in ([0], [0, 1])
