"""The tune job: a campaign that searches z_dim and kl_factor with Ray Tune and Optuna.

Each trial is a training with a run of its own, so the same command resumes a campaign: Optuna gets the results of the
finished trials, and an interrupted trial resumes from its checkpoint.
"""

import logging
import os
import warnings
from typing import Any

from aecore.config import Recipe
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.ray_connection import connect, has_gpu
from cluster.settings import apply_env, exported_env, settings
from cluster.storage import check_uri, open_uri
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, delete_folder
from jobs.train.placement import worker_resources
from jobs.train.ray_trainer import run_on_ray
from jobs.train.stopping import interruptible
from jobs.tune import campaign as campaigns
from jobs.tune.selection import RULE, ScoredModel, choose_best, pareto_front
from jobs.tune.trials import OBJECTIVES, TrialResult, find_trials, trial_recipe


def tune(recipe: Recipe, stem: str) -> dict[str, Any]:
    """Run the recipe's search and choose the best decoder by `jobs.tune.selection.RULE`.

    Returns the campaign's name, its trials with their metrics, the Pareto front and the best run; a finished campaign
    is not run again. Raises ValueError for a wrong recipe or dataset, RuntimeError if every trial fails.
    """
    manifest = open_dataset(recipe.data.uri).manifest
    if not manifest.splits.get("valid"):
        raise ValueError(f"the dataset at {recipe.data.uri} has no split 'valid' to rank trials by")
    check_uri(settings().store)
    tracking.check_tracking_uri()
    stored = campaigns.open_campaign(recipe, stem, manifest)
    if "best" in stored and stored["run_id"]:
        return stored | {"already_finished": True}
    with campaigns.lock_campaign(stored["campaign"]):
        connect()
        campaign = campaigns.start(stored, recipe)
        try:
            trials = _search(recipe, campaign["campaign"], manifest, campaign["run_id"])
        except BaseException as error:
            if isinstance(error, ValueError) and "run_id" not in stored:
                campaigns.discard(campaign)
            else:
                tracking.set_status(campaign["run_id"], tracking.failure_status(error))
            raise
        return campaigns.finish(campaign, _rank(trials, recipe.search.psnr_slack)) | {"already_finished": False}


def _search(recipe: Recipe, campaign: str, manifest: Manifest, parent: str) -> list[TrialResult]:
    """Run the trials that have not finished; return the results of all."""
    finished, unfinished = find_trials(recipe, campaign, manifest)
    search = recipe.search
    num_trials = search.trials - len(finished)
    if num_trials <= 0:
        return finished
    _quiet_tune()
    from ray import tune as ray_tune

    from jobs.tune.callbacks import CampaignCallback

    callback = CampaignCallback(recipe, campaign, manifest, parent, finished)
    fs, root = open_uri(settings().store)
    # A trial with several workers only waits for them; Tune refuses a request for no resources at all.
    idle: dict[str, float] = {"CPU": 0, "memory": 2**20}
    space = {"z_dim": ray_tune.choice(list(search.z_dim)), "kl_factor": ray_tune.loguniform(*search.kl_factor)}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            # Not in param_space, which Tune writes to the store: the environment may hold keys.
            ray_tune.with_parameters(run_trial, recipe=recipe, campaign=campaign, env=exported_env()),
            worker_resources(search.parallel) if recipe.scale.max_workers <= 1 else idle,
        ),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            # A metric here would override the objectives of the search.
            search_alg=optuna_search(space, finished, unfinished, recipe.optim.seed),
            num_samples=num_trials,
            max_concurrent_trials=search.parallel,
            reuse_actors=True,  # else each trial starts a process and imports torch: 3 s of CPU
        ),
        run_config=ray_tune.RunConfig(
            name=campaign, storage_path=f"{root}/ray", storage_filesystem=fs, verbose=0, callbacks=[callback]
        ),
    )
    try:
        with interruptible():
            results = tuner.fit()
        errors = callback.end_failed_trials(results)
    finally:
        callback.close()
        delete_folder(fs, f"{root}/ray/{campaign}")  # Tune's files; the trials' own are in their runs' folders
    if len(callback.finished) + len(errors) < search.trials:  # after Ctrl-C Tune returns as if it had finished
        raise KeyboardInterrupt
    if not callback.finished:
        raise errors[0]
    return callback.finished


