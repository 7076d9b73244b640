import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cluster import progress
from cluster.progress import Bar, publish, watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the module's clock by one that advances only when a test says so."""
    fake = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: fake.seconds))
    return fake


def test_a_line_shows_count_rate_and_time_left(clock):
    bar = Bar("train", "images")
    bar.update(1000, 4000)
    clock.seconds += 10
    bar.update(1250, 4000, "loss 1234.5")
    assert bar.line() == "train: 1,250/4,000 images  31 %  25/s  1:50 left  loss 1234.5"
    clock.seconds += 3600
    assert "25/s" not in bar.line()


def test_rates_count_from_the_first_update_and_from_a_restart(clock):
    bar = Bar("train", "images")
    clock.seconds += 60  # before the first update
    bar.update(0, 100)
    clock.seconds += 1
    bar.update(50, 100)
    assert "  50/s  0:01 left" in bar.line()
    bar = Bar("train", "images")
    bar.update(60, 100)
    clock.seconds += 5
    bar.update(40, 100)  # resumed from an earlier checkpoint
    clock.seconds += 1
    bar.update(60, 100)
    assert "  20/s  0:02 left" in bar.line()


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (0, 10, 1, "x: 0/10 trials  0 %"),
        (3, 0, 1, "x: 3 trials  3/s"),
        (10, 10, 3700, "x: 10/10 trials  100 %  0.0027/s  in 1:01:40"),
        (1, 3, 100, "x: 1/3 trials  33 %  0.01/s  3:20 left"),
    ],
)
def test_lines_without_rate_or_total_and_after_an_hour(clock, done: int, total: int, seconds: float, line: str):
    bar = Bar("x", "trials")
    bar.update(0, total)
    clock.seconds += seconds
    bar.update(done, total)
    assert bar.line() == line


def test_without_a_terminal_a_line_is_printed_every_ten_seconds_and_at_the_end(
    clock, capsys: pytest.CaptureFixture[str]
):
    bar = Bar("train", "images")
    for done in range(0, 36):
        bar.update(done, 35)
        clock.seconds += 1
    bar.close()
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[1] for line in err.splitlines()] == ["10/35", "20/35", "30/35", "35/35"]


def test_the_last_state_is_printed_once_and_its_time_stands_still(clock, capsys: pytest.CaptureFixture[str]):
    """A training measures its model for a minute after its last step."""
    bar = Bar("train", "images")
    bar.update(0, 50)
    clock.seconds += 25
    for _ in range(60):
        bar.update(50, 50)
        clock.seconds += 1
    bar.update(50, 50, "tested")
    bar.close()
    assert [line.split("  ")[2:] for line in capsys.readouterr().err.splitlines()] == [
        ["2/s", "in 0:25"],
        ["2/s", "in 0:25", "tested"],
    ]


def test_nothing_is_printed_without_an_update(capsys: pytest.CaptureFixture[str]):
    Bar("train", "images").close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_beside_the_line(clock, monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Bar("train", "images")
    bar.update(0, 2000)
    clock.seconds += 5
    bar.update(500, 2000, "loss 9.5")
    shown = screen.getvalue().rpartition("\r")[2]
    assert shown.strip() == "|####            | train: 500/2,000 images  25 %  100/s  0:15 left  loss 9.5"
    bar.update(2000, 2000, "loss 8.5")
    bar.close()
    assert screen.getvalue().endswith("|################| train: 2,000/2,000 images  100 %  400/s  in 0:05  loss 8.5\n")


def test_a_rate_is_shown_from_the_first_second_on(clock):
    bar = Bar("ingest", "images")
    bar.update(0, 100)
    clock.seconds += 0.9
    bar.update(50, 100)
    assert bar.line() == "ingest: 50/100 images  50 %"
    clock.seconds += 0.1
    assert bar.line() == "ingest: 50/100 images  50 %  50/s  0:01 left"


def test_a_closed_stderr_raises_nothing(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    screen.close()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Bar("train", "images")
    bar.update(1, 1)
    bar.close()


def test_the_driver_shows_what_a_worker_publishes(ray_cluster, monkeypatch, capsys, wait_until):
    import ray

    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0)
    shown = ""

    @ray.remote(num_cpus=1)
    def train(done: int) -> None:
        publish("a-run", done, 150, f"loss {done}")

    def is_shown(text: str) -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return text in shown

    with watch("a-run", "train", "images"):
        ray.get(train.remote(50))
        wait_until(lambda: is_shown("loss 50\n"))
        ray.get(train.remote(150))
    assert is_shown("loss 150\n")
    lines = shown.splitlines()
    assert lines[0].startswith("train: 50/150 images")
    assert lines[-1].endswith("loss 150")
    assert published_state("a-run") is None


def test_an_error_inside_watch_passes_through_and_the_state_is_discarded(ray_cluster):
    def fail() -> None:
        with watch("bad-run", "train", "images"):
            publish("bad-run", 1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert published_state("bad-run") is None


def test_states_are_sent_twice_a_second_and_the_last_one_always(clock, monkeypatch: pytest.MonkeyPatch):
    import ray

    sent, awaited = [], []
    put = SimpleNamespace(remote=lambda key, state: sent.append((key, *state)) or f"delivery {len(sent)}")
    monkeypatch.setattr(progress, "_board", lambda: SimpleNamespace(put=put))
    monkeypatch.setattr(progress, "_last_published", {})
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: awaited.append((*refs, timeout)))
    for done in range(8):
        publish("a", done, 7, f"loss {done}")
        publish("b", done, 9)
        clock.seconds += 0.2
    a, b = ([state[1:] for state in sent if state[0] == key] for key in "ab")
    assert a == [(0, 7, "loss 0"), (3, 7, "loss 3"), (6, 7, "loss 6"), (7, 7, "loss 7")]
    assert [done for done, *_ in b] == [0, 3, 6]
    assert awaited == [(f"delivery {len(sent)}", 2.0)]  # the process may exit after the last one


def test_without_ray_nothing_is_shown_and_no_ray_is_started():
    code = """
import ray
from cluster.progress import publish, watch
publish("k", 1, 2)
with watch("k", "train", "images"):
    publish("k", 2, 2)
assert not ray.is_initialized()
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def published_state(key: str):
    import ray

    return ray.get(progress._board().get.remote(key))
