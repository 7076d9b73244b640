import signal
import threading
import time

import pytest
import torch

from aecore.config import Checkpoints
from aecore.data.shuffle import World
from jobs.train import stopping
from jobs.train.stopping import Action, StopConsensus, StopRequest, interruptible

BY_STEPS = Checkpoints(every=3, minutes=0)
NEVER = Checkpoints(every=0, minutes=0)


class Clock:
    """Instead of time: each look at it is `tick` seconds later."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def alone(plan: Checkpoints, wish=lambda: Action.CONTINUE, step: int = 0) -> StopConsensus:
    return StopConsensus(plan, World(), torch.device("cpu"), wish, step)


def test_every_so_many_steps_counted_from_the_runs_beginning():
    agreement = alone(BY_STEPS, step=4)
    assert [step for step in range(5, 13) if agreement.after_step(step) == Action.SAVE] == [6, 9, 12]


def test_a_checkpoint_for_its_age(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "time", Clock(10))  # so long a step takes
    agreement = alone(Checkpoints(every=0, minutes=1))
    due = [step for step in range(1, 40) if agreement.after_step(step) == Action.SAVE]
    assert len(due) in range(4, 8)


def test_questions_are_asked_about_once_a_second_however_long_a_step_takes(monkeypatch: pytest.MonkeyPatch):
    for tick, least, most in ((0.01, 15, 30), (3.0, 2000, 2000)):
        asked = []
        clock = Clock(0)
        monkeypatch.setattr(stopping, "time", clock)
        agreement = alone(NEVER, lambda asked=asked: asked.append(1) or Action.CONTINUE)
        for step in range(1, 2001):
            clock.now += tick
            agreement.after_step(step)
        assert least <= len(asked) <= most


def test_the_max_over_workers_wish_of_all_workers_holds_at_the_same_step(monkeypatch: pytest.MonkeyPatch):
    """Three workers in threads, with an all-reduce of their own; one of them is asked to stop at some time."""
    barrier, said, wishes = threading.Barrier(3, timeout=30), {}, [Action.CONTINUE, Action.CONTINUE, Action.CONTINUE]

    def strongest(self: StopConsensus, verdict: int, stride: int) -> tuple[int, int]:
        said[self.world.rank] = (verdict, stride)
        barrier.wait()
        both = max(v for v, _ in said.values()), max(s for _, s in said.values())
        barrier.wait()
        return both

    monkeypatch.setattr(StopConsensus, "_max_over_workers", strongest)
    monkeypatch.setattr(stopping, "SYNC_SECONDS", 0.01)
    ended: dict[int, list[int]] = {}

    def work(rank: int) -> None:
        agreement = StopConsensus(BY_STEPS, World(rank, 3), torch.device("cpu"), lambda: wishes[rank], 0)
        saved = []
        for step in range(1, 10_000):
            time.sleep(0.0005 * rank)
            verdict = agreement.after_step(step)
            saved += [step] if verdict else []
            if verdict == Action.STOP:
                break
            if rank == 1 and step == 50:
                wishes[1] = Action.STOP
        ended[rank] = saved

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended[0] == ended[1] == ended[2]
    assert 50 < ended[0][-1] < 5_000
    assert ended[0][:16] == list(range(3, 50, 3))


def test_who_asks_waits_until_the_training_has_saved():
    stop, order = StopRequest(), []

    def training() -> None:
        with stop.active():
            started.set()
            while not stop.requested:
                time.sleep(0.001)
            order.append("saved")

    started = threading.Event()
    thread = threading.Thread(target=training)
    thread.start()
    assert started.wait(10)
    stop.request(10)
    order.append("ended")
    thread.join()
    assert order == ["saved", "ended"]
    stop.request(10)  # nobody trains any more: no waiting


def test_signals_mean_what_they_meant_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    with interruptible(stop.on_signal), stop.active():
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible(StopRequest().on_signal),
    ):  # where nothing could be saved, at once
        signal.raise_signal(signal.SIGTERM)


def test_sigterm_interrupts_where_ctrl_c_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
