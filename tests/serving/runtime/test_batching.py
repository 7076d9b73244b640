"""Dynamic batches of concurrent requests."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from serving.runtime import admission
from serving.runtime.admission import Overloaded
from serving.runtime.batching import Batcher
from serving.runtime.metrics import EndpointMetrics


@pytest.fixture
def clock(monkeypatch):
    """Replace the module's clock by one that only a batch advances."""
    fake = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(admission, "time", SimpleNamespace(perf_counter=lambda: fake.seconds))
    return fake


def double(items):
    return items * 2


def make_items(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def test_concurrent_requests_share_batches_and_get_their_own_results():
    batch_sizes, lock = [], threading.Lock()

    def batch_fn(batch):
        with lock:
            batch_sizes.append(len(batch))
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_batch_size=16)
        requests = [make_items(n, seed) for seed, n in enumerate([3, 1, 40, 7, 1, 1, 16, 2])]
        return requests, await asyncio.gather(*map(batcher, requests))

    requests, results = asyncio.run(run())
    assert max(batch_sizes) <= 16
    assert len(batch_sizes) < sum(-(-len(request) // 16) for request in requests)
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(result, request * 2)


def test_a_failing_batch_fails_only_its_own_requests():
    batches = []

    def batch_fn(batch):
        batches.append(batch)
        if (batch == 666).any():
            raise RuntimeError("no")
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn)
        with pytest.raises(RuntimeError, match="no"):
            await batcher(np.full((1, 3), 666, np.float32))
        cancelled = asyncio.ensure_future(batcher(make_items(1)))
        other = asyncio.ensure_future(batcher(make_items(2)))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await other

    np.testing.assert_array_equal(asyncio.run(run()), make_items(2) * 2)
    assert [len(batch) for batch in batches] == [1, 2]  # the cancelled one is not computed


def test_requests_behind_a_failing_batch_are_answered_and_it_leaves_no_wait(clock):
    def batch_fn(batch):
        clock.seconds += len(batch)
        if (batch == 666).any():
            raise RuntimeError("no")
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_batch_size=2, max_wait_s=10)
        await batcher(make_items(2))  # 1 s per item
        failing = [batcher(np.full((2, 3), 666, np.float32)) for _ in range(3)]
        results = await asyncio.gather(*failing, batcher(make_items(2)), return_exceptions=True)
        assert [type(result) for result in results] == [RuntimeError] * 3 + [np.ndarray]
        return await asyncio.gather(*(batcher(make_items(2, seed)) for seed in range(6)))

    assert len(asyncio.run(run())) == 6  # the last one waits for 10 s, with those of the failed ones it would be 16


def test_requests_whose_items_do_not_concatenate_fail_and_block_nobody():
    async def run():
        batcher = Batcher("decode", double)
        first = asyncio.ensure_future(batcher(make_items(1)))
        await asyncio.sleep(0)
        others = [batcher(items) for items in (make_items(1), np.zeros((1, 4, 4), np.float32))]  # in one batch
        results = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 60)
        assert [type(result) for result in results] == [ValueError, ValueError]
        return await first, await batcher(make_items(2))

    np.testing.assert_array_equal(asyncio.run(run())[1], make_items(2) * 2)


def test_throughput_is_that_of_recent_batches(clock):
    """After a slow start (a page fault, a busy machine) the estimate forgets it within some batches."""
    seconds_per_item = 10.0

    def batch_fn(batch):
        clock.seconds += seconds_per_item * len(batch)
        return double(batch)

    async def run():
        nonlocal seconds_per_item
        batcher = Batcher("decode", batch_fn, max_batch_size=1, max_wait_s=10)
        await batcher(make_items(1))
        seconds_per_item = 0.1
        for _ in range(20):
            await batcher(make_items(1))
        return await asyncio.gather(*(batcher(make_items(1)) for _ in range(30)))

    assert len(asyncio.run(run())) == 30  # all would wait for 3 s; by the mean of all batches, for 17 s


