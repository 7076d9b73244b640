"""When a training saves, and how it is stopped: by steps, by the clock, by Ctrl-C, by notice of a node's end."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from aecore.config import Checkpoints

if TYPE_CHECKING:
    import torch

    from aecore.data.shuffle import World

NOTHING, SAVE, STOP = 0, 1, 2
AGREE_SECONDS = 1.0  # between two questions of the workers to each other


class StopRequest:
    """The wish that a training ends: granted after the step in hand, with a checkpoint."""

    def __init__(self) -> None:
        self._asked, self._idle = threading.Event(), threading.Event()
        self._idle.set()

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """While inside, somebody looks at `asked` and leaves when he has saved."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self, seconds: float) -> None:
        """Ask for it, and wait as long as this for its end."""
        self._asked.set()
        self._idle.wait(seconds)

    def on_signal(self, signum: int, frame: object) -> None:
        """Ctrl-C: the first one asks; another one, or one where nobody would look, interrupts at once."""
        if self.asked or self._idle.is_set():
            raise KeyboardInterrupt
        self._asked.set()
        print("zpoint: stopping with a checkpoint; another Ctrl-C stops without", file=sys.stderr, flush=True)


THIS_PROCESS = StopRequest()  # what Ray Train's shutdown of a worker asks
SAVE_SECONDS = 4.0  # for a worker's last checkpoint: Ray Train kills it after 5


class StopConsensus:
    """What all workers do after a step: NOTHING, SAVE or STOP, the same on each though each has its own clock.

    About once a second they tell each other what they want, and the strongest wish holds: an all-reduce of two
    numbers. `wish` is called then, equally often on each worker.
    """

    def __init__(
        self, plan: Checkpoints, world: "World", device: "torch.device", wish: Callable[[], int], step: int
    ) -> None:
        self.plan, self.world, self.device, self.wish = plan, world, device, wish
        self._stride, self._next = 1, step + 1
        self._last = self._saved = time.monotonic()

    def after(self, step: int) -> int:
        """What to do after `step`, counted from the run's beginning; called after each."""
        verdict = SAVE if self.plan.every and step % self.plan.every == 0 else NOTHING
        if step >= self._next:
            verdict = self._ask(step, verdict)
        if verdict:
            self._saved = time.monotonic()
        return verdict

    def _ask(self, step: int, verdict: int) -> int:
        now = time.monotonic()
        if self.plan.minutes and now - self._saved >= 60 * self.plan.minutes:
            verdict = max(verdict, SAVE)
        steps = self._stride * AGREE_SECONDS / max(now - self._last, 1e-9)
        verdict, self._stride = self._strongest(max(verdict, self.wish()), max(1, min(2 * self._stride, int(steps))))
        self._next, self._last = step + self._stride, now
        return verdict

    def _strongest(self, verdict: int, stride: int) -> tuple[int, int]:
        if self.world.size == 1:
            return verdict, stride
        import torch
        import torch.distributed as dist

        both = torch.tensor([verdict, stride], device=self.device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        verdict, stride = both.tolist()
        return verdict, stride


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    meant = signal.getsignal(signal.SIGINT)
    (meant if callable(meant) else signal.default_int_handler)(number, frame)


@contextmanager
def interruptible(on_interrupt: Callable[[int, object], None] | None = None) -> Iterator[None]:
    """Keep what Ctrl-C means, which Ray's libraries change and leave changed; SIGTERM means the same while inside.

    `on_interrupt` is its handler inside. Where Ctrl-C is ignored, as of what a script starts in the background, SIGTERM
    is a KeyboardInterrupt. Where this is not the main thread, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _as_interrupt)
    if on_interrupt:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except SystemExit:  # Ray Train's answer to Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
