"""Saving and stopping of a training."""

import signal
import threading
import time

import pytest
import torch

from aecore.config import Checkpoints
from aecore.data.shuffle import World
from cluster.signals import interruptible
from jobs.train import stopping
from jobs.train.stopping import Action, StopConsensus, StopRequest

EVERY_3_STEPS = Checkpoints(every=3, minutes=0)
NEVER = Checkpoints(every=0, minutes=0)


class Clock:
    """Replaces the module `time`: each call of `monotonic` is `tick` seconds after the last."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def one_worker(plan: Checkpoints, local_action=lambda: Action.CONTINUE) -> StopConsensus:
    return StopConsensus(plan, World(), torch.device("cpu"), local_action)


def test_checkpoints_by_steps_count_from_the_first_step_of_the_run():
    consensus = one_worker(EVERY_3_STEPS)
    assert [step for step in range(5, 13) if consensus.after_step(step) is Action.SAVE] == [6, 9, 12]


def test_checkpoint_is_saved_after_the_minutes_of_the_recipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "time", Clock(tick=10))
    consensus = one_worker(Checkpoints(every=0, minutes=1))
    saved_steps = [step for step in range(1, 40) if consensus.after_step(step) is Action.SAVE]
    assert len(saved_steps) in range(4, 8)


@pytest.mark.parametrize(("step_seconds", "min_calls", "max_calls"), [(0.01, 15, 30), (3.0, 2000, 2000)])
def test_workers_sync_about_once_a_second(step_seconds: float, min_calls: int, max_calls: int, monkeypatch):
    clock, calls = Clock(tick=0), []
    monkeypatch.setattr(stopping, "time", clock)
    consensus = one_worker(NEVER, lambda: calls.append(1) or Action.CONTINUE)
    for step in range(1, 2001):
        clock.now += step_seconds
        consensus.after_step(step)
    assert min_calls <= len(calls) <= max_calls


def test_all_workers_take_the_same_action_at_the_same_step(monkeypatch: pytest.MonkeyPatch):
    """Run three workers in threads, with an all-reduce of their own; one of them is stopped after step 50."""
    barrier, values = threading.Barrier(3, timeout=120), {}
    local_actions = [Action.CONTINUE] * 3

    def max_over_workers(self: StopConsensus, action: Action, stride: int) -> tuple[Action, int]:
        values[self.world.rank] = (action, stride)
        barrier.wait()
        result = max(action for action, _ in values.values()), max(stride for _, stride in values.values())
        barrier.wait()
        return result

    monkeypatch.setattr(StopConsensus, "_max_over_workers", max_over_workers)
    monkeypatch.setattr(stopping, "SYNC_S", 0.01)
    steps_of_rank: dict[int, list[int]] = {}

    def train(rank: int) -> None:
        world = World(rank, 3)
        consensus = StopConsensus(EVERY_3_STEPS, world, torch.device("cpu"), lambda: local_actions[rank])
        saved_steps = []
        for step in range(1, 10_000):
            time.sleep(0.0005 * rank)
            action = consensus.after_step(step)
            saved_steps += [step] if action is not Action.CONTINUE else []
            if action is Action.STOP:
                break
            if rank == 1 and step == 50:
                local_actions[1] = Action.STOP
        steps_of_rank[rank] = saved_steps

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert steps_of_rank[0] == steps_of_rank[1] == steps_of_rank[2]
    assert 50 < steps_of_rank[0][-1] < 5_000
    assert steps_of_rank[0][:16] == list(range(3, 50, 3))


def test_stop_request_waits_until_the_training_has_saved():
    stop, events = StopRequest(), []

    def train() -> None:
        with stop.active():
            started.set()
            while not stop.requested:
                time.sleep(0.001)
            events.append("saved")

    started = threading.Event()
    thread = threading.Thread(target=train)
    thread.start()
    assert started.wait(60)
    stop.request(timeout_s=60)
    events.append("stopped")
    thread.join()
    assert events == ["saved", "stopped"]
    stop.request(timeout_s=10)  # without a training it returns at once


def test_first_signal_requests_the_stop_and_a_second_one_interrupts():
    stop = StopRequest()
    with interruptible(stop.on_signal), stop.active():
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signal_without_an_active_training_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible(StopRequest().on_signal):
        signal.raise_signal(signal.SIGTERM)
