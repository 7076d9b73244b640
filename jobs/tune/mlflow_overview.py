"""Log a whole campaign to MLflow: metrics, description and table of its run, tags and distances of its trials."""

import json
import time
from collections.abc import Mapping
from typing import Any

from aecore.config import STORED_SAMPLERS
from cluster import tracking
from jobs.tune.campaign import Campaign, Trial
from jobs.tune.report import PAGE_FILE, PARETO_FILE
from jobs.tune.table import describe_best, format_summary, promote_command, trial_cells

TABLE_FILE = "trials.json"
NOTE_LIMIT = 5_000  # characters of a tag's value that every MLflow store accepts
ENDED = ("finished", "stopped", "diverged", "lost")
FRONT_TAG = "zpoint.front"
DISTANCE = "distance"  # the metric by which the rule ranks a trial, for MLflow's charts
DISTANCES = [f"hog_frechet_{sampler}" for sampler in STORED_SAMPLERS]


class CampaignOverview:
    """The overview of one campaign in MLflow, which is logged anew whenever a trial or the campaign has ended."""

    def __init__(self) -> None:
        self._logged: tuple[str, dict[str, float]] | None = None  # the state and summary that were logged last
        self._tags: dict[str, dict[str, str]] = {}  # and the distance of each trial's run, as logged last

    def sync(self, campaign: Campaign, run_id: str, trial_run_ids: Mapping[str, str]) -> None:
        """Log what has changed; `trial_run_ids` has the MLflow run of each trial."""
        client = tracking.client()
        for trial in campaign.trials:
            tags, logged = trial_tags(campaign, trial), self._tags.setdefault(trial.run, {})
            for key, value in tags.items():
                if trial.run in trial_run_ids and logged.get(key) != value:
                    client.set_tag(trial_run_ids[trial.run], key, value)
                    logged[key] = value
            model = campaign.score(trial)
            if model is not None and trial.run in trial_run_ids and logged.get(DISTANCE) != str(model.distance):
                client.log_metric(trial_run_ids[trial.run], DISTANCE, model.distance, step=trial.epoch)
                logged[DISTANCE] = str(model.distance)
        summary = summarize(campaign)
        if (campaign.state, summary) == self._logged:
            return
        hours = {f"{campaign.unit.lower()}_hours": campaign.device_hours()}
        step = int(sum(summary[f"trials_{state}"] for state in ENDED))
        tracking.log_metrics(run_id, summary | hours, step, int(time.time() * 1000))
        client.set_tag(run_id, "mlflow.note.content", describe(campaign))
        # Not by MlflowClient.log_table, which appends to the table that an earlier call has logged.
        tracking.log_files(run_id, {TABLE_FILE: json.dumps(make_table(campaign)).encode()}, "")
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE_FILE, "type": "table"}]))
        self._logged = campaign.state, summary


def log_report(run_id: str, files: Mapping[str, bytes]) -> None:
    """Log the page and the picture of the Pareto front of a report's `files`."""
    logged = {name: files[name] for name in (PAGE_FILE, PARETO_FILE) if name in files}
    tracking.log_files(run_id, logged, "report")


def summarize(campaign: Campaign) -> dict[str, float]:
    """Return the metrics of the campaign's run, those of its best trial once there is one."""
    metrics: dict[str, float] = {f"trials_{state}": campaign.count(state) for state in ENDED}
    if campaign.hypervolume:
        metrics["hypervolume"] = campaign.hypervolume[-1]
    best = campaign.trial(campaign.best)
    if best is not None and (model := campaign.score(best)) is not None:
        metrics |= {"best_psnr": model.psnr, "best_distance": model.distance}
    return metrics


def trial_tags(campaign: Campaign, trial: Trial) -> dict[str, str]:
    """Return the searched values of a trial, and if it is on the Pareto front."""
    point = {f"search.{key}": str(value) for key, value in trial.point.items()}
    return point | {FRONT_TAG: str(trial.run in campaign.pareto_front).lower()}


def describe(campaign: Campaign) -> str:
    """Return the description in Markdown: the best run, the command that promotes it, and as many trials as fit."""
    head = [f"{format_summary(campaign)}.", ""]
    if campaign.best:
        head += [f"Best: {describe_best(campaign)}.", "", f"    {promote_command(campaign)}", ""]
    for title, text in {"Rule": campaign.rule, "Note": campaign.note}.items():
        head += [f"{title}: {text}.", ""] if text else []
    rows = [trial_cells(campaign, trial) for trial in campaign.sorted_trials()]
    if not rows:
        return "\n".join(head)
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    remaining = NOTE_LIMIT - sum(len(line) + 1 for line in [*head, *lines]) - 40
    row_lines = []
    for row in rows:
        line = f"| {' | '.join(row.values())} |"
        remaining -= len(line) + 1
        if remaining < 0:
            break
        row_lines.append(line)
    more = ["", f"and {len(rows) - len(row_lines)} more in {TABLE_FILE}"] if len(row_lines) < len(rows) else []
    return "\n".join([*head, *lines, *row_lines, *more])


def make_table(campaign: Campaign) -> dict[str, Any]:
    """Return the trials in the form of MLflow's tables."""
    trials = campaign.sorted_trials()
    rows = [
        {"run": trial.run, "state": trial.state, "reason": trial.reason, "epoch": trial.epoch, **trial.point}
        | {"front": trial.run in campaign.pareto_front, "best": trial.run == campaign.best}
        | {key: trial.metrics.get(key) for key in ("valid_psnr", "valid_active_units", "images_per_second")}
        | {name: (trial.judged[-1] if trial.judged else {}).get(name) for name in DISTANCES}
        | {"minutes": round(trial.seconds / 60, 2)}
        for trial in trials
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": columns, "data": [[row.get(column) for column in columns] for row in rows]}
