"""Saving and stopping of a training: by steps, by the clock, at Ctrl-C, before a node is lost."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
import torch.distributed as dist

from aecore.config import Checkpoints
from aecore.data.shuffle import World

SYNC_S = 1.0  # between two exchanges of the workers' actions
SAVE_TIMEOUT_S = 4.0  # for a worker's last checkpoint: Ray Train kills the worker after 5


class Action(IntEnum):
    """An action of all workers after a step; of several, the largest holds."""

    CONTINUE = 0
    SAVE = 1
    STOP = 2  # after a checkpoint


class StopRequest:
    """A request that a training stops after its current step, with a checkpoint."""

    def __init__(self) -> None:
        self._requested, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Mark that a training runs which polls `requested`, saves and leaves."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    def request(self, timeout_s: float) -> None:
        """Request the stop, and wait up to `timeout_s` until the training has left."""
        self._requested.set()
        self._idle.wait(timeout_s)

    def on_signal(self, signum: int, frame: object) -> None:
        """Handle Ctrl-C: the first one requests the stop; a second one, or one without a training, interrupts."""
        if self.requested or self._idle.is_set():
            raise KeyboardInterrupt
        self._requested.set()
        print("zpoint: stopping with a checkpoint; another Ctrl-C stops without", file=sys.stderr, flush=True)


PROCESS_STOP = StopRequest()  # of this process, if it is a worker of Ray Train


def stop_this_process() -> None:
    """Stop the training in this worker of Ray Train with a checkpoint."""
    PROCESS_STOP.request(SAVE_TIMEOUT_S)


class StopConsensus:
    """Decides the Action after each step, the same on all workers though each has its own clock.

    About once a second the workers exchange their local actions by an all-reduce of two numbers, and the largest holds.
    `local_action` is called at these exchanges, equally often on each worker.
    """

    def __init__(
        self, plan: Checkpoints, world: World, device: torch.device, local_action: Callable[[], Action]
    ) -> None:
        self.plan, self.world, self.device, self.local_action = plan, world, device, local_action
        self._stride, self._next_sync = 1, 0  # after the first step, wherever a resumed run begins
        self._last_sync = self._last_save = time.monotonic()

    def after_step(self, step: int) -> Action:
        """Return the action after `step`, counted from the run's first step. Call it after each step."""
        action = Action.SAVE if self.plan.every and step % self.plan.every == 0 else Action.CONTINUE
        if step >= self._next_sync:
            action = self._sync(step, action)
        if action is not Action.CONTINUE:
            self._last_save = time.monotonic()
        return action

    def stop_requested(self) -> bool:
        """Return if a worker is to stop. A collective."""
        return self._max_over_workers(self.local_action(), self._stride)[0] is Action.STOP

    def _sync(self, step: int, action: Action) -> Action:
        """Exchange actions, and plan the next exchange for a second later, at most twice as many steps ahead."""
        now = time.monotonic()
        if self.plan.minutes and now - self._last_save >= 60 * self.plan.minutes:
            action = max(action, Action.SAVE)
        steps = self._stride * SYNC_S / max(now - self._last_sync, 1e-9)
        stride = max(1, min(2 * self._stride, int(steps)))
        action, self._stride = self._max_over_workers(max(action, self.local_action()), stride)
        self._next_sync, self._last_sync = step + self._stride, now
        return action

    def _max_over_workers(self, action: Action, stride: int) -> tuple[Action, int]:
        if self.world.size == 1:
            return action, stride
        values = torch.tensor([action, stride], device=self.device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return Action(int(values[0])), int(values[1])
