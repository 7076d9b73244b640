"""Concurrent requests in common batches."""

import asyncio
import threading
import time

import numpy as np
import pytest

from serving.runtime.batching import Batcher, Overloaded


def double(items):
    return items * 2


def items(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def test_concurrent_requests_are_batched_and_get_their_own():
    sizes, lock = [], threading.Lock()

    def work(batch):
        with lock:
            sizes.append(len(batch))
        return double(batch)

    async def run():
        batcher = Batcher("work", work, most=16)
        requests = [items(n, seed) for seed, n in enumerate([1, 3, 40, 1, 1, 7, 16, 2])]
        return requests, await asyncio.gather(*map(batcher, requests))

    requests, answers = asyncio.run(run())
    assert max(sizes) <= 16
    assert len(sizes) < sum(-(-len(each) // 16) for each in requests)
    for each, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, each * 2)


def test_a_failing_batch_fails_its_requests_and_no_others():
    def work(batch):
        if (batch == 666).any():
            raise RuntimeError("no")
        return double(batch)

    async def run():
        batcher = Batcher("work", work)
        with pytest.raises(RuntimeError, match="no"):
            await batcher(np.full((1, 3), 666, np.float32))
        gone = asyncio.ensure_future(batcher(items(1)))
        kept = asyncio.ensure_future(batcher(items(2)))
        await asyncio.sleep(0)
        gone.cancel()
        return await kept

    np.testing.assert_array_equal(asyncio.run(run()), items(2) * 2)


def test_what_would_wait_too_long_is_refused_and_what_is_admitted_ends():
    def slow(batch):
        time.sleep(0.02 * len(batch))
        return double(batch)

    async def run():
        batcher = Batcher("work", slow, most=4, patience=0.5)
        await batcher(items(2))  # now it knows its pace
        answers = await asyncio.gather(*(batcher(items(4, seed)) for seed in range(40)), return_exceptions=True)
        await batcher(items(1))  # afterwards it takes requests again
        return answers

    answers = asyncio.run(run())
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    served = [(seed, answer) for seed, answer in enumerate(answers) if isinstance(answer, np.ndarray)]
    assert len(refused) + len(served) == 40
    assert 20 < len(refused) < 39
    assert all(1 <= error.retry_after_s <= 30 for error in refused)
    for seed, answer in served:
        np.testing.assert_array_equal(answer, items(4, seed) * 2)


def test_one_slow_item_after_full_batches_refuses_nobody():
    """The machine may be busy for a moment; by the item a batch is far quicker, and it is batches that a rush makes."""
    first_alone = True

    def work(batch):
        nonlocal first_alone
        if len(batch) == 1 and first_alone:
            first_alone = False
            time.sleep(0.5)
        return double(batch)

    async def run():
        batcher = Batcher("work", work, patience=2.0)
        await asyncio.gather(*(batcher(items(64, seed)) for seed in range(8)))
        await batcher(items(1))
        return await asyncio.gather(*(batcher(items(1, seed)) for seed in range(100)))

    assert len(asyncio.run(run())) == 100


def test_a_cancelled_request_leaves_no_trace():
    async def run():
        batcher = Batcher("work", double, patience=0.0)
        for _ in range(3):
            task = asyncio.ensure_future(batcher(items(2)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.1)
        return await batcher(items(2))

    np.testing.assert_array_equal(asyncio.run(run()), items(2) * 2)
