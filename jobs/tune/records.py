"""Threads of the driver that write a campaign's file and its MLflow runs while it runs.

No call here waits for the storage or for MLflow, so that Tune's event loop does not either.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aecore.config import Recipe, flatten_keys
from aecore.errors import one_line
from aecore.training.checkpoint import retry_storage
from cluster import tracking
from jobs.mlflow_run import MlflowRun
from jobs.run_store import find_run, stored_run
from jobs.tune.campaign import Campaign, Trial, write_campaign
from jobs.tune.mlflow_overview import CampaignOverview, log_report

log = logging.getLogger(__name__)
RETRY_S = 5.0
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "lost": "FAILED"}


class Latest:
    """A thread that calls `take` with the newest of the values that it is given, one call at a time.

    `take` returns False if it failed: it is called again after RETRY_S, or when a newer value comes.
    """

    def __init__(self, name: str, take: Callable[[Any], bool]) -> None:
        self._take, self._value, self._failed = take, None, False
        self._changed, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, value: Any) -> None:
        """Replace the value that waits."""
        self._value = value
        self._changed.set()

    def close(self) -> bool:
        """Return once the newest value is taken; False if the last call failed."""
        self._closed = True
        self._changed.set()
        self._thread.join()
        return not self._failed

    def _run(self) -> None:
        while True:
            self._changed.wait(RETRY_S if self._failed else None)
            self._changed.clear()
            closed, value = self._closed, self._value
            if value is not None and not (closed and self._failed):
                self._failed = not self._take(value)
            if closed:
                return


@contextmanager
def record_campaign(campaign: Campaign, recipe: Recipe) -> Iterator[Callable[[Campaign], None]]:
    """Return a listener that has the campaign's file and MLflow runs follow it; on leaving, both are complete.

    Unless an exception ends the campaign its report is written then.

    A failing storage is waited for at the end, MLflow is not: what it lacks, the same command logs when it answers.
    """
    file, mlflow_runs = Latest("campaign-file", _write), MlflowRuns(campaign, recipe)
    mlflow = Latest("campaign-mlflow", mlflow_runs.sync)

    def listener(campaign: Campaign) -> None:
        file.put(campaign)
        mlflow.put(campaign)

    try:
        yield listener
        mlflow_runs.report = _write_report(campaign)
    finally:
        listener(campaign)
        file.close()
        if not mlflow.close():
            log.warning("MLflow lacks a part of the campaign's runs: the same command logs it when MLflow answers")
        retry_storage(lambda: write_campaign(campaign), "write the campaign's file")


def _write_report(campaign: Campaign) -> dict[str, bytes]:
    """Write the report of a campaign with judged trials and return its files.

    A failure is logged and gives no files: the trials are what counts.
    """
    if not any(trial.judged for trial in campaign.trials):
        return {}
    try:
        from jobs.tune.report import write_report

        return write_report(campaign)[1]
    except Exception as error:
        log.warning("the report of campaign '%s' cannot be written: %s", campaign.campaign, one_line(error))
        return {}


def _write(campaign: Campaign) -> bool:
    try:
        write_campaign(campaign)
    except OSError as error:
        log.warning("cannot write the campaign's file: %s; the campaign continues", one_line(error))
        return False
    return True


class MlflowRuns:
    """The MLflow run of a campaign, whose id becomes the campaign's `run_id`, and those of its trials below it."""

    def __init__(self, campaign: Campaign, recipe: Recipe) -> None:
        self.campaign, self.recipe = campaign, recipe
        self.report: dict[str, bytes] = {}  # its files, once they are written
        self._overview = CampaignOverview()
        self._started, self._failed = False, False
        self._mlflow_runs: dict[str, MlflowRun] = {}
        self._synced: dict[str, tuple[str, int]] = {}  # state and epoch of each run that MLflow has

    def sync(self, campaign: Campaign) -> bool:
        """Log what MLflow lacks of the campaign; return False at the first failure, of which the first is logged."""
        warn = not self._failed
        done = tracking.best_effort("take the campaign", lambda: self._sync(campaign, warn), False, warn=warn)
        self._failed = not done
        return done

    def _sync(self, campaign: Campaign, warn: bool) -> bool:
        if not self._started:
            self._start()
        for trial in campaign.trials:
            if self._synced.get(trial.run) != (trial.state, trial.epoch) and not self._sync_trial(trial, warn):
                return False
        run_ids = {run: mlflow_run.run_id for run, mlflow_run in self._mlflow_runs.items()}
        self._overview.sync(campaign, self.campaign.run_id, run_ids)
        if campaign.state != "running":
            self._end(campaign)
        return True

    def _start(self) -> None:
        if self.campaign.run_id and tracking.reopen_run(self.campaign.run_id):
            tracking.client().update_run(self.campaign.run_id, "RUNNING")
        else:
            name, dataset = self.campaign.campaign, self.campaign.dataset
            params = flatten_keys(self.recipe.model_dump(mode="json"))
            params = {key: value for key, value in params.items() if key not in self.recipe.search.space}
            labels = {"zpoint.run": name, "zpoint.dataset": dataset, tracking.KEY_TAG: self.campaign.key}
            self.campaign.run_id = tracking.create_run(name, params, labels)
        self._started = True

    def _sync_trial(self, trial: Trial, warn: bool) -> bool:
        if trial.run not in self._mlflow_runs:
            if not stored_run(trial.run).exists():
                return True  # the storage failed when the run was to be opened
            self._mlflow_runs[trial.run] = MlflowRun(find_run(trial.run))
        client, mlflow_run = tracking.client(), self._mlflow_runs[trial.run]
        if not mlflow_run.sync(warn=warn):
            return False
        if trial.run not in self._synced:
            tags = client.get_run(mlflow_run.run_id).data.tags
            if "mlflow.parentRunId" not in tags:  # else another campaign has trained it
                client.set_tag(mlflow_run.run_id, "mlflow.parentRunId", self.campaign.run_id)
                client.set_tag(mlflow_run.run_id, "zpoint.campaign", self.campaign.campaign)
            self._synced[trial.run] = (tags.get("zpoint.state", ""), 0)
        if self._synced[trial.run][0] != trial.state:
            client.set_tag(mlflow_run.run_id, "zpoint.state", trial.state)
            if trial.state == "running":
                client.update_run(mlflow_run.run_id, "RUNNING")
            else:
                client.set_terminated(mlflow_run.run_id, STATUS[trial.state])
        self._synced[trial.run] = (trial.state, trial.epoch)
        return True

    def _end(self, campaign: Campaign) -> None:
        for trial in campaign.trials:
            if trial.state == "running" and trial.run in self._mlflow_runs:  # interrupted
                tracking.client().set_terminated(self._mlflow_runs[trial.run].run_id, "KILLED")
        run_id, content = self.campaign.run_id, campaign.to_json() | {"run_id": self.campaign.run_id}
        log_report(run_id, self.report)
        tracking.log_files(run_id, {"campaign.json": json.dumps(content, indent=1).encode()}, "")
        status = "FINISHED" if campaign.state == "finished" else "FAILED" if campaign.count("lost") else "KILLED"
        tracking.client().set_terminated(run_id, status)
