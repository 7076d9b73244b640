"""Show a campaign on stderr while it runs: its table at a terminal, lines elsewhere."""

import copy
import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from cluster.progress import Bar, read_states
from jobs.tune.campaign import Campaign, Trial
from jobs.tune.table import Row, format_rows, trial_cells

DRAW_S = 0.5
MIN_ROWS = 3  # trials that a low terminal shows


@contextmanager
def live_display(campaign: Campaign) -> Iterator["CampaignDisplay"]:
    """Show the campaign inside the block; yield the listener that follows it."""
    display = CampaignDisplay(campaign)
    if not sys.stderr.isatty():
        try:
            yield display
        finally:
            display.bar.close()
        return
    screen, finished = Screen(sys.stderr), threading.Event()

    def draw() -> None:
        while not finished.wait(DRAW_S):
            with suppress(Exception):  # a table that cannot be drawn stops no campaign
                screen.draw(display.lines(*shutil.get_terminal_size()))

    thread = threading.Thread(target=draw, name="campaign-table", daemon=True)
    with screen.above():
        thread.start()
        try:
            yield display
        finally:
            finished.set()
            thread.join()
            screen.draw([])
    display.bar.set(*count_epochs(display.campaign, {}))
    print(display.bar.line(), file=sys.stderr)


class CampaignDisplay:
    """A listener of a campaign that shows it, or gives the lines of its table."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = copy.deepcopy(campaign)  # the thread that draws must not see a change half made
        self.bar = Bar(campaign.campaign, "epochs")
        self._ended = {trial.run for trial in campaign.trials if trial.state != "running"}
        self._first: dict[str, tuple[float, int]] = {}  # time and images of the first state seen of a running trial

    def __call__(self, campaign: Campaign) -> None:
        """Take the campaign after a change. Without a terminal, print a line for each trial that has ended."""
        self.campaign = campaign
        if sys.stderr.isatty():
            return
        for trial in campaign.trials:
            if trial.state == "running":
                self._ended.discard(trial.run)
            elif trial.run not in self._ended:
                self._ended.add(trial.run)
                print(describe_end(campaign, trial), file=sys.stderr, flush=True)
        self.bar.update(*count_epochs(campaign, {}))

    def lines(self, columns: int, rows: int) -> list[str]:
        """Return the table and the line of progress for a terminal of this size."""
        campaign = self.campaign
        running = [trial.run for trial in campaign.trials if trial.state == "running"]
        # A trial also publishes the fill of its node's cache, in other units.
        states = {run: state for run, state in read_states(running).items() if state[2].startswith("epoch ")}
        trials = sorted(campaign.sorted_trials(), key=lambda trial: trial.state != "running")
        visible = trials[: max(MIN_ROWS, rows - 4)]
        cells = [trial_cells(campaign, trial) | self._live_cells(trial, states.get(trial.run)) for trial in visible]
        lines = format_rows(campaign, cells, columns - 1)
        if len(visible) < len(trials):
            lines.append(f"and {len(trials) - len(visible)} more: zpoint campaign {campaign.campaign}")
        self.bar.set(*count_epochs(campaign, states))
        return [line[: columns - 1] for line in [*lines, self.bar.line()]]

    def _live_cells(self, trial: Trial, state: tuple[int, int, str] | None) -> Row:
        """Return the epoch and the steps per second of a running trial, as it publishes them."""
        if trial.state != "running" or state is None or not state[1]:
            self._first.pop(trial.run, None)
            return {}
        now, (done, total, _) = time.monotonic(), state
        start, first = self._first.setdefault(trial.run, (now, done))
        if done < first:  # resumed from an earlier checkpoint
            self._first[trial.run] = (now, done)
        cells = {"epoch": f"{trial.epochs * done / total:.1f}/{trial.epochs}"}
        if done > first and now > start:
            metrics = {"images_per_second": (done - first) / (now - start)}
            steps = self.campaign.steps_per_second(Trial(trial.run, trial.point, trial.epochs, metrics=metrics))
            cells["steps/s"] = f"{steps:.3g}"
        return cells


def count_epochs(campaign: Campaign, states: Mapping[str, tuple[int, int, str]]) -> tuple[int, int, str]:
    """Return the epochs that are trained or will not be, their total, and how many trials are in which state.

    `states` has the images that running trials have published, and their total.
    """
    epochs, done = campaign.recipe["optim"]["epochs"], 0.0
    for trial in campaign.trials:
        images, total, _ = states.get(trial.run) or (0, 0, "")
        live = trial.epochs * images / total if total else 0
        done += max(trial.epoch, live) if trial.state == "running" else epochs
    total = max(int(campaign.max_points), len(campaign.trials)) * epochs if campaign.state != "finished" else int(done)
    counts = [f"{campaign.count(s)} {s}" for s in ("finished", "stopped", "diverged", "lost") if campaign.count(s)]
    return int(done), total, ", ".join(counts)


def describe_end(campaign: Campaign, trial: Trial) -> str:
    """Return the line that says how a trial has ended."""
    cells = trial_cells(campaign, trial)
    point = ", ".join(f"{name} {cells[name]}" for name in campaign.key_names().values())
    values = ", ".join(
        f"{name} {cells[name]}" for name in ("epoch", "PSNR", "distance", "active", "min") if cells[name]
    )
    return f"trial {trial.run} ({point}) {trial.state}{f', {trial.reason}' if trial.reason else ''}: {values}"


class Screen:
    """Lines at the bottom of a terminal that are drawn over each other; what others write goes above them."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self._drawn, self._partial = stream, 0, ""
        self._lock = threading.RLock()

    def draw(self, lines: list[str]) -> None:
        """Replace the lines drawn last."""
        with self._lock:
            self._erase()
            self.stream.write("".join(f"{line}\n" for line in lines))
            self.stream.flush()
            self._drawn = len(lines)

    def write(self, text: str) -> int:
        """Write whole lines above the drawn ones, which the next `draw` brings back."""
        with self._lock:
            complete, newline, self._partial = (self._partial + text).rpartition("\n")
            if newline:
                self._erase()
                self.stream.write(complete + newline)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Return the stream's own attribute, such as `isatty` or `encoding`."""
        return getattr(self.stream, name)

    @contextmanager
    def above(self) -> Iterator[None]:
        """Send what this process prints and logs inside the block above the drawn lines."""
        handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
        handlers = [handler for handler in handlers if handler.stream is self.stream]
        with redirect_stderr(self), redirect_stdout(self):  # type: ignore[type-var]
            for handler in handlers:
                handler.setStream(self)
            try:
                yield
            finally:
                for handler in handlers:
                    handler.setStream(self.stream)

    def _erase(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}F\x1b[J")  # up to the first line, and clear what follows
            self._drawn = 0
