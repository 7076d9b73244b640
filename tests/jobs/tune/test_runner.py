"""A campaign's command without Ray: which trial is next, how each one ends, and what the same command does then."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from aecore.config import Recipe, check_recipe, load_recipe
from aecore.data.shards import Manifest
from aecore.training.checkpoint import RETRY_S
from cluster.lock import LockedError
from jobs.dataset import open_dataset
from jobs.run_store import find_run
from jobs.tune import job, runner
from jobs.tune.campaign import (
    Campaign,
    Span,
    Trial,
    campaign_file,
    discard,
    from_json,
    lock_campaign,
    open_campaign,
    read_campaign,
    write_campaign,
)
from jobs.tune.job import explain_no_best, trial_env, trial_resources, tune
from jobs.tune.live import count_epochs
from jobs.tune.runner import BUDGET, CHECKPOINT_S, CampaignRun
from jobs.tune.stopping import reason_to_stop
from tests.jobs.tune.made_campaigns import make_campaign

MANIFEST = Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits={})
SPACE = {"loss.kl_factor": "log(0.01, 1)", "model.z_dim": [2, 3]}
EPOCHS = 10  # judged after 2, 4, 6, 8 and 10


class Trainings:
    """Trains the trials of a command one after the other, each with the PSNR and distance of its epochs."""

    def __init__(self, campaign: Campaign | None = None, **search: Any) -> None:
        epochs = search.pop("epochs", EPOCHS)
        search = {"space": SPACE, "trials": 4, **search}
        self.recipe = check_recipe({"optim": {"epochs": epochs}, "search": search})
        self.campaign = campaign or open_campaign(self.recipe, "x", MANIFEST)
        self.campaign.recipe = self.recipe.model_dump(mode="json")
        self.run = CampaignRun(self.campaign, self.recipe, MANIFEST)
        self.run.begin()

    def next(self) -> str:
        """Start the next trial; return its id, which is its run's name."""
        trial = self.run.next_trial()
        assert trial is not None
        self.run.running[trial.run] = trial
        self.run.start(trial.run, trial.run, 1.0)
        return trial.run

    def train(self, run: str, psnr: float, distance: float, active: int = 2, normal: float = 9.0) -> str:
        """Report the epochs that are left until the trial is stopped or finished; return the reason of a stop."""
        trial = self.run.running[run]
        for epoch in range(trial.epoch + 1, self.recipe.optim.epochs + 1):
            metrics = {"valid_psnr": psnr, "valid_active_units": active, "time_total_s": 1.0}
            if epoch in self.recipe.optim.judged_epochs:
                metrics |= {"hog_frechet_normal": normal, "hog_frechet_gaussian": distance}
            if reason := self.run.record(run, {"epoch": epoch, **metrics}):
                self.run.end(run)
                return reason
        self.run.record(run, {"outcome": "finished"})
        self.run.end(run)
        return ""

    def train_all(self, *scores: tuple[float, float]) -> Campaign:
        for psnr, distance in scores:
            run = self.next()
            self.train(run, psnr, distance)
        assert self.run.next_trial() is None
        self.run.close()
        return self.campaign


def states(campaign: Campaign) -> list[str]:
    return [trial.state for trial in campaign.trials]


def test_finished_campaign_is_ranked_by_the_rule_and_extended_by_more_trials():
    campaign = Trainings(trials=2).train_all((20, 5), (19, 4))
    assert (campaign.state, campaign.best, campaign.sampler) == ("finished", campaign.trials[1].run, "gaussian")
    runs = [trial.run for trial in campaign.trials]
    extended = Trainings(campaign, trials=4)
    extended.train_all((20, 3), (20, 6))
    assert [trial.run for trial in campaign.trials][:2] == runs
    assert (len(campaign.trials), campaign.best) == (4, campaign.trials[2].run)
    assert not CampaignRun(campaign, extended.recipe, MANIFEST).has_work()


def test_trials_and_budgets_are_no_part_of_a_campaigns_identity_but_the_space_is():
    first = Trainings(trials=2).campaign
    assert Trainings(trials=9, minutes=5, psnr_slack=1, parallel=3).campaign.campaign == first.campaign
    assert Trainings(space={"model.z_dim": [2, 3]}).campaign.campaign != first.campaign


