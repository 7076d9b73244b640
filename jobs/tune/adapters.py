"""The searcher, the scheduler and the callback by which Ray Tune drives a `CampaignRun`. They need ray.tune."""

import pickle
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from aecore.errors import one_line
from jobs.train.ray_trainer import training_error
from jobs.tune.runner import CampaignRun


class CampaignSearcher(Searcher):
    """Gives Tune the next trial of a campaign, as `{"run": name, "point": values}`."""

    def __init__(self, run: CampaignRun, max_running: int | None) -> None:
        super().__init__(metric="valid_psnr", mode="max")  # of no effect: the campaign scores its trials
        self.run, self.max_running = run, max_running

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's config, None to be asked again later, FINISHED after the last one."""
        if self.max_running is not None and len(self.run.running) >= self.max_running:
            return None
        if (trial := self.run.next_trial()) is None:
            return Searcher.FINISHED if self.run.finished() else None
        self.run.running[trial_id] = trial
        return {"run": trial.run, "point": trial.point}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial, unless Tune failed it: then the callback does, which gets the error."""
        if not error:
            self.run.end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the campaign's file is what a campaign resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


class CampaignScheduler(FIFOScheduler):
    """Stops a trial early as `jobs.tune.stopping` says; starts trials in their order."""

    def __init__(self, run: CampaignRun) -> None:
        super().__init__()
        self.run = run

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Record a trial's epoch and return Tune's decision."""
        return TrialScheduler.STOP if self.run.record(trial.trial_id, result) else TrialScheduler.CONTINUE


class CampaignCallback(Callback):
    """Tells a campaign of the start, the failure and the recovery of its trials."""

    def __init__(self, run: CampaignRun, devices: float) -> None:
        self.run, self.devices = run, devices

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.run.start(trial.trial_id, trial.config["run"], self.devices)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = last_error(trial)
        died = error is None or isinstance(error, RayActorError)
        self.run.recover(trial.trial_id, "its process died" if died else one_line(training_error(error)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the trials that Tune gave up; not all of them come to `on_trial_error`."""
        for trial in trials:
            if trial.status == Trial.ERROR and trial.trial_id in self.run.running:
                error = last_error(trial)
                self.run.end(trial.trial_id, one_line(training_error(error)) if error else "its process died")


def last_error(trial: Any) -> Exception | None:
    """Return the error with which a trial failed last, None if Tune has none.

    From Tune's file on the driver: `trial.get_pickled_error` asks the storage, whose failure may be that error.
    """
    if trial.pickled_error_file is None:
        return None
    with open(trial.pickled_error_file, "rb") as file:
        return pickle.load(file)
