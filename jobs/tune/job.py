"""The tune job: a campaign that searches recipe keys with Ray Tune and Optuna.

Each trial is an ordinary run, so the same command resumes a campaign, and one with more trials, minutes or replicates
extends it: finished trials are not repeated, and an interrupted one resumes from its checkpoint.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aecore.config import Recipe
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.lock import LockedError
from cluster.ray_connection import connect
from cluster.settings import exported_env, settings
from cluster.signals import interruptible
from cluster.storage import check_uri, open_uri
from jobs.dataset import open_dataset
from jobs.mlflow_run import MlflowRun
from jobs.run_store import delete_folder, find_run, lock_run
from jobs.train.placement import worker_capacity, worker_resources
from jobs.tune.campaign import Campaign, discard, lock_campaign, open_campaign
from jobs.tune.live import live_display
from jobs.tune.metrics import CampaignMetrics
from jobs.tune.packing import trials_per_gpu
from jobs.tune.records import record_campaign
from jobs.tune.runner import BUDGET, CampaignRun

log = logging.getLogger(__name__)


def tune(recipe: Recipe, stem: str) -> dict[str, Any]:
    """Run the recipe's search and choose the best decoder by the rule of `jobs.tune.selection`.

    Returns the content of the campaign's file; a campaign without further trials is ranked anew and not run. Its
    `exit_status` is 1 if a trial is lost. Raises ValueError for a wrong recipe or dataset, LockedError if another
    process runs the campaign, RuntimeError if no trial finishes.
    """
    manifest = open_dataset(recipe.data.uri).manifest
    if not (manifest.splits.get("valid") and manifest.count("valid")):
        uri = recipe.data.uri
        raise ValueError(f"the dataset at {uri} has no images to rank trials by (split 'valid'): ingest more images")
    check_uri(settings().store)
    tracking.check_tracking_uri()
    run = _open_run(recipe, stem, manifest)
    already_finished = not run.has_work()
    if not already_finished or _changes_when_ranked(run):
        with lock_campaign(run.campaign.campaign):
            run = _open_run(recipe, stem, manifest)  # another command may have written the file before this lock
            already_finished = not run.has_work()
            if already_finished:
                _rank_again(run)
            else:
                _run(run)
    return _result(run.campaign, already_finished)


def _open_run(recipe: Recipe, stem: str, manifest: Manifest) -> CampaignRun:
    run = CampaignRun(open_campaign(recipe, stem, manifest), recipe, manifest)
    campaign, hours = run.campaign, recipe.search.gpu_hours
    if hours and campaign.unit == "core" and campaign.device_hours() >= hours:  # GPUs may have joined the cluster
        connect()
        campaign.unit = device_unit(trial_resources(recipe)[0])
    return run


def device_unit(resources: Mapping[str, float]) -> str:
    """Return what the hours of trials with these Ray resources count."""
    return "GPU" if "GPU" in resources else "core"


def _changes_when_ranked(run: CampaignRun) -> bool:
    """Rank a campaign that has no trial left to train; return True if its file changes or it has no MLflow run."""
    stored = run.campaign.to_json()
    run.close()
    return run.campaign.to_json() != stored or not run.campaign.run_id


def _rank_again(run: CampaignRun) -> None:
    """Rank a campaign that has no trial left to train, and record the result."""
    run.close()
    with record_campaign(run.campaign, run.recipe):
        pass


def _run(run: CampaignRun) -> None:
    """Run the trials that are left, and choose the best one."""
    connect()
    campaign = run.campaign
    with record_campaign(campaign, run.recipe) as record, live_display(campaign) as display:
        run.listeners = [record, display, CampaignMetrics()]
        try:
            run.begin()
            _search(run)
        finally:
            run.close()
    if (run.refused or run.withheld) and not any(trial.state in ("finished", "stopped") for trial in campaign.trials):
        _refuse(run)


def _result(campaign: Campaign, already_finished: bool) -> dict[str, Any]:
    if not campaign.best:
        raise RuntimeError(f"campaign '{campaign.campaign}' has no model to choose: {explain_no_best(campaign)}")
    content = campaign.to_json() | {"already_finished": already_finished}
    return content | {"exit_status": int(campaign.count("lost") > 0)}


def explain_no_best(campaign: Campaign) -> str:
    """Return why no trial can be chosen, and what to change."""
    if not campaign.trials:
        return "no trial was started; raise search.minutes, or change search.space if the recipe refuses its points"
    fixes = {
        "search lower values of loss.kl_factor, or set loss.kl_warmup or more optim.epochs":
            any(trial.metrics.get("valid_active_units") == 0 for trial in campaign.trials),
        "raise search.minutes or search.gpu_hours": any(trial.reason == BUDGET for trial in campaign.trials),
        "search lower values of optim.lr": campaign.count("diverged"),
        "start the same command again, which resumes the lost trials": campaign.count("lost"),
    }  # fmt: skip
    reasons = dict.fromkeys(trial.reason or "no active units" for trial in campaign.trials)
    return f"{', '.join(reasons)}; {', or '.join(fix for fix, applies in fixes.items() if applies)}"


def _refuse(run: CampaignRun) -> None:
    """Raise the user's mistake that ended each trial, and delete what they left, if they have trained nothing."""
    campaign = run.campaign
    for name in run.refused:
        with suppress(LockedError), lock_run(name):
            MlflowRun(find_run(name)).discard()
    discard(campaign)
    tracking.delete_run(campaign.run_id)
    raise ValueError(list((run.withheld | run.refused).values())[-1])