def test_space_whose_first_values_do_not_go_together_is_searched():
    """Before, the campaign was refused; only this one of its points is no recipe."""
    trainings = Trainings(space={"model.norm": ["batch", "none"], "optim.batch": [1, 32]}, stop="none")
    campaign = trainings.train_all(*[(20, 5)] * 3)
    assert {"model.norm": "batch", "optim.batch": 1} not in [trial.point for trial in campaign.trials]
    digest = trainings.recipe.at({"model.norm": "batch", "optim.batch": 32}).digest(
        MANIFEST.digest, json.dumps(trainings.recipe.search.space, sort_keys=True), with_epochs=True
    )
    assert campaign.digest == digest
    assert not CampaignRun(campaign, trainings.recipe, MANIFEST).has_work()


def test_space_without_a_valid_point_is_refused():
    with pytest.raises(ValueError, match="needs at least 2 images"):
        Trainings(space={"model.norm": ["batch"], "optim.batch": [1]})


def test_equal_points_are_one_run():
    """Before, a list of one value and bounds [1, 1] trained two trials at once in one folder."""
    campaign = Trainings(space={"model.z_dim": [2], "loss.kl_factor": "log(1, 1)"}).train_all((20, 5))
    assert len(campaign.trials) == 1


def test_lost_trial_leaves_the_campaign_unfinished_and_is_tried_again(caplog: pytest.LogCaptureFixture):
    trainings = Trainings(trials=2)
    lost = trainings.next()
    trainings.run.record(lost, {"epoch": 1, "valid_psnr": 9.0, "valid_active_units": 2})
    trainings.run.recover(lost, "503 Slow Down")
    assert caplog.messages == [f"trial {lost}: 503 Slow Down; it resumes from its last checkpoint"]
    trainings.run.start(lost, lost, 1.0)
    trainings.run.end(lost, "its process died")
    campaign = trainings.train_all((20, 5))
    assert (states(campaign), campaign.state) == (["lost", "finished"], "unfinished")
    assert campaign.trials[0].reason == "its process died"
    again = Trainings(campaign, trials=2)
    assert again.next() == lost
    again.train(lost, 21, 4)
    again.run.close()
    assert (states(campaign), campaign.state, campaign.best) == (["finished", "finished"], "finished", lost)
    assert [len(trial.spans) for trial in campaign.trials] == [3, 1]


def test_time_of_a_killed_command_ends_when_it_wrote_the_file_last():
    """Before, the trials of a killed driver seemed to train on, which spent search.gpu_hours."""
    trainings = Trainings()
    trial = trainings.run.running[trainings.next()]
    trial.spans = [Span(1000.0, None, 1.0, "core")]
    write_campaign(trainings.campaign)
    path = campaign_file(trainings.campaign.campaign)[1]
    os.utime(path, (1360.0, 1360.0))
    campaign = open_campaign(trainings.recipe, "x", MANIFEST)
    assert campaign.trials[0].spans == [Span(1000.0, 1360.0, 1.0, "core")]
    assert campaign.device_hours() == pytest.approx(0.1)


def test_storage_is_asked_once_when_a_killed_command_wrote_the_file(monkeypatch: pytest.MonkeyPatch):
    """Before, once for each trial, also for one that had ended."""
    requests: list[str] = []
    monkeypatch.setattr("jobs.tune.campaign._modified", lambda name: requests.append(name) or 1360.0)
    campaign = make_campaign(12)
    campaign.close_spans()
    assert requests == []
    for trial in campaign.trials[-2:]:
        trial.spans.append(Span(1000.0, None, 1.0, "core"))
    campaign.close_spans()
    assert requests == [campaign.campaign]
    assert [trial.spans[-1] for trial in campaign.trials[-2:]] == [Span(1000.0, 1360.0, 1.0, "core")] * 2


def test_discarded_campaign_has_no_file():
    campaign = Trainings().campaign
    discard(campaign)  # without a file yet
    write_campaign(campaign)
    discard(campaign)
    assert read_campaign(campaign.campaign) is None


def test_diverged_trial_is_not_tried_again():
    trainings = Trainings(trials=2)
    run = trainings.next()
    trainings.run.record(run, {"outcome": "diverged", "reason": "the loss was not finite"})
    trainings.run.end(run)
    campaign = trainings.train_all((20, 5))
    assert (states(campaign), campaign.state) == (["diverged", "finished"], "finished")
    assert not CampaignRun(campaign, trainings.recipe, MANIFEST).has_work()


