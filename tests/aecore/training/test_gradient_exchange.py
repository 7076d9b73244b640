"""The time that a worker waits for the mean of the gradients; test_loop.py tests the mean itself."""

from types import SimpleNamespace

import pytest
import torch
from torch.futures import Future

from aecore.training import gradient_exchange
from aecore.training.gradient_exchange import SAMPLED_STEPS, GradientExchange


def take_steps(exchange, clock, waits):
    """Let each step have two buckets, of which the first is averaged last, after one of `waits` seconds."""
    for wait in waits:
        means = []
        for last in (False, True):
            means.append(exchange._average_bucket(SimpleNamespace(is_last=lambda last=last: last)))
            clock.now += 0.1
        exchange.pending.pop().set_result(torch.ones(1))
        clock.now += wait - 0.1  # since the last bucket was ready
        exchange.pending.pop().set_result(torch.ones(1))
        assert all(torch.equal(mean.wait(), torch.ones(1)) for mean in means)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(gradient_exchange, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(gradient_exchange, "dist", SimpleNamespace(group=SimpleNamespace(WORLD=None)))
    return clock


@pytest.fixture
def exchange():
    exchange = GradientExchange("float32", torch.device("cpu"))

    exchange.pending = []

    def average(group, bucket):
        exchange.pending.append(Future())
        return exchange.pending[-1]

    exchange.average = average
    return exchange


def test_wait_is_that_of_the_timed_steps_times_the_number_of_steps(exchange, clock):
    """The second step of each eight is timed; the first of an epoch may wait for a worker that evaluates."""
    waits = [50.0, 1.0, *[7.0] * (SAMPLED_STEPS - 1), 3.0, 7.0]
    take_steps(exchange, clock, waits)
    assert exchange.pop_wait() == pytest.approx(2.0 * len(waits))


def test_each_epoch_counts_anew(exchange, clock):
    take_steps(exchange, clock, [9.0] * 5)
    exchange.pop_wait()
    assert exchange.pop_wait() is None
    take_steps(exchange, clock, [5.0])
    assert exchange.pop_wait() is None  # no step was timed
    take_steps(exchange, clock, [5.0, 0.5, 5.0])
    assert exchange.pop_wait() == pytest.approx(1.5)
