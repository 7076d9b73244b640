"""Showing the progress of work, here or in another process of the cluster.

A worker calls `publish`, which leaves a few bytes in Ray's key-value store; the driver shows them inside
`with watch(key, label, unit):`. Work in the driver's own process feeds a `Bar` itself. Nothing here raises
into the work: progress that cannot be shown is not shown.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NAMESPACE = b"zpoint-progress"
PUBLISH_SECONDS = 0.5
POLL_SECONDS = 0.5
LINE_SECONDS = 10.0  # between two lines where there is no terminal
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:,}/{total:,}  {rate_noinv_fmt}  {remaining} left{postfix}"
KV_SECONDS = 2.0  # the longest that the store may keep the work waiting

_published: dict[str, float] = {}


def publish(key: str, done: int, total: int, text: str = "") -> None:
    """Say from any process of the cluster how far the work `key` is; cheap enough to call at every step."""
    now = time.monotonic()
    if done < total and now - _published.get(key, -PUBLISH_SECONDS) < PUBLISH_SECONDS:
        return
    _published[key] = now
    with suppress(Exception):
        value = json.dumps([done, total, text]).encode()
        _store().internal_kv_put(key.encode(), value, True, NAMESPACE, timeout=KV_SECONDS)


@contextmanager
def watch(key: str, label: str, unit: str) -> Iterator[None]:
    """While inside, show on stderr what other processes publish under `key`."""
    over = threading.Event()
    bar = Bar(label, unit)

    def show() -> None:
        while not over.wait(POLL_SECONDS):
            _show_once(key, bar)

    _forget(key)  # what an earlier work of that name left
    thread = threading.Thread(target=show, name=f"watch-{key}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * KV_SECONDS)
        _show_once(key, bar)
        bar.close()
        _forget(key)


class Bar:
    """A tqdm bar on a terminal, else a line on stderr now and then. Rates count from the first update on."""

    def __init__(self, label: str, unit: str) -> None:
        self.label, self.unit = label, unit
        self.done, self.total, self.text = 0, 0, ""
        self._first: tuple[float, int] | None = None  # when, and how much was done already
        self._printed = 0.0
        self._said = (0, 0)
        self._tqdm: Any = None

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total`; 0 stands for an unknown total. `text` follows the figures."""
        now = time.monotonic()
        if self._first is None or done < self._first[1]:  # begun, or begun again from further back
            self._first = (now, done)
            self._printed = self._printed or now
        self.done, self.total, self.text = done, total, text
        with suppress(Exception):
            if sys.stderr.isatty():
                self._draw()
            elif now - self._printed >= LINE_SECONDS:
                self._printed = now
                self._say()

    def close(self) -> None:
        """Leave the last state on stderr. Nothing is printed for work that never began."""
        with suppress(Exception):
            if self._tqdm is not None:
                self._tqdm.close()
            elif self._first is not None and self._said != (self.done, self.total):
                self._say()
        self._tqdm, self._first = None, None

    def line(self) -> str:
        """The state in words, as in `train: 1,250/4,000 images  31 %  412/s  0:07 left  loss 1234.5`."""
        began, before = self._first or (time.monotonic(), self.done)
        seconds = time.monotonic() - began
        rate = (self.done - before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.label}: {self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"]
        if self.total:
            parts.append(f"{100 * self.done // self.total} %")
        if rate > 0:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if self.total and self.done >= self.total:
            parts.append(f"in {_clock(seconds)}")
        elif self.total and rate > 0:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        return "  ".join([*parts, self.text] if self.text else parts)

    def _say(self) -> None:
        self._said = (self.done, self.total)
        print(self.line(), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        from tqdm import tqdm

        if self._tqdm is None:
            self._tqdm = tqdm(
                total=self.total or None,
                initial=self.done,
                desc=self.label,
                unit="" if self.total else f" {self.unit}",
                bar_format=BAR if self.total else None,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        self._tqdm.total = self.total or None
        self._tqdm.n = self.done
        self._tqdm.set_postfix_str(self.text, refresh=False)
        self._tqdm.refresh()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _show_once(key: str, bar: Bar) -> None:
    with suppress(Exception):
        value = _store().internal_kv_get(key.encode(), NAMESPACE, timeout=KV_SECONDS)
        if value is not None:
            bar.update(*json.loads(value))


def _forget(key: str) -> None:
    with suppress(Exception):
        _store().internal_kv_del(key.encode(), False, NAMESPACE, timeout=KV_SECONDS)


def _store() -> Any:
    """The client of Ray's key-value store; None, and so an error in the caller, where there is no Ray."""
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    return internal_kv_get_gcs_client()