def test_model_without_active_units_is_stopped_at_once_and_never_best():
    trainings = Trainings(trials=3)
    dead = trainings.next()
    assert trainings.train(dead, 30, 1, active=0) == "no active units after epoch 1"
    campaign = trainings.train_all((20, 5), (19, 4))
    assert (states(campaign), campaign.best) == (["stopped", "finished", "finished"], campaign.trials[2].run)
    unstopped = Trainings(campaign, trials=3, stop="none")
    assert unstopped.next() == dead
    unstopped.train(dead, 30, 1, active=0)
    assert (campaign.trials[0].state, campaign.best) == ("finished", campaign.trials[2].run)


def test_campaign_ends_once_its_stopped_trials_are_saved(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    """Tune kills a trial's process 5 s after the searcher's end; a checkpoint that was not whole was lost."""
    now = 100.0
    monkeypatch.setattr(runner, "time", type("clock", (), {"monotonic": staticmethod(lambda: now)}))
    trainings = Trainings(trials=2)
    saved, unsaved = trainings.next(), trainings.next()
    for run in (saved, unsaved):
        assert trainings.train(run, 20, 5, active=0)
        assert not trainings.run.finished()
    for epochs, step in ((0, 5), (1, 10)):  # of an earlier save within the epoch, and of the epoch
        folder = Path(find_run(saved).uri, "checkpoints", f"step-{step:08d}")
        folder.mkdir(parents=True)
        assert not trainings.run.finished()
        (folder / "progress.json").write_text(json.dumps({"epochs": epochs}))
        now += CHECKPOINT_S / 3
        assert not trainings.run.finished()
    assert saved not in trainings.run._unsaved
    assert caplog.messages == []
    now += CHECKPOINT_S
    assert trainings.run.finished()
    assert caplog.messages == [
        f"trial {unsaved}: no checkpoint of epoch 1 after 60 s; a larger budget resumes it from epoch 0"
    ]


@pytest.mark.parametrize(
    ("state", "reason", "active", "error"),
    [
        ("finished", "", 0, "no active units; search lower values of loss.kl_factor, or set loss.kl_warmup or more"),
        ("stopped", BUDGET, 2, f"{BUDGET}; raise search.minutes or search.gpu_hours"),
        ("diverged", "the loss is nan", 2, "the loss is nan; search lower values of optim.lr"),
        ("lost", "its process died", 2, "its process died; start the same command again, which resumes"),
    ],
)
def test_campaign_without_a_model_says_what_to_change(state: Any, reason: str, active: int, error: str):
    trainings = Trainings(trials=2)
    for run in (trainings.next(), trainings.next()):
        trainings.run.record(run, {"epoch": 1, "valid_psnr": 9.0, "valid_active_units": active})
        trainings.run._outcomes[run] = (state, reason)
        trainings.run.end(run)
    trainings.run.close()
    assert explain_no_best(trainings.campaign).startswith(error)
    assert "no trial was started; raise search.minutes" in explain_no_best(make_campaign(0))


def test_campaign_without_a_model_fails_each_time(tiny: str, faces: Path, refused: Callable[..., str]):
    """Before, the second of two equal commands ended with exit status 0, and promote asked for a third."""
    recipe = load_recipe(Path(tiny), [f"data.uri={faces}", "name=dead", "search.trials=1"])
    campaign = open_campaign(recipe, "tiny", open_dataset(str(faces)).manifest)
    campaign.run_id, campaign.state = "logged", "finished"
    campaign.trials = [Trial("tiny-1", {"model.z_dim": 2, "loss.kl_factor": 1.0}, 2, state="finished", epoch=2)]
    campaign.trials[0].judged = [{"epoch": 2, "valid_psnr": 9.0, "valid_active_units": 0, "hog_frechet_normal": 9.0}]
    campaign.rank()
    write_campaign(campaign)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="campaign 'dead' has no model to choose: no active units"):
            tune(recipe, "tiny")
    assert "campaign 'dead' has no model to choose: start its command again" in refused("promote", "dead")


