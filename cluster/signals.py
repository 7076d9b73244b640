"""Signals of a command: Ctrl-C and SIGTERM while Ray's libraries run in this process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _handle_as_sigint(signum: int, frame: FrameType | None) -> None:
    """Call the handler of SIGINT, or raise KeyboardInterrupt if SIGINT is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signum, frame)


@contextmanager
def interruptible(on_interrupt: Callable[[int, object], None] | None = None) -> Iterator[None]:
    """Restore the signal handlers that Ray's libraries replace; inside, SIGTERM acts like Ctrl-C.

    `on_interrupt` handles SIGINT inside. If SIGINT is ignored, as in a script's background process, SIGTERM raises
    KeyboardInterrupt. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _handle_as_sigint)
    if on_interrupt:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except SystemExit:  # Ray Train's answer to Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
