"""The callback that follows a campaign's trials in its driver. Imported only there: it needs ray.tune."""

import logging
from contextlib import ExitStack
from typing import Any

from ray.tune import Callback, ResultGrid

from aecore.config import Recipe
from aecore.data.shards import Manifest
from cluster.progress import Bar
from jobs.run_store import RunStore, lock_run, open_run
from jobs.train.ray_trainer import training_error
from jobs.tune.trials import TrialResult, trial_recipe, trial_result

log = logging.getLogger(__name__)


class CampaignCallback(Callback):
    """Shows progress, keeps each trial's MLflow run, and collects the results of finished trials in `finished`.

    `finished` starts with the trials of an earlier command; `parent` is the campaign's MLflow run, '' if it has none.
    """

    def __init__(
        self, recipe: Recipe, campaign: str, manifest: Manifest, parent: str, finished: list[TrialResult]
    ) -> None:
        self.recipe, self.campaign, self.manifest = recipe, campaign, manifest
        self.tags = {"zpoint.campaign": campaign} | ({"mlflow.parentRunId": parent} if parent else {})
        self.finished = list(finished)
        self.running: dict[str, RunStore] = {}  # by trial id
        self.locks: dict[str, ExitStack] = {}  # by run name; held here, since Ray may replace a trial's process
        self.epochs = {trial["run"]: recipe.optim.epochs for trial in finished}
        self.bar = Bar(campaign, "epochs")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run and start its MLflow run."""
        recipe = self._recipe_at(trial.config)
        if recipe.name not in self.locks:
            lock = ExitStack()
            lock.enter_context(lock_run(recipe.name))
            self.locks[recipe.name] = lock
        self.running[trial.trial_id] = run_store = open_run(recipe, recipe.name, self.manifest, tags=self.tags)
        if not run_store.finished():
            run_store.start_mlflow_run()
        self._show_progress()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the trial's progress and log its epochs to MLflow."""
        run_store = self.running[trial.trial_id]
        self.epochs[trial.trial_id] = len(run_store.epochs())
        point = f"z_dim {trial.config['z_dim']} kl_factor {trial.config['kl_factor']:.2g}"
        self._show_progress(f"{point} psnr {result['valid_psnr']:.1f}")
        run_store.sync_to_mlflow()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's MLflow run and collect its result."""
        run_store = self.running.pop(trial.trial_id)
        run_store.end_mlflow_run("FINISHED")
        self.finished.append(trial_result(self._recipe_at(trial.config), run_store))
        self._unlock(run_store.name)

    def end_failed_trials(self, results: ResultGrid) -> list[Exception]:
        """End the runs of the trials that failed, of Tune's `results`; return their errors."""
        errors: list[Exception] = []
        for result in results:
            if not result.error:
                continue
            assert result.config is not None
            errors.append(error := training_error(result.error))
            name = self._recipe_at(result.config).name
            trial_id = next((key for key, run_store in self.running.items() if run_store.name == name), None)
            if trial_id is None:  # its process could not start
                log.warning("trial %s failed: %s", name, error)
                continue
            run_store = self.running.pop(trial_id)
            if isinstance(error, ValueError):
                run_store.discard()
            else:
                log.warning("trial %s failed: %s", name, error)
                run_store.end_mlflow_run("FAILED")
            self._unlock(name)
        return errors

    def close(self) -> None:
        """End the runs of the trials that were interrupted."""
        self.bar.close()
        for run_store in self.running.values():
            run_store.end_mlflow_run("KILLED")
        for name in list(self.locks):
            self._unlock(name)

    def _unlock(self, run: str) -> None:
        if lock := self.locks.pop(run, None):
            lock.close()

    def _show_progress(self, text: str = "") -> None:
        self.bar.update(sum(self.epochs.values()), self.recipe.search.trials * self.recipe.optim.epochs, text)

    def _recipe_at(self, point: dict[str, Any]) -> Recipe:
        return trial_recipe(self.recipe, self.campaign, point["z_dim"], point["kl_factor"])