def test_smaller_budget_does_not_rank_a_campaign_that_another_process_runs(tiny: str, faces: Path):
    """Before, the second command wrote its file over that of the first."""
    recipe = load_recipe(Path(tiny), [f"data.uri={faces}", "name=mine", "search.minutes=1"])
    campaign = open_campaign(recipe, "tiny", open_dataset(str(faces)).manifest)
    campaign.state, campaign.seconds = "running", 600.0
    write_campaign(campaign)
    with lock_campaign("mine"), pytest.raises(LockedError, match="campaign 'mine' is being run by pid"):
        tune(recipe, "tiny")
    assert read_campaign("mine") == campaign


@pytest.mark.parametrize("trials", [1, 9])  # a command that only ranks the campaign, and one that trains
def test_command_starts_from_what_another_one_has_written_before_the_lock(
    trials: int, tiny: str, faces: Path, monkeypatch: pytest.MonkeyPatch
):
    """Before, it read the file before it had the lock, and wrote it without the other command's last trials."""
    recipe = load_recipe(Path(tiny), [f"data.uri={faces}", "name=shared", f"search.trials={trials}"])
    campaign = open_campaign(recipe, "tiny", open_dataset(str(faces)).manifest)
    campaign.trials = make_campaign(2).trials
    recorded: list[Campaign] = []

    @contextmanager
    def lock_after_another_command(name: str) -> Iterator[None]:
        write_campaign(campaign)
        with lock_campaign(name):
            yield

    def record_campaign(campaign: Campaign, recipe: Recipe) -> Any:
        recorded.append(campaign)
        raise InterruptedError

    write_campaign(replace(campaign, trials=campaign.trials[:1]))
    monkeypatch.setattr(job, "lock_campaign", lock_after_another_command)
    monkeypatch.setattr(job, "connect", lambda: None)
    monkeypatch.setattr(job, "record_campaign", record_campaign)
    with pytest.raises(InterruptedError):
        tune(recipe, "tiny")
    assert [trial.run for trial in recorded[0].trials] == [trial.run for trial in campaign.trials]


def test_worse_half_is_stopped_at_the_rungs_and_the_front_goes_on():
    campaign = Trainings(trials=6).train_all((20, 5), (19, 6), (25, 9), (18, 7), (17, 8), (19.9, 5.5))
    assert states(campaign) == ["finished", "stopped", "finished", "stopped", "stopped", "stopped"]
    assert campaign.trials[3].reason == "in the worse half of 4 trials at epoch 2"
    assert campaign.trials[5].reason == "in the worse half of 3 trials at epoch 4"  # it was third of six at epoch 2
    assert [trial.epoch for trial in campaign.trials] == [10, 2, 10, 2, 2, 4]


def test_model_without_active_units_is_dead_only_after_the_warmup_of_the_kl():
    recipe = check_recipe({"loss": {"kl_warmup": 3}, "optim": {"epochs": EPOCHS}})
    trial = Trial("a", {}, EPOCHS)
    for epoch, reason in ((2, ""), (3, "no active units after epoch 3")):
        trial.record(epoch, {"valid_active_units": 0})
        assert reason_to_stop(Trainings().campaign, trial, recipe) == reason


@pytest.mark.parametrize(("kl_warmup", "reason"), [(1, "no active units after epoch 2"), (3, "")])
def test_searched_warmup_of_the_kl_is_the_trials_own(kl_warmup: float, reason: str):
    """Before, the campaign's recipe, of 0 epochs here, had a trial stopped within its warm-up."""
    recipe = check_recipe({"optim": {"epochs": EPOCHS}, "search": {"space": {"loss.kl_warmup": [1, 3]}}})
    trial = Trial("a", {"loss.kl_warmup": kl_warmup}, EPOCHS)
    trial.record(2, {"valid_active_units": 0})
    assert reason_to_stop(Trainings().campaign, trial, recipe) == reason


def test_epoch_that_is_trained_again_keeps_its_first_metrics():
    """A trial that lost its worker goes on from its checkpoint, which may be older than the last epoch."""
    trial = Trial("a", {}, EPOCHS)
    for psnr in (20.0, 25.0):
        trial.record(2, {"valid_psnr": psnr, "hog_frechet_normal": 4.0})
    assert (trial.metrics["valid_psnr"], [metrics["valid_psnr"] for metrics in trial.judged]) == (20.0, [20.0])