def test_refused_requests_are_counted(clock):
    def batch_fn(batch):
        clock.seconds += len(batch)
        return double(batch)

    async def run():
        batcher = Batcher("encode", batch_fn, max_batch_size=1, max_wait_s=1, metrics=metrics)
        await batcher(make_items(1))
        return await asyncio.gather(*(batcher(make_items(1)) for _ in range(5)), return_exceptions=True)

    metrics = EndpointMetrics("1")
    assert [isinstance(result, Overloaded) for result in asyncio.run(run())] == [False, False, True, True, True]
    lines = metrics.exposition().decode().splitlines()
    assert 'zpoint_shed_total{operation="encode",replica="1"} 3.0' in lines
    assert 'zpoint_items_total{operation="encode",replica="1"} 3.0' in lines
    assert 'zpoint_busy_seconds_total{operation="encode",replica="1"} 3.0' in lines
    assert 'zpoint_waiting_items{operation="encode",replica="1"} 0.0' in lines


def test_requests_beyond_max_wait_are_refused_and_admitted_ones_are_answered(clock):
    def batch_fn(batch):
        clock.seconds += 0.02 * len(batch)
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_batch_size=4, max_wait_s=0.5)
        await batcher(make_items(4))  # measures the throughput
        results = await asyncio.gather(*(batcher(make_items(4, seed)) for seed in range(40)), return_exceptions=True)
        await batcher(make_items(1))  # the overload has passed
        return results

    results = asyncio.run(run())
    refused = [result for result in results if isinstance(result, Overloaded)]
    answered = [(seed, result) for seed, result in enumerate(results) if isinstance(result, np.ndarray)]
    assert (len(refused), len(answered)) == (33, 7)  # 25 items take 0.5 s
    for seed, result in answered:
        np.testing.assert_array_equal(result, make_items(4, seed) * 2)


@pytest.mark.parametrize(("n", "wait_s", "retry_after_s"), [(11, 11, 1), (25, 25, 15), (100, 100, 30)])
def test_refused_request_may_retry_once_the_wait_is_short_enough(clock, n, wait_s, retry_after_s):
    def batch_fn(batch):
        clock.seconds += len(batch)
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_batch_size=2, max_wait_s=10)
        await batcher(make_items(2))  # 1 s per item
        admitted = asyncio.ensure_future(batcher(make_items(n)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"server overloaded; retry after {retry_after_s} s") as refused:
            await batcher(make_items(1))
        await admitted
        return refused.value.retry_after_s

    assert asyncio.run(run()) == pytest.approx(min(30, wait_s - 10))


def test_one_slow_item_after_full_batches_refuses_no_request(clock):
    """A busy moment of the machine is no overload: per item, the full batches of a rush are far faster."""
    first_single = True

    def batch_fn(batch):
        nonlocal first_single
        clock.seconds += 0.0001 * len(batch)
        if len(batch) == 1 and first_single:
            first_single = False
            clock.seconds += 0.5
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_wait_s=2.0)
        await asyncio.gather(*(batcher(make_items(64, seed)) for seed in range(8)))
        await batcher(make_items(1))
        return await asyncio.gather(*(batcher(make_items(1, seed)) for seed in range(100)))

    assert len(asyncio.run(run())) == 100


def test_a_slow_first_item_of_a_new_version_refuses_no_request(clock):
    """A swap on busy cores: the new model's first batch is one item, which takes long, and others gather meanwhile."""

    def batch_fn(batch):
        clock.seconds += 0.5 if len(batch) == 1 else 0.003 * len(batch)
        return double(batch)

    async def run():
        batcher = Batcher("decode", batch_fn, max_wait_s=10)
        first = asyncio.ensure_future(batcher(make_items(1)))
        while not batcher._admission._recent_items:  # until the first batch has ended
            await asyncio.sleep(0)
        requests = [batcher(make_items(1, seed)) for seed in range(32)]
        return await asyncio.gather(first, *requests)

    assert len(asyncio.run(run())) == 33


def test_a_cancelled_request_leaves_nothing_in_the_queue():
    async def run():
        batcher = Batcher("decode", double, max_wait_s=0.0)
        for _ in range(3):
            task = asyncio.ensure_future(batcher(make_items(2)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await batcher(make_items(2))

    np.testing.assert_array_equal(asyncio.run(run()), make_items(2) * 2)