def _search(run: CampaignRun) -> None:
    """Run the trials that are left."""
    _quiet_tune()
    from ray import tune as ray_tune

    from jobs.tune.adapters import CampaignCallback, CampaignScheduler, CampaignSearcher
    from jobs.tune.trial import run_trial

    campaign, recipe = run.campaign, run.recipe
    several = recipe.scale.max_workers > 1
    fs, root = open_uri(settings().store)
    resources, parallel = trial_resources(recipe)
    if "GPU" in resources and not several:
        resources["GPU"] /= trials_per_gpu(recipe, run.manifest)
    campaign.unit = device_unit(resources)
    devices = resources.get("GPU", resources.get("CPU", 0.0))
    # A trial with several workers only waits for them; Tune refuses a request for no resources at all.
    idle: dict[str, float] = {"CPU": 0, "memory": 2**20}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            # Not in param_space, which Tune writes to the store: the environment may hold keys.
            ray_tune.with_parameters(run_trial, recipe=recipe, env=trial_env(), gpu_share=resources.get("GPU", 1.0)),
            idle if several else resources,
        ),
        tune_config=ray_tune.TuneConfig(
            search_alg=CampaignSearcher(run, parallel),
            scheduler=CampaignScheduler(run),
            num_samples=-1,  # the searcher ends the search
            # Else each trial starts a process and imports torch: 3 s of CPU. A process that waits for the workers of
            # its trial cannot be reused when the trial is stopped: with it Ray ends them.
            reuse_actors=not several,
        ),
        run_config=ray_tune.RunConfig(
            name=campaign.campaign,
            storage_path=f"{root}/ray",
            storage_filesystem=fs,
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=recipe.scale.max_failures),
            callbacks=[CampaignCallback(run, devices * recipe.scale.max_workers if several else devices)],
        ),
    )
    try:
        with interruptible():
            tuner.fit()
    finally:
        with suppress(OSError):  # a store that fails now does not undo the trials
            # Tune's files; the trials' own are in their runs' folders.
            delete_folder(fs, f"{root}/ray/{campaign.campaign}")
    if not run.finished():  # after Ctrl-C Tune returns as if it had finished
        raise KeyboardInterrupt


def trial_env() -> dict[str, str]:
    """Return the environment of a trial: the driver's, and the address without which it would take Ray for local."""
    return exported_env() | {name: value for name in ("RAY_ADDRESS",) if (value := os.environ.get(name))}


def trial_resources(recipe: Recipe) -> tuple[dict[str, float], int | None]:
    """Return the resources of one worker of a trial, and how many trials may run at once, None for all that fit.

    On CPUs trials that fill the cluster have a core each: on small networks k threads are slower than k trials.
    """
    search, workers = recipe.search, max(1, recipe.scale.max_workers)
    if workers > 1:
        resources = worker_resources(recipe.scale)
        fitting = max(1, worker_capacity(resources) // max(1, recipe.scale.min_workers))
        return resources, fitting if search.parallel == "auto" else search.parallel
    parallel = None if search.parallel == "auto" else search.parallel
    trials = parallel or max(1, min(search.trials, worker_capacity({"CPU": 1})))
    return worker_resources(recipe.scale, trials), parallel


def _quiet_tune() -> None:
    """Silence Tune's tables and warnings, which would break the progress bar. Call it before Ray Tune is imported."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # hog_frechet_normal is not in each epoch
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # else a relative ZPOINT_HOME would name another folder
    for name in ("ray.tune", "ray.train"):  # tracebacks of trials and of the storage, which a campaign reports itself
        logging.getLogger(name).setLevel(logging.CRITICAL)