@pytest.mark.parametrize("store_fails", [False, True])
def test_epoch_that_tune_did_not_get_is_read_from_the_run(monkeypatch: pytest.MonkeyPatch, store_fails: bool):
    """Its process died between the checkpoint of the last epoch and the report; before, an older epoch ranked it."""
    trainings = Trainings(trials=1)
    run = trainings.next()
    trial = trainings.run.running[run]
    trainings.run.record(run, {"epoch": 8, "valid_psnr": 19.0, "hog_frechet_normal": 9.0, "hog_frechet_gaussian": 8.0})
    last = {"valid_psnr": 21.0, "hog_frechet_normal": 5.0, "hog_frechet_gmm": 4.0}
    find_run(run).save_epoch(EPOCHS, last, [], None, "1 x CPU")
    trainings.run.record(run, {"outcome": "finished"})

    def fail(name: str) -> Any:
        raise OSError("503 Slow Down")

    if store_fails:
        monkeypatch.setattr(runner, "stored_run", fail)
    trainings.run.end(run)
    if store_fails:
        assert (trial.state, trial.reason) == ("lost", "503 Slow Down")
    else:
        assert (trial.state, trial.epoch, trial.judged[-1]) == ("finished", EPOCHS, {"epoch": EPOCHS} | last)


@pytest.mark.parametrize("state", ["running", "lost"])
def test_point_of_a_trial_that_goes_on_is_one_result_of_the_plan(state: Any):
    """Before, Optuna had two: the plan was built after the trial's end, or took those of a lost trial."""
    trainings = Trainings(trials=1)
    run = trainings.next()
    trainings.run.record(run, {"epoch": 2, "valid_psnr": 19.0, "hog_frechet_normal": 9.0, "hog_frechet_gaussian": 8.0})
    trainings.run.close()
    trainings.campaign.trials[0].state = state
    again = Trainings(trainings.campaign, trials=1)
    again.train(again.next(), 20, 5)
    assert [trial.values for trial in again.run.plan._study.trials] == [[20, 5]]


def test_metrics_that_are_not_finite_are_left_out_of_the_campaigns_file():
    """Before, one of them kept the file from being written until the end of the campaign."""
    trainings = Trainings(trials=1)
    run = trainings.next()
    for epoch, psnr, distance in ((2, math.inf, 4.0), (4, 20.0, math.nan)):
        trainings.run.record(run, {"epoch": epoch, "valid_psnr": psnr, "hog_frechet_normal": distance})
    write_campaign(trainings.campaign)
    stored = read_campaign(trainings.campaign.campaign)
    assert stored is not None
    assert (stored.trials[0].epoch, stored.trials[0].metrics, stored.trials[0].judged) == (4, {"valid_psnr": 20.0}, [])


def test_trials_of_other_lengths_are_not_compared():
    campaign = Trainings().campaign
    for run, epochs, psnr, distance in (("long", 20, 30.0, 1.0), ("short", EPOCHS, 20.0, 5.0)):
        campaign.trials.append(trial := Trial(run, {}, epochs))
        trial.record(2, {"valid_psnr": psnr, "hog_frechet_normal": distance, "hog_frechet_gaussian": distance})
    recipe = check_recipe({"optim": {"epochs": EPOCHS}})
    assert reason_to_stop(campaign, campaign.trials[1], recipe) == ""
    campaign.trials[0].epochs = EPOCHS
    assert reason_to_stop(campaign, campaign.trials[1], recipe) == "in the worse half of 2 trials at epoch 2"


def test_minutes_stop_the_trials_and_more_minutes_let_them_go_on():
    trainings = Trainings(trials=2, minutes=1)
    run = trainings.next()
    trainings.run._clock = lambda: 61.0
    assert trainings.train(run, 20, 5) == BUDGET
    assert trainings.run.next_trial() is None
    trainings.run.close()
    assert (states(trainings.campaign), trainings.campaign.state) == (["stopped"], "finished")
    assert not Trainings(trainings.campaign, trials=2, minutes=1).run.has_work()
    more = Trainings(trainings.campaign, trials=2, minutes=9)
    assert more.next() == run
    more.train(run, 20, 5)
    assert states(more.train_all((20, 4))) == ["finished", "finished"]


