"""The tune job: a campaign that searches z_dim and kl_factor with Ray Tune and Optuna.

Each trial is a training with a record of its own, so the same command goes on where it stopped: finished trials are
told from their records, and Optuna learns of them; an interrupted one goes on from its checkpoint.
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
from jobs.dataset import open_dataset, with_full_uri
from jobs.run_store import RunStore, delete_folder
from jobs.train.ray_trainer import run_on_ray, worker_resources
from jobs.train.stopping import interruptible
from jobs.tune import campaign as campaigns
from jobs.tune.selection import RULE, Scored, choose_best, pareto_front
from jobs.tune.trials import GOALS, Trial, known_trials, trial_recipe


def tune(recipe: Recipe, stem: str) -> dict[str, Any]:
    """Run the recipe's search and choose the best decoder by `jobs.tune.selection.RULE`.

    Gives the campaign's name, its trials with their figures, the Pareto front and the best run; a finished
    campaign is not run again. Raises ValueError for a wrong recipe or dataset, RuntimeError when every trial failed.
    """
    recipe = with_full_uri(recipe)
    manifest = open_dataset(recipe.data.uri).manifest
    if not manifest.splits.get("valid"):
        raise ValueError(f"the dataset at {recipe.data.uri} has no split 'valid' to rank trials by")
    check_uri(settings().store)
    known = campaigns.find_campaign(recipe, stem, manifest)
    if "best" in known and known["run_id"]:
        return known | {"already_finished": True}
    connect()
    campaign = campaigns.begin(known, recipe)
    try:
        trials = _search(recipe, campaign["campaign"], manifest, campaign["run_id"])
    except BaseException as error:
        if isinstance(error, ValueError) and "run_id" not in known:
            campaigns.drop(campaign)
        else:
            tracking.set_status(campaign["run_id"], tracking.status_of(error))
        raise
    return campaigns.finish(campaign, _verdict(trials, recipe.search.psnr_slack)) | {"already_finished": False}


def _search(recipe: Recipe, name: str, manifest: Manifest, parent: str) -> list[Trial]:
    """Run the trials that are not finished; gives all finished ones."""
    finished, begun = known_trials(recipe, name, manifest)
    left = recipe.search.trials - len(finished)
    if left <= 0:
        return finished
    _quiet_tune()
    from ray import tune as ray_tune

    from jobs.tune.callbacks import CampaignCallback

    search = recipe.search
    watcher = CampaignCallback(recipe, name, manifest, parent, finished)
    fs, root = open_uri(settings().store)
    # With workers of its own a trial only waits for them; Tune refuses a demand for nothing at all.
    waiting: dict[str, float] = {"CPU": 0, "memory": 2**20}
    space = {"z_dim": ray_tune.choice(list(search.z_dim)), "kl_factor": ray_tune.loguniform(*search.kl_factor)}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            # Not in param_space, which Tune writes into the store: the environment may hold keys.
            ray_tune.with_parameters(run_trial, recipe=recipe, campaign=name, environment=exported_env()),
            worker_resources(search.parallel) if recipe.scale.max_workers <= 1 else waiting,
        ),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            # The goals are the search's own: a metric named here would take their place.
            search_alg=optuna_search(space, finished, begun, recipe.optim.seed),
            num_samples=left,
            max_concurrent_trials=search.parallel,
            reuse_actors=True,  # else each trial starts a process and imports torch: 3 s of CPU
        ),
        run_config=ray_tune.RunConfig(
            name=name, storage_path=f"{root}/ray", storage_filesystem=fs, verbose=0, callbacks=[watcher]
        ),
    )
    try:
        with interruptible():
            tuner.fit()
    finally:
        errors = watcher.close()
        delete_folder(fs, f"{root}/ray/{name}")  # Tune's own notes; ours are the records
    if len(watcher.trials) + len(errors) < search.trials:  # after Ctrl-C Tune ends as if all were well
        raise KeyboardInterrupt
    if not watcher.trials:
        raise errors[0]
    return watcher.trials


def _quiet_tune() -> None:
    """Tune's own tables and warnings would drown the progress bar. Read by Ray Tune when it is imported."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's Callback class wants no V1 output
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # hog_frechet_normal is not in each epoch
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # so that a relative ZPOINT_HOME means the same there
    warnings.filterwarnings("ignore", module="optuna")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials: the watcher tells what failed


def optuna_search(space: dict[str, Any], finished: list[Trial], begun: list[Trial], seed: int) -> Any:
    """Optuna's search of `space` for Tune, which knows the `finished` trials and suggests the `begun` ones first.

    They are put into Optuna's own study: what Ray has for it, `evaluated_rewards`, takes one goal only.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = OptunaSearch.convert_search_space(space)
    low, high = ranges["kl_factor"].low, ranges["kl_factor"].high

    def point(trial: Trial) -> dict[str, Any]:  # a recipe's kl_factor is rounded, maybe out of its range
        return {"z_dim": trial["z_dim"], "kl_factor": min(max(trial["kl_factor"], low), high)}

    storage, name = optuna.storages.InMemoryStorage(), "campaign"
    Direction = optuna.study.StudyDirection
    directions = [Direction.MAXIMIZE if mode == "max" else Direction.MINIMIZE for mode in GOALS.values()]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    for trial in finished:
        values = [trial[goal] for goal in GOALS]
        study.add_trial(optuna.trial.create_trial(params=point(trial), distributions=ranges, values=values))
    for trial in begun:
        study.enqueue_trial(point(trial))
    return OptunaSearch(
        metric=list(GOALS),
        mode=list(GOALS.values()),
        # With the same seed it would draw again the points that the known trials have tried.
        sampler=optuna.samplers.TPESampler(seed=seed + len(finished) + len(begun)),
        study_name=name,
        storage=storage,
    )


def run_trial(config: dict[str, Any], *, recipe: Recipe, campaign: str, environment: dict[str, str]) -> None:
    """One trial: a single worker trains in the trial's own process, several get a process tree of Ray Train."""
    from ray import tune as ray_tune

    apply_env(environment)
    recipe = trial_recipe(recipe, campaign, config["z_dim"], config["kl_factor"])
    # The driver keeps the MLflow run; here only the folder is written.
    record = RunStore(recipe.name, f"{settings().runs_uri}/{recipe.name}", "")
    known = record.epochs()
    if not record.finished():
        dataset = open_dataset(recipe.data.uri)
        if recipe.scale.max_workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            run_on_ray(recipe, dataset.manifest, record, [TuneReportCallback()])
        else:
            import torch

            from jobs.train.worker import Worker, work

            worker = Worker(device=torch.device("cuda" if has_gpu() else "cpu"))
            for metrics in work(recipe, dataset, record, worker):
                ray_tune.report(metrics)
    if len(known) == recipe.optim.epochs:  # none was left to report, and Tune wants one
        ray_tune.report(known[recipe.optim.epochs])


def _verdict(trials: list[dict[str, Any]], slack: float) -> dict[str, Any]:
    scored = [Scored(t["run"], t["valid_psnr"], t["hog_frechet_normal"]) for t in trials]
    return {
        "trials": sorted(trials, key=lambda t: t["hog_frechet_normal"]),
        "pareto_front": [model.name for model in pareto_front(scored)],
        "rule": RULE.format(slack=slack),
        "best": choose_best(scored, slack).name,
    }
