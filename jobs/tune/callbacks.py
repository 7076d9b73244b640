"""What a campaign's driver does while Ray Tune runs its trials. Imported only there: it needs ray.tune."""

import logging
from typing import Any

from ray.tune import Callback

from aecore.config import Recipe
from aecore.data.shards import Manifest
from cluster.progress import Bar
from jobs.run_store import RunStore, open_run
from jobs.train.ray_trainer import training_error
from jobs.tune.trials import Trial, finished_trial, trial_recipe

log = logging.getLogger(__name__)


class CampaignCallback(Callback):
    """Shows progress, keeps each trial's MLflow run, and collects the finished trials in `trials`.

    `trials` begins with those that need not run again; `parent` is the campaign's MLflow run, '' where there is none.
    """

    def __init__(self, recipe: Recipe, campaign: str, manifest: Manifest, parent: str, trials: list[Trial]) -> None:
        self.recipe, self.campaign, self.manifest = recipe, campaign, manifest
        self.tags = {"zpoint.campaign": campaign} | ({"mlflow.parentRunId": parent} if parent else {})
        self.trials = list(trials)
        self.records: dict[str, RunStore] = {}  # of those that run
        self.failed: list[Any] = []
        self.done = {trial["run"]: recipe.optim.epochs for trial in trials}
        self.bar = Bar(campaign, "epochs")

    def show(self, text: str = "") -> None:
        self.bar.update(sum(self.done.values()), self.recipe.search.trials * self.recipe.optim.epochs, text)

    def close(self) -> list[Exception]:
        """End what runs no more; gives the errors of the failed trials."""
        self.bar.close()
        errors = [training_error(trial.get_pickled_error() or trial.get_error()) for trial in self.failed]
        for trial, error in zip(self.failed, errors, strict=True):
            record = self.records.pop(trial.trial_id, None)  # none where its process could not start
            if record and isinstance(error, ValueError):
                record.discard()
                continue
            log.warning("trial %s failed: %s", record.name if record else trial.config, error)
            if record:
                record.close("FAILED")
        for record in self.records.values():
            record.close("KILLED")
        return errors

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        tried = self._tried(trial)
        self.records[trial.trial_id] = record = open_run(tried, tried.name, self.manifest, tags=self.tags)
        if not record.finished():
            record.begin()
        self.show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self.records[trial.trial_id]
        self.done[trial.trial_id] = len(record.epochs())
        figures = f"z_dim {trial.config['z_dim']} kl_factor {trial.config['kl_factor']:.2g}"
        self.show(f"{figures} psnr {result['valid_psnr']:.1f}")
        record.sync_to_mlflow()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self.records.pop(trial.trial_id)
        record.close("FINISHED")
        self.trials.append(finished_trial(self._tried(trial), record))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.failed.append(trial)  # its error is written a moment later

    def _tried(self, trial: Any) -> Recipe:
        return trial_recipe(self.recipe, self.campaign, trial.config["z_dim"], trial.config["kl_factor"])