def test_gpu_hours_count_the_devices_of_each_trial():
    trainings = Trainings(gpu_hours=2)
    run = trainings.next()
    trial = trainings.run.running[run]
    trial.spans = [Span(0.0, 3600.0, 1.5, "core"), Span(3600.0, 7200.0, 0.5, "core")]
    assert trainings.run.spent()
    trial.spans[1] = Span(3600.0, 7200.0, 0.4, "core")
    assert not trainings.run.spent()


def test_hours_on_cores_do_not_count_as_gpu_hours(monkeypatch: pytest.MonkeyPatch):
    """Before, a campaign of 12 core hours that went on with GPUs and search.gpu_hours=10 had nothing left to do."""
    trainings = Trainings(gpu_hours=10)
    trainings.run.running[trainings.next()].spans = [Span(0.0, 3600.0, 12.0, "core")]
    trainings.run.close()
    write_campaign(trainings.campaign)
    monkeypatch.setattr(job, "connect", lambda: None)
    for device, has_work in (("CPU", False), ("GPU", True)):
        monkeypatch.setattr(job, "trial_resources", lambda _, device=device: ({device: 1.0}, 1))
        assert job._open_run(trainings.recipe, "x", MANIFEST).has_work() == has_work
    trainings.campaign.trials[0].spans = [Span(0.0, 3600.0, 12.0, "GPU")]
    trainings.campaign.unit = "GPU"
    write_campaign(trainings.campaign)
    monkeypatch.setattr(job, "connect", lambda: pytest.fail("ranking it anew needs no Ray"))
    assert not job._open_run(trainings.recipe, "x", MANIFEST).has_work()


def test_spans_of_earlier_versions_have_the_devices_of_their_trial():
    content: dict[str, Any] = make_campaign(1).to_json() | {"unit": "GPU"}
    content["trials"][0] |= {"devices": 0.5, "spans": [[0.0, 3600.0], [7200.0, None]]}
    trial = from_json(content).trials[0]
    assert trial.spans == [Span(0.0, 3600.0, 0.5, "GPU"), Span(7200.0, None, 0.5, "GPU")]
    assert from_json(json.loads(json.dumps(from_json(content).to_json()))).trials[0] == trial


def test_replicates_of_the_best_points_are_ranked_by_their_mean():
    trainings = Trainings(trials=4, replicates=3, stop="none")
    for scores in ((20, 5.0), (20.5, 5.1), (21, 5.2), (22, 9)):
        run = trainings.next()
        trainings.train(run, *scores)
    campaign = trainings.train_all((20, 7), (20, 7), (20.5, 5.1), (20.5, 5.1), (21, 5.4), (21, 5.2))
    assert [trial.point.get("optim.seed") for trial in campaign.trials] == [None] * 4 + [1, 2] * 3
    assert campaign.best in {t.run for t in campaign.trials if campaign.trials[1].run in (t.run, t.replicate_of)}
    assert "lies within noise" in campaign.note
    assert not CampaignRun(campaign, trainings.recipe, MANIFEST).has_work()


@pytest.mark.parametrize("trials", [1, 2])
def test_replicate_in_the_worse_half_is_trained_to_its_end(trials: int):
    """Before, a bad seed was stopped at a rung, and the mean was that of the point's lucky seeds."""
    trainings = Trainings(trials=trials, replicates=3)
    points = ((20.0, 5.5), (20.5, 5.6))[:trials]
    for scores in points:
        trainings.train(trainings.next(), *scores)
    campaign = trainings.train_all((20, 5.4), (19, 9.0), *[(20.5, 5.5)] * 2 * (trials - 1))
    assert states(campaign) == ["finished"] * 3 * trials
    assert campaign.points()[0][2].distance == 9.0
    best = campaign.trial(campaign.best)
    assert best is not None
    assert (best.replicate_of or best.run) == campaign.trials[trials - 1].run


def test_replicate_that_an_earlier_version_stopped_goes_on():
    trainings = Trainings(trials=1, replicates=2)
    campaign = trainings.train_all((20, 5.5), (19, 9.0))
    campaign.trials[1].state, campaign.trials[1].reason = "stopped", "in the worse half of 2 trials at epoch 2"
    assert Trainings(campaign, trials=1, replicates=2).next() == campaign.trials[1].run


