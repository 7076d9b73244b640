"""The tune job: a campaign that searches z_dim and kl_factor with Ray Tune and Optuna.

Each trial is a training with a record of its own, so the same command goes on where it stopped: finished trials are
told from their records, an interrupted one goes on from its checkpoint.
"""

import logging
import os
import warnings
from typing import Any

from aecore.config import Recipe, check_recipe
from aecore.ranking import RULE, Scored, choose_best, pareto_front
from aecore.shards import Manifest
from cluster import tracking
from cluster.local import connect, has_gpu
from cluster.progress import Bar
from cluster.settings import adopt, forwarded, settings
from cluster.storage import check_uri, open_uri
from jobs import campaign as campaigns
from jobs.record import Record, delete_folder, open_record
from jobs.stops import interruptible
from jobs.train import open_dataset, plain_failure, run_on_ray, with_full_uri, work, worker_resources

log = logging.getLogger(__name__)
GOALS = {"valid_psnr": "max", "hog_frechet_normal": "min"}


def tune(recipe: Recipe, stem: str) -> dict[str, Any]:
    """Run the recipe's search and choose the best decoder by `aecore.ranking.RULE`.

    Gives the campaign's name, its trials with their figures, the Pareto front and the best run; a finished
    campaign is not run again. Raises ValueError for a wrong recipe or dataset, RuntimeError when every trial failed.
    """
    recipe = with_full_uri(recipe)
    _, _, manifest = open_dataset(recipe.data.uri)
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


def _search(recipe: Recipe, name: str, manifest: Manifest, parent: str) -> list[dict[str, Any]]:
    # Tune's own tables and warnings would drown the progress bar; its Callback class wants no V1 output.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # hog_frechet_normal is not in each epoch
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # so that a relative ZPOINT_HOME means the same there
    warnings.filterwarnings("ignore", module="optuna")
    import optuna
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials: `_watcher` tells what failed
    search = recipe.search
    watcher = _watcher(recipe, name, manifest, parent)
    fs, root = open_uri(settings().store)
    # With workers of its own a trial only waits for them; Tune refuses a demand for nothing at all.
    waiting: dict[str, float] = {"CPU": 0, "memory": 2**20}
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            # Not in param_space, which Tune writes into the store: the environment may hold keys.
            ray_tune.with_parameters(run_trial, recipe=recipe, campaign=name, environment=forwarded()),
            worker_resources(search.parallel) if recipe.scale.most <= 1 else waiting,
        ),
        param_space={
            "z_dim": ray_tune.choice(list(search.z_dim)),
            "kl_factor": ray_tune.loguniform(*search.kl_factor),
        },
        tune_config=ray_tune.TuneConfig(
            search_alg=OptunaSearch(
                metric=list(GOALS),
                mode=list(GOALS.values()),
                sampler=optuna.samplers.TPESampler(seed=recipe.optim.seed),
            ),
            metric="hog_frechet_normal",
            mode="min",
            num_samples=search.trials,
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


def trial_recipe(recipe: Recipe, campaign: str, z_dim: int, kl_factor: float) -> Recipe:
    """The recipe of one trial, named after what it tries: kl_factor has the three digits that its name shows."""
    raw = recipe.model_dump(mode="json")
    tried = f"-z{z_dim}-kl{kl_factor:.2e}".replace("+", "")
    raw["name"] = campaign[: 63 - len(tried)] + tried
    raw["model"]["z_dim"], raw["loss"]["kl_factor"] = z_dim, float(f"{kl_factor:.2e}")
    return check_recipe(raw)


def run_trial(config: dict[str, Any], *, recipe: Recipe, campaign: str, environment: dict[str, str]) -> None:
    """One trial: a single worker trains in the trial's own process, several get a process tree of Ray Train."""
    from ray import tune as ray_tune

    adopt(environment)
    recipe = trial_recipe(recipe, campaign, config["z_dim"], config["kl_factor"])
    # The driver keeps the MLflow run; here only the folder is written.
    record = Record(recipe.name, f"{settings().runs_uri}/{recipe.name}", "")
    known = record.epochs()
    if not record.finished():
        if recipe.scale.most > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            run_on_ray(recipe, record, [TuneReportCallback()])
        else:
            device = "cuda" if has_gpu() else "cpu"
            for metrics in work(recipe, record, lambda done, total, text: None, device=device):
                ray_tune.report(metrics)
    if len(known) == recipe.optim.epochs:  # none was left to report, and Tune wants one
        ray_tune.report(known[recipe.optim.epochs])


def _watcher(recipe: Recipe, name: str, manifest: Manifest, parent: str) -> Any:
    from ray.tune import Callback

    class Watcher(Callback):
        """Runs in the driver: shows progress, keeps each trial's MLflow run, collects the results."""

        def __init__(self) -> None:
            self.trials: list[dict[str, Any]] = []  # the finished ones
            self.records: dict[str, Record] = {}  # of those that run
            self.failed: list[Any] = []
            self.done: dict[str, int] = {}
            self.bar = Bar(name, "epochs")

        def show(self, text: str = "") -> None:
            self.bar.update(sum(self.done.values()), recipe.search.trials * recipe.optim.epochs, text)

        def close(self) -> list[Exception]:
            """End what runs no more; gives the errors of the failed trials."""
            self.bar.close()
            errors = [plain_failure(trial.get_pickled_error() or trial.get_error()) for trial in self.failed]
            for trial, error in zip(self.failed, errors, strict=True):
                record = self.records.pop(trial.trial_id, None)  # none where its process could not start
                if record and isinstance(error, ValueError):
                    record.drop()
                    continue
                log.warning("trial %s failed: %s", record.name if record else trial.config, error)
                if record:
                    record.close("FAILED")
            for record in self.records.values():
                record.close("KILLED")
            return errors

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            mine = trial_recipe(recipe, name, trial.config["z_dim"], trial.config["kl_factor"])
            tags = {"zpoint.campaign": name} | ({"mlflow.parentRunId": parent} if parent else {})
            self.records[trial.trial_id] = record = open_record(mine, mine.name, manifest, tags=tags)
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
            record.hand_in()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record = self.records.pop(trial.trial_id)
            record.close("FINISHED")
            last = list(record.epochs().values())[-1]
            tried = trial_recipe(recipe, name, trial.config["z_dim"], trial.config["kl_factor"])
            self.trials.append({
                "run": record.name, "z_dim": tried.model.z_dim, "kl_factor": tried.loss.kl_factor,
                **{goal: last[goal] for goal in GOALS}, "hog_frechet_gaussian": last["hog_frechet_gaussian"],
            })  # fmt: skip

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.failed.append(trial)  # its error is written a moment later

    return Watcher()


def _verdict(trials: list[dict[str, Any]], slack: float) -> dict[str, Any]:
    scored = [Scored(t["run"], t["valid_psnr"], t["hog_frechet_normal"]) for t in trials]
    return {
        "trials": sorted(trials, key=lambda t: t["hog_frechet_normal"]),
        "pareto_front": [model.name for model in pareto_front(scored)],
        "rule": RULE.format(slack=slack),
        "best": choose_best(scored, slack).name,
    }
