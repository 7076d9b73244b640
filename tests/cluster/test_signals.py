"""The signals of a command, which end it as Ctrl-C does."""

import signal
import threading

import pytest

from cluster.signals import interruptible


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]


def test_sigterm_is_handled_as_sigint_and_the_handlers_are_restored():
    before, received = handlers(), []
    with interruptible(lambda signum, frame: received.append(signum)):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM, signal.SIGINT]
    assert handlers() == before


def test_sigterm_interrupts_if_sigint_is_ignored():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_exit_of_ray_train_is_an_interrupt():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise SystemExit
    assert handlers() == before


def test_other_threads_leave_the_handlers_as_they_are():
    inside: list[object] = []

    def run() -> None:
        with interruptible():
            inside.extend(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == handlers()