def test_point_with_a_seed_without_active_units_is_not_chosen():
    trainings = Trainings(trials=2, replicates=2)
    for scores in ((20, 5.0), (20.5, 5.6)):
        trainings.train(trainings.next(), *scores)
    assert trainings.train(trainings.next(), 19, 4.0, active=0) == ""
    campaign = trainings.train_all((20.5, 5.7))
    assert states(campaign) == ["finished"] * 4
    assert campaign.best == campaign.trials[1].run
    assert campaign.pareto_front == [campaign.trials[1].run]


def test_run_that_the_storage_does_not_open_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    """Before, the first 503 of S3 between two trials ended the campaign."""
    trainings = Trainings(trials=2)

    def refuse(name: str) -> Any:
        raise OSError("503 Slow Down")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "stored_run", refuse)
        assert [trainings.run.next_trial() for _ in range(3)] == [None] * 3
        assert not trainings.run.finished()
    run = trainings.next()
    assert [trial.run for trial in trainings.campaign.trials] == [run]
    trainings.train(run, 20, 5)
    monkeypatch.setattr(runner, "stored_run", refuse)
    clock = iter((0.0, RETRY_S + 1))
    monkeypatch.setattr(runner, "time", type("clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    monkeypatch.setattr(trainings.run, "_clock", lambda: 1.0)
    assert [trainings.run.next_trial() for _ in range(2)] == [None] * 2
    assert (states(trainings.campaign), trainings.campaign.trials[1].reason) == (["finished", "lost"], "503 Slow Down")
    assert trainings.run.finished()


def test_runs_of_a_killed_command_are_locked_at_the_same_time(monkeypatch: pytest.MonkeyPatch):
    """On S3 the lock of a lost host's run is free after 60 s; before, eight trials took eight minutes."""
    trainings = Trainings(trials=3)
    runs = [trainings.next(), trainings.next()]
    trainings.run.close()
    locked, both = [], Barrier(2, timeout=60)

    @contextmanager
    def lock_run(run: str) -> Iterator[None]:
        if run in runs:
            both.wait()
        locked.append(run)
        yield
        locked.remove(run)

    monkeypatch.setattr(runner, "lock_run", lock_run)
    again = Trainings(trainings.campaign, trials=3)
    assert sorted(locked) == sorted(runs)
    assert [again.next() for _ in range(3)][:2] == runs
    assert len(locked) == 3
    again.train(runs[0], 20, 5)
    assert runs[0] not in locked
    again.run.close()
    assert locked == []


def test_run_that_is_locked_at_the_start_is_opened_in_its_turn():
    trainings = Trainings(trials=1)
    run = trainings.next()
    other = Trainings(trainings.campaign, trials=1)  # while the first one holds the lock
    trainings.run.close()
    assert other.next() == run


def test_search_ends_when_no_point_is_a_recipe():
    trainings = Trainings(epochs=3, space={"model.z_dim": [2]})
    optim = trainings.recipe.optim.model_copy(update={"warmup": 5.0})  # of more epochs than the run has
    trainings.run.recipe = trainings.recipe.model_copy(update={"optim": optim})
    assert trainings.run.next_trial() is None
    assert trainings.run.finished()


def test_longer_run_of_another_command_is_withheld():
    longer = Trainings(trials=1)
    run = longer.next()
    find_run(run).save_epoch(9, {"valid_psnr": 20.0}, [], None, "1 x CPU")
    longer.run.close()
    other = Trainings(Campaign("other", "", "", "x", longer.recipe.model_dump(mode="json")), trials=1, epochs=5)
    assert other.run.next_trial() is None
    assert (states(other.campaign), other.run.refused) == (["lost"], {})
    assert "has begun epoch 9, optim.epochs=5 are fewer" in other.run.withheld[run]


def test_replicates_of_a_searched_seed_are_not_trained_twice():
    trainings = Trainings(trials=2, replicates=2, stop="none", space={"optim.seed": [0, 1], "model.z_dim": [2]})
    campaign = trainings.train_all((20, 5), (21, 6))
    assert len(campaign.trials) == 2
    assert trainings.run.finished()


@pytest.mark.parametrize("epochs", [EPOCHS, EPOCHS - 3])  # a longer run is taken as it is
def test_run_that_another_command_has_finished_is_taken_over(epochs: int):
    trainings = Trainings(trials=1)
    run = trainings.next()
    trainings.train(run, 20, 5)
    store = find_run(run)
    store.save_epoch(EPOCHS, {"valid_psnr": 21.0, "valid_active_units": 2, "hog_frechet_normal": 4.0,
                              "hog_frechet_gaussian": 3.0}, [], None, "1 x CPU")  # fmt: skip
    model = Path(store.uri, "model")
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"recipe": trainings.recipe.model_dump(mode="json")}))
    other = Trainings(Campaign("other", "", "", "x", trainings.recipe.model_dump(mode="json")), trials=1, epochs=epochs)
    assert other.run.next_trial() is None
    [trial] = other.campaign.trials
    assert (trial.run, trial.state, trial.spans, trial.metrics["valid_psnr"]) == (run, "finished", [], 21.0)
    assert (trial.epochs, trial.epoch) == (EPOCHS, EPOCHS)
    other.run.close()
    longer = f"{run} has {EPOCHS} epochs from another command, the trials {epochs}"
    assert (longer in other.campaign.note) == (epochs < EPOCHS)
    assert not CampaignRun(other.campaign, other.recipe, MANIFEST).has_work()