def _quiet_tune() -> None:
    """Silence Tune's tables and warnings, which would break the progress bar. Call it before Ray Tune is imported."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # hog_frechet_normal is not in each epoch
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # else a relative ZPOINT_HOME would name another folder
    warnings.filterwarnings("ignore", module="optuna")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials, which CampaignCallback reports


def optuna_search(
    space: dict[str, Any], finished: list[TrialResult], unfinished: list[dict[str, Any]], seed: int
) -> Any:
    """Return Optuna's search of `space` for Tune, with the `finished` trials' results and `unfinished` points first.

    They go into an Optuna study of its own: Ray's argument for them, `evaluated_rewards`, takes one objective only.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = OptunaSearch.convert_search_space(space)
    low, high = distributions["kl_factor"].low, distributions["kl_factor"].high

    def point_of(trial: dict[str, Any]) -> dict[str, Any]:  # rounding may move a recipe's kl_factor out of the range
        return {"z_dim": trial["z_dim"], "kl_factor": min(max(trial["kl_factor"], low), high)}

    storage, name = optuna.storages.InMemoryStorage(), "campaign"
    Direction = optuna.study.StudyDirection
    directions = [Direction.MAXIMIZE if mode == "max" else Direction.MINIMIZE for mode in OBJECTIVES.values()]
    optuna_study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    for trial in finished:
        values = [trial[metric] for metric in OBJECTIVES]
        optuna_study.add_trial(
            optuna.trial.create_trial(params=point_of(trial), distributions=distributions, values=values)
        )
    for point in unfinished:
        optuna_study.enqueue_trial(point_of(point))
    return OptunaSearch(
        metric=list(OBJECTIVES),
        mode=list(OBJECTIVES.values()),
        # The same seed would sample the points of the earlier trials again.
        sampler=optuna.samplers.TPESampler(seed=seed + len(finished) + len(unfinished)),
        study_name=name,
        storage=storage,
    )


def run_trial(config: dict[str, Any], *, recipe: Recipe, campaign: str, env: dict[str, str]) -> None:
    """Train one trial: a single worker in the trial's own process, several under Ray Train."""
    from ray import tune as ray_tune

    apply_env(env)
    recipe = trial_recipe(recipe, campaign, config["z_dim"], config["kl_factor"])
    # The driver keeps the MLflow run.
    run_store = RunStore(recipe.name, f"{settings().runs_uri}/{recipe.name}", run_id="")
    epochs = run_store.epochs()
    if not run_store.finished():
        dataset = open_dataset(recipe.data.uri)
        if recipe.scale.max_workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            run_on_ray(recipe, dataset, run_store, [TuneReportCallback()])
        else:
            import torch

            from jobs.train.worker import Worker, train_loop

            device = torch.device("cuda" if has_gpu() else "cpu")
            for metrics in train_loop(recipe, dataset, run_store, Worker(device=device)):
                ray_tune.report(metrics)
    if len(epochs) == recipe.optim.epochs:  # Tune needs a report, and this command trained no epoch
        ray_tune.report(epochs[recipe.optim.epochs])


def _rank(trials: list[TrialResult], slack: float) -> dict[str, Any]:
    """Return the campaign's result: its trials, Pareto front, rule and best run."""
    models = [ScoredModel(trial["run"], trial["valid_psnr"], trial["hog_frechet_normal"]) for trial in trials]
    return {
        "trials": sorted(trials, key=lambda trial: trial["hog_frechet_normal"]),
        "pareto_front": [model.name for model in pareto_front(models)],
        "rule": RULE.format(slack=slack),
        "best": choose_best(models, slack).name,
    }
