"""The text of a campaign: the table that fits a terminal, the live table, and MLflow's description."""

import io
import logging
import re
import sys

import pytest

from jobs.tune import live
from jobs.tune.campaign import Campaign
from jobs.tune.campaign_charts import point_label
from jobs.tune.live import CampaignDisplay, Screen, describe_end, live_display
from jobs.tune.mlflow_overview import NOTE_LIMIT, describe, make_table, summarize, trial_tags
from jobs.tune.table import format_campaign, format_rows, trial_cells
from tests.jobs.tune.made_campaigns import make_campaign, make_replicated

WIDE_SPACE = {
    "model.z_dim": "int(2, 1200)", "loss.kl_factor": "log(0.001, 30)", "optim.lr": "log(1e-4, 1e-2)",
    "optim.batch": [16, 32, 64], "loss.kl_warmup": "uniform(0, 3)",
}  # fmt: skip

REPLICATED = {"a": [(22.0, 2.5), (22.0, 3.5)], "b": [(19.5, 2.95), (20.5, 2.85)], "c": [(23.0, 2.0)]}


@pytest.fixture
def campaign() -> Campaign:
    return make_campaign()


def table(campaign: Campaign, width: int = 80) -> list[str]:
    return format_rows(campaign, [trial_cells(campaign, trial) for trial in campaign.sorted_trials()], width)


def test_table_has_each_metric_of_each_trial_and_marks_the_front(campaign: Campaign):
    header, *lines = table(campaign)
    assert header.split() == [
        "run", "state", "epoch", "kl_factor", "z_dim", "PSNR", "distance", "active", "steps/s", "min",
    ]  # fmt: skip
    assert len(lines) == 12
    trial = campaign.trials[0]
    assert lines[0].split() == [
        "*",
        "00000000",
        "finished",
        "20/20",
        "0.00316",
        "64",
        "25.3",
        "5.20",
        "85",
        "12.5",
        "4.7",
    ]
    assert trial.metrics["images_per_second"] / 64 == 12.5
    marks = {line.split()[1]: line[0] for line in lines if line[0] != " "}
    assert [f"celeba-vae-{run}" for run in marks] == campaign.pareto_front
    assert [f"celeba-vae-{run}" for run, mark in marks.items() if mark == ">"] == [campaign.best]
    states = [line[2:].split()[1] for line in lines]
    assert states == ["finished"] * 9 + ["stopped", "diverged", "lost"]


@pytest.mark.parametrize("search", [{}, {"space": WIDE_SPACE}])
def test_table_fits_80_columns(search: dict):
    campaign = make_campaign(**search)
    campaign.trials[1].replicate_of, campaign.trials[1].point["optim.seed"] = campaign.trials[0].run, 1
    text = format_campaign(campaign)
    assert max(len(line) for line in text.splitlines()) <= 80
    header = next(line for line in text.splitlines() if line.split()[0] == "run")
    for column in ("state", "kl_fa", "z_dim", "seed", "PSNR", "dista"):
        assert f" {column}" in header


def test_narrow_table_lacks_columns_only_if_it_does_not_fit(campaign: Campaign):
    full = table(campaign, 1000)
    wide = len(full[0])
    assert table(campaign, wide) == full
    close = table(campaign, wide - 1)  # one space between columns
    assert close[0].split() == full[0].split()
    assert table(campaign, len(close[0])) == close
    narrower = table(campaign, len(close[0]) - 1)[0].split()
    assert narrower == [column for column in full[0].split() if column != "min"]
    assert table(campaign, 20)[0].split() == ["run", "state", "kl_fact", "z_dim", "PSNR", "dista"]


def test_replicates_show_their_seed(campaign: Campaign):
    assert "seed" not in table(campaign)[0]
    campaign.trials[1].replicate_of, campaign.trials[1].point["optim.seed"] = campaign.trials[0].run, 7
    assert "seed" in table(campaign)[0].split()
    assert [trial_cells(campaign, trial)["seed"] for trial in campaign.trials[:3]] == ["0", "7", "0"]
    assert point_label(campaign, campaign.trials[0]).endswith(", seed 0")


def test_text_has_rule_note_reasons_and_the_promote_command(campaign: Campaign):
    campaign.note = "the best two differ by less than their seeds do"
    text = " ".join(format_campaign(campaign).split())
    for part in (
        "9 finished, 1 stopped, 1 diverged, 1 lost", "daa66d13 stopped: in the worse half of 4 trials at epoch 4",
        campaign.best, f"rule: {campaign.rule}", f"note: {campaign.note}",
    ):  # fmt: skip
        assert part in text
    assert text.endswith("next: zpoint promote faces")


def test_text_has_the_means_by_which_points_of_several_seeds_are_ranked():
    """Before, it had the values of their best seeds alone: here the choice looked worse than a0."""
    text = " ".join(format_campaign(make_replicated(REPLICATED)).split())
    best = "x-b1 (loss.kl_factor 2, optim.seed 1)"
    assert f"best: {best}: PSNR 20.0 dB, distance 2.90 of N(0, 1), the mean of 2 seeds" in text
    assert "a0, mean of 2 seeds: PSNR 22.0, distance 3.00 b1, mean of 2 seeds: PSNR 20.0, distance 2.90 runs" in text
    assert "points with several seeds are ranked by their mean, before all others note: the choice lies within" in text
    assert "mean" not in format_campaign(make_campaign())


def test_running_campaign_promotes_by_run_and_one_without_a_result_does_not(campaign: Campaign):
    campaign.state = "running"
    assert format_campaign(campaign).endswith(f"next: zpoint promote faces --run {campaign.best.rpartition('-')[2]}")
    started = make_campaign(0)
    started.state = "running"
    assert "promote" not in format_campaign(started)