def test_sampler_of_the_distance_is_the_recipes():
    campaign = Trainings(trials=1).train_all((20, 5))
    assert (campaign.points()[0][0].distance, campaign.sampler) == (5, "gaussian")
    campaign = Trainings(campaign, trials=1, sampler="normal").campaign
    campaign.rank()
    assert (campaign.points()[0][0].distance, campaign.sampler) == (9, "normal")


def test_trial_on_a_joined_cluster_knows_its_address(monkeypatch: pytest.MonkeyPatch):
    """Without it a trial takes the cluster for a local Ray, and refuses workers for which there is no room yet."""
    assert "RAY_ADDRESS" not in trial_env()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert trial_env()["RAY_ADDRESS"] == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("nodes", "search", "workers", "expected"),
    [
        ([{"CPU": 2}], {}, 1, ({"CPU": 1}, None)),
        ([{"CPU": 8}], {"trials": 2}, 1, ({"CPU": 4}, None)),
        ([{"CPU": 8}], {"parallel": 4}, 1, ({"CPU": 2}, 4)),
        ([{"CPU": 8}, {"CPU": 8}], {}, 4, ({"CPU": 4}, 1)),
        ([{"CPU": 16, "GPU": 2}], {}, 1, ({"CPU": 1, "GPU": 1}, None)),
    ],
)
def test_trials_share_the_cluster(monkeypatch, nodes: list, search: dict, workers: int, expected: tuple):
    monkeypatch.setattr("jobs.train.placement.node_resources", lambda without=(): nodes)
    monkeypatch.setattr("jobs.train.placement.has_gpu", lambda: any("GPU" in node for node in nodes))
    assert trial_resources(check_recipe({"search": search, "scale": {"workers": workers}})) == expected


def test_listeners_get_the_campaign_as_it_was_at_each_change():
    """They read it in their own threads, while the command changes it."""
    trainings = Trainings()
    snapshots: list[Campaign] = []
    trainings.run.listeners = [snapshots.append]
    trainings.train(trainings.next(), 20, 5)
    assert [campaign.trials[0].epoch for campaign in snapshots] == [*range(EPOCHS + 1), EPOCHS]
    assert snapshots[-1] == trainings.campaign


@pytest.mark.parametrize(
    ("search", "totals"),
    [
        ({"trials": 4}, (40, 10)),
        ({"trials": 4, "space": {"model.z_dim": [2]}}, (10, 10)),
        ({"trials": 9, "space": {"model.norm": ["batch", "none"], "optim.batch": [1, 32]}}, (30, 10)),  # one is invalid
    ],
)
def test_progress_ends_at_its_total(search: dict, totals: tuple):
    """Before, stopped and failed trials left the bar at 67 %."""
    trainings = Trainings(**search)
    shown: list[tuple[int, int]] = []
    trainings.run.listeners = [lambda campaign: shown.append(count_epochs(campaign, {})[:2])]
    trainings.train(trainings.next(), 20, 5, active=0)
    assert shown[-1] == (10, totals[0])
    trainings.campaign.state = "unfinished"  # interrupted
    assert count_epochs(trainings.campaign, {})[:2] == (10, totals[0])
    trainings.campaign.state = "finished"
    assert count_epochs(trainings.campaign, {})[:2] == (10, totals[1])
