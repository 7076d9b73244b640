"""Show the progress of a job on stderr, in this process or from another process of the cluster.

A worker calls `publish`; the driver shows what it publishes inside `with watch(key, label, unit):`. Between them stands
a named actor of the driver's Ray job. A job in the driver's own process updates a `Bar` itself. No failure here reaches
the job: progress that cannot be shown is dropped.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

log = logging.getLogger(__name__)
BOARD_NAME = "zpoint-progress"
PUBLISH_INTERVAL_S = 0.5
POLL_INTERVAL_S = 0.5
LINE_INTERVAL_S = 10.0  # between two lines if stderr is no terminal
CALL_TIMEOUT_S = 2.0
BAR_FORMAT = "|{bar:16}| {desc}"  # tqdm cuts it to the terminal's width
MIN_RATE_S = 1.0  # from the first update until a rate is shown

ProgressCallback = Callable[[int, int, str], None]  # called with the amount done, the total and a text

_last_published: dict[str, float] = {}
_boards: dict[tuple[str, str], Any] = {}  # actors by the Ray job (GCS address, job id) that this process belongs to


def no_progress(done: int, total: int, text: str) -> None:
    """Show nothing."""


class ProgressBoard:
    """Hold the last state of each key. Runs as an actor."""

    def __init__(self) -> None:
        self._states: dict[str, tuple[int, int, str]] = {}
        self._warnings: dict[str, list[str]] = {}

    def warn(self, key: str, text: str) -> None:
        self._warnings.setdefault(key, []).append(text)

    def take_warnings(self, key: str) -> list[str]:
        return self._warnings.pop(key, [])

    def put(self, key: str, state: tuple[int, int, str]) -> None:
        self._states[key] = state

    def get(self, key: str) -> tuple[int, int, str] | None:
        return self._states.get(key)

    def discard(self, key: str) -> None:
        self._states.pop(key, None)
        self._warnings.pop(key, None)


def publish_warning(key: str, text: str) -> None:
    """Have the driver, inside `watch`, log a warning of the job `key`."""
    with suppress(Exception):
        _board().warn.remote(key, text)


def publish(key: str, done: int, total: int, text: str = "") -> None:
    """Publish the state of the job `key` from any process of the driver's Ray job; cheap enough for every step.

    At most one state in `PUBLISH_INTERVAL_S` is sent, without a wait. The last one (`done` >= `total`) is always sent,
    and its delivery awaited, since the process may exit next.
    """
    current_time = time.monotonic()
    if done < total and current_time - _last_published.get(key, -PUBLISH_INTERVAL_S) < PUBLISH_INTERVAL_S:
        return
    _last_published[key] = current_time
    with suppress(Exception):
        delivery = _board().put.remote(key, (done, total, text))
        if done >= total:
            import ray

            ray.wait([delivery], timeout=CALL_TIMEOUT_S)


@contextmanager
def watch(key: str, label: str, unit: str) -> Iterator[None]:
    """Show on stderr, inside the block, the states that other processes publish under `key`."""
    bar = Bar(label, unit)
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(POLL_INTERVAL_S):
            _show_state(key, bar)

    _discard(key, create=True)  # the state of an earlier job of this name
    thread = threading.Thread(target=poll, name=f"watch-{key}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(2 * CALL_TIMEOUT_S)
        _show_state(key, bar)
        bar.close()
        _discard(key)


class Bar:
    """A tqdm bar if stderr is a terminal, else a line every few seconds. Rates count from the first update."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.done, self.total, self.text = 0, 0, ""
        self._start: tuple[float, int] | None = None  # time and `done` of the first update
        self._end_time: float | None = None  # when `done` reached `total`
        self._line_time = 0.0
        self._printed_state = (0, 0, "")
        self._tqdm: Any = None

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total`; a `total` of 0 is unknown. `text` follows the counts."""
        self.set(done, total, text)
        current_time = time.monotonic()
        with suppress(Exception):
            if sys.stderr.isatty():
                self._draw()
            elif current_time - self._line_time >= LINE_INTERVAL_S and not self._is_final_line_printed():
                self._line_time = current_time
                self._print_line()

    def set(self, done: int, total: int, text: str = "") -> None:
        """Take the state for `line` without showing it."""
        current_time = time.monotonic()
        if self._start is None or done < self._start[1]:  # begun, or resumed from an earlier checkpoint
            self._start = (current_time, done)
            self._line_time = self._line_time or current_time
        self.done, self.total, self.text = done, total, text
        self._end_time = (self._end_time or current_time) if 0 < total <= done else None

    def close(self) -> None:
        """Leave the last state on stderr; print nothing if there was no update."""
        with suppress(Exception):
            if self._tqdm is not None:
                self._tqdm.close()
            elif self._start is not None and self._printed_state[:2] != (self.done, self.total):
                self._print_line()
        self._tqdm, self._start = None, None

    def line(self) -> str:
        """Return the state as in `train: 1,250/4,000 images  31 %  412/s  0:07 left  loss 1234.5`."""
        start_time, start_done = self._start or (time.monotonic(), self.done)
        elapsed_s = (self._end_time or time.monotonic()) - start_time
        rate = (self.done - start_done) / elapsed_s if elapsed_s >= MIN_RATE_S else 0.0
        fields = [f"{self.label}: {self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"]
        if self.total:
            fields.append(f"{100 * self.done // self.total} %")
        if rate > 0:
            fields.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if self.total and self.done >= self.total:
            fields.append(f"in {_format_duration(elapsed_s)}")
        elif self.total and rate > 0:
            fields.append(f"{_format_duration((self.total - self.done) / rate)} left")
        return "  ".join([*fields, self.text] if self.text else fields)

    def _is_final_line_printed(self) -> bool:
        return self._end_time is not None and self._printed_state == (self.done, self.total, self.text)

    def _print_line(self) -> None:
        self._printed_state = (self.done, self.total, self.text)
        print(self.line(), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        from tqdm import tqdm

        if self._tqdm is None:
            self._tqdm = tqdm(file=sys.stderr, dynamic_ncols=True, bar_format="{desc}")
        self._tqdm.bar_format = BAR_FORMAT if self.total else "{desc}"
        self._tqdm.total, self._tqdm.n = self.total or None, self.done
        self._tqdm.set_description_str(self.line())


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _show_state(key: str, bar: Bar) -> None:
    with suppress(Exception):
        import ray

        board = _board()
        state, warnings = ray.get([board.get.remote(key), board.take_warnings.remote(key)], timeout=CALL_TIMEOUT_S)
        for text in warnings:
            log.warning("%s", text)
        if state is not None:
            bar.update(*state)


def read_states(keys: Iterable[str]) -> dict[str, tuple[int, int, str]]:
    """Return the states that other processes published last, by key, without those that have none."""
    with suppress(Exception):
        import ray

        board, keys = _board(create=True), list(keys)
        states = ray.get([board.get.remote(key) for key in keys], timeout=CALL_TIMEOUT_S)
        return {key: state for key, state in zip(keys, states, strict=True) if state is not None}
    return {}


def _discard(key: str, create: bool = False) -> None:
    with suppress(Exception):
        _board(create).discard.remote(key)


def _board(create: bool = False) -> Any:
    """Return the board's actor of this process's Ray job. Raises an exception if there is no Ray or no actor."""
    import ray

    if not ray.is_initialized():  # `get_actor` would start a Ray
        raise RuntimeError("this process is connected to no Ray")
    context = ray.get_runtime_context()
    job = (context.gcs_address, context.get_job_id())
    if job not in _boards and create:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        _boards[job] = (
            ray.remote(ProgressBoard)
            .options(
                name=BOARD_NAME,
                num_cpus=0,
                max_restarts=-1,  # the next `publish` fills it
                scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True),
            )
            .remote()
        )
    elif job not in _boards:
        _boards[job] = ray.get_actor(BOARD_NAME)
    return _boards[job]