class Terminal(io.StringIO):
    """A terminal that understands what `Screen` writes; `lines` are those that a user sees."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        lines: list[str] = []
        for line in re.split(r"\n", self.getvalue()):
            while match := re.match(r"\x1b\[(\d+)F\x1b\[J", line):
                del lines[len(lines) - int(match[1]) :]
                line = line[match.end() :]
            lines.append(line)
        assert lines.pop() == ""
        return lines


def test_drawn_lines_replace_each_other_and_messages_stay_above_them():
    terminal = Terminal()
    screen = Screen(terminal)
    screen.draw(["a 1", "b 1"])
    screen.draw(["a 2"])
    screen.write("half of")
    screen.draw(["a 3", "b 3"])
    screen.write(" a message\nanother\n")
    assert terminal.lines == ["half of a message", "another"]
    screen.draw(["a 4"])
    assert terminal.lines == ["half of a message", "another", "a 4"]
    screen.draw([])
    assert terminal.lines == ["half of a message", "another"]


def test_terminal_shows_the_table_while_the_campaign_runs(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, wait_until
):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(live, "DRAW_S", 0.01)
    handler = logging.StreamHandler(terminal)
    campaign.state = "running"
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with live_display(campaign) as display:
        wait_until(lambda: len(terminal.lines) == 14)
        assert (sys.stderr.isatty(), sys.stderr.encoding) == (True, terminal.encoding)
        campaign.trials.pop()
        display(campaign)
        wait_until(lambda: len(terminal.lines) == 13)
        logging.getLogger("x").warning("trial lost")
        print("a print")
        wait_until(lambda: terminal.lines[:2] == ["trial lost", "a print"] and len(terminal.lines) == 15)
        campaign.state = "finished"
        display(campaign)
    assert (sys.stderr, handler.stream) == (terminal, terminal)
    assert terminal.lines[:2] == ["trial lost", "a print"]
    assert len(terminal.lines) == 3
    assert terminal.lines[2].startswith("faces: 220/220 epochs  100 %")


def test_live_table_shows_published_steps_and_fits_the_terminal(campaign: Campaign, monkeypatch: pytest.MonkeyPatch):
    running, campaign.state = campaign.trials[1], "running"
    running.state, running.epoch, running.metrics, running.judged = "running", 0, {}, []
    campaign.rank()
    states = {running.run: (1000, 20_000, "epoch 2/20  loss 1.0")}
    monkeypatch.setattr(live, "read_states", lambda runs: {run: states[run] for run in runs})
    seconds = iter(range(100, 200, 10))
    monkeypatch.setattr(live, "time", type("clock", (), {"monotonic": staticmethod(lambda: float(next(seconds)))}))
    display = CampaignDisplay(campaign)
    _, first, *rest = display.lines(80, 24)
    assert first.split()[:3] == ["9e3779b1", "running", "1.0/20"]
    assert rest[-1].startswith("faces: 221/240 epochs")
    states[running.run] = (1640, 20_000, "epoch 2/20  loss 1.0")
    assert display.lines(80, 24)[1].split() == [
        "9e3779b1",
        "running",
        "1.6/20",
        "0.00726",
        "128",
        "1",
        "4.7",
    ]  # 640 / 64 / 10
    states[running.run] = (500, 1200, "fills the node cache")
    assert display.lines(80, 24)[1].split()[2] == "0/20"
    lines = display.lines(60, 10)
    assert len(lines) < 10
    assert max(map(len, lines)) < 60
    assert lines[-2] == "and 6 more: zpoint campaign faces"


def test_without_a_terminal_each_end_of_a_trial_is_one_line(campaign: Campaign, capsys: pytest.CaptureFixture[str]):
    lost = campaign.trials[7]
    lost.state, lost.reason = "running", ""
    with live_display(campaign) as display:
        display(campaign)
        lost.state, lost.reason = "lost", "its process died"
        display(campaign)
        display(campaign)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == describe_end(campaign, lost)
    assert lines[0].startswith(
        "trial celeba-vae-538453d7 (kl_factor 1.06, z_dim 512) lost, its process died: epoch 4/20"
    )
    assert len(lines) == 2
    assert lines[1].startswith("faces: 240/240 epochs  100 %")
    assert lines[1].endswith("9 finished, 1 stopped, 1 diverged, 1 lost")


def test_mlflow_gets_metrics_tags_and_a_table_of_all_trials(campaign: Campaign):
    best = campaign.trial(campaign.best)
    assert best is not None
    assert summarize(campaign) == {
        "trials_finished": 9, "trials_stopped": 1, "trials_diverged": 1, "trials_lost": 1,
        "hypervolume": campaign.hypervolume[-1], "best_psnr": best.judged[-1]["valid_psnr"],
        "best_distance": best.judged[-1]["hog_frechet_normal"],
    }  # fmt: skip
    assert trial_tags(campaign, best) == {
        "search.model.z_dim": "64", "search.loss.kl_factor": "2.44", "zpoint.front": "true",
    }  # fmt: skip
    content = make_table(campaign)
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["run"] for row in rows if row["best"]] == [campaign.best]
    assert {row["run"] for row in rows if row["front"]} == set(campaign.pareto_front)
    assert {row["state"] for row in rows} == {"finished", "stopped", "diverged", "lost"}


def test_description_fits_a_tag_and_counts_the_trials_that_do_not(campaign: Campaign):
    assert describe(campaign).count("\n|") == 2 + 12
    assert "    zpoint promote faces" in describe(campaign)
    text = describe(make_campaign(200))
    assert NOTE_LIMIT - 150 < len(text) <= NOTE_LIMIT
    assert text.endswith(f"and {200 - (text.count(chr(10) + '|') - 2)} more in trials.json")
    assert "promote" not in describe(make_campaign(0))
