"""The tune job: a campaign that searches z_dim and kl_factor with Ray Tune and Optuna.

Each trial is a training with a record of its own, so the same command goes on where it stopped: finished trials are
told from their records, an interrupted one goes on from its checkpoint.
"""

import logging
import os
import warnings
from typing import Any

from aecore.config import Recipe, check_recipe
from aecore.files import read_json, write_json
from aecore.ranking import RULE, Scored, choose_best, pareto_front
from aecore.shards import Manifest
from cluster import tracking
from cluster.local import connect, has_gpu
from cluster.progress import Bar
from cluster.settings import adopt, forwarded, settings
from cluster.storage import check_uri, open_uri
from jobs.record import Record, open_record
from jobs.train import open_dataset, run_on_ray, with_full_uri, work, worker_resources

log = logging.getLogger(__name__)
GOALS = {"valid_psnr": "max", "swd_normal": "min"}


def campaign_uri(name: str) -> str:
    return f"{settings().store}/campaigns/{name}.json"


def tune(recipe: Recipe, stem: str) -> dict[str, Any]:
    """Run the recipe's search and choose the best decoder by `aecore.ranking.RULE`.

    Gives the campaign's name, its trials with their figures, the Pareto front and the best run. Raises ValueError
    for a wrong recipe or dataset, RuntimeError when every trial failed.
    """
    recipe = with_full_uri(recipe)
    _, _, manifest = open_dataset(recipe.data.uri)
    check_uri(settings().store)
    name = recipe.name or f"{stem}-search-{recipe.digest(manifest.digest, str(recipe.search))}"
    parent = tracking.attempt("open the campaign", lambda: _campaign_run(name, recipe, manifest), "")
    connect()
    trials = _search(recipe, name, manifest, parent)
    if not trials:
        raise RuntimeError(f"every trial of {name} failed")
    result = {"campaign": name, **_verdict(trials, recipe.search.psnr_slack)}
    fs, path = open_uri(campaign_uri(name))
    write_json(fs, path, result)
    if parent:
        tracking.attempt("end the campaign", lambda: _close_campaign(parent, result))
    return result


def _search(recipe: Recipe, name: str, manifest: Manifest, parent: str) -> list[dict[str, Any]]:
    # Tune's own tables and warnings would drown the progress bar; its Callback class wants no V1 output.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # so that a relative ZPOINT_HOME means the same there
    warnings.filterwarnings("ignore", module="optuna")
    import optuna
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = recipe.search
    watcher = _watcher(recipe, name, manifest, parent)
    fs, root = open_uri(settings().store)
    single = recipe.scale.workers <= 1
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(run_trial, worker_resources(search.parallel) if single else {"CPU": 0}),
        param_space={
            "z_dim": ray_tune.choice(list(search.z_dim)),
            "kl_factor": ray_tune.loguniform(*search.kl_factor),
            "recipe": recipe.model_dump(mode="json"),
            "campaign": name,
            "environment": forwarded(),
        },
        tune_config=ray_tune.TuneConfig(
            search_alg=OptunaSearch(
                metric=list(GOALS),
                mode=list(GOALS.values()),
                sampler=optuna.samplers.TPESampler(seed=recipe.optim.seed),
            ),
            metric="swd_normal",
            mode="min",
            num_samples=search.trials,
            max_concurrent_trials=search.parallel,
        ),
        run_config=ray_tune.RunConfig(
            name=name, storage_path=f"{root}/ray", storage_filesystem=fs, verbose=0, callbacks=[watcher]
        ),
    )
    try:
        tuner.fit()
    finally:
        watcher.bar.close()
    return watcher.trials


def trial_recipe(recipe: Recipe, campaign: str, z_dim: int, kl_factor: float) -> Recipe:
    """The recipe of one trial, named after what it tries."""
    raw = recipe.model_dump(mode="json")
    raw["name"] = f"{campaign}-z{z_dim}-kl{kl_factor:.2e}"[:63].lower().replace("+", "")
    raw["model"]["z_dim"], raw["loss"]["kl_factor"] = z_dim, kl_factor
    return check_recipe(raw)


def run_trial(config: dict[str, Any]) -> None:
    """One trial: a single worker trains in the trial's own process, several get a process tree of Ray Train."""
    from ray import tune as ray_tune

    adopt(config["environment"])
    recipe = trial_recipe(check_recipe(config["recipe"]), config["campaign"], config["z_dim"], config["kl_factor"])
    # The driver keeps the MLflow run; here only the folder is written.
    record = Record(recipe.name, f"{settings().runs_uri}/{recipe.name}", "")
    epochs = record.epochs()
    if record.finished():
        ray_tune.report(list(epochs.values())[-1] | {"epoch": len(epochs)})
        return
    if recipe.scale.workers > 1:
        from ray.tune.integration.ray_train import TuneReportCallback

        run_on_ray(recipe, record, [TuneReportCallback()])
        return
    for metrics in work(recipe, record, lambda done, total, text: None, device="cuda" if has_gpu() else "cpu"):
        ray_tune.report(metrics)


def _watcher(recipe: Recipe, name: str, manifest: Manifest, parent: str) -> Any:
    from ray.tune import Callback

    class Watcher(Callback):
        """Runs in the driver: shows progress, keeps each trial's MLflow run, collects the results."""

        def __init__(self) -> None:
            self.trials: list[dict[str, Any]] = []
            self.records: dict[str, Record] = {}
            self.total = recipe.search.trials * recipe.optim.epochs
            self.done = 0
            self.bar = Bar(name, "epochs")

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            mine = trial_recipe(recipe, name, trial.config["z_dim"], trial.config["kl_factor"])
            tags = {"zpoint.campaign": name} | ({"mlflow.parentRunId": parent} if parent else {})
            self.records[trial.trial_id] = open_record(mine, mine.name, manifest, tags=tags)
            self.bar.update(self.done, self.total, "")

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self.done += 1
            figures = f"z_dim {trial.config['z_dim']} kl_factor {trial.config['kl_factor']:.2g}"
            self.bar.update(self.done, self.total, f"{figures} psnr {result['valid_psnr']:.1f}")
            self.records[trial.trial_id].hand_in()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record = self.records[trial.trial_id]
            record.close("FINISHED")
            last = list(record.epochs().values())[-1]
            self.trials.append({
                "run": record.name, "z_dim": trial.config["z_dim"], "kl_factor": trial.config["kl_factor"],
                **{goal: last[goal] for goal in GOALS}, "swd_gaussian": last["swd_gaussian"],
            })  # fmt: skip

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            log.warning("trial %s failed: %s", trial.trial_id, trial.error_file)
            if trial.trial_id in self.records:
                self.records[trial.trial_id].close("FAILED")

    return Watcher()


def _verdict(trials: list[dict[str, Any]], slack: float) -> dict[str, Any]:
    scored = [Scored(t["run"], t["valid_psnr"], t["swd_normal"]) for t in trials]
    return {
        "trials": sorted(trials, key=lambda t: t["swd_normal"]),
        "pareto_front": [model.name for model in pareto_front(scored)],
        "rule": RULE.format(slack=slack),
        "best": choose_best(scored, slack).name,
    }


def _campaign_run(name: str, recipe: Recipe, manifest: Manifest) -> str:
    known = tracking.find_runs(f"tags.`zpoint.run` = '{name}'", limit=1)
    if known:
        return known[0].info.run_id
    params = dict(tracking.flatten(recipe.model_dump(mode="json")))
    return tracking.create_run(name, params, {"zpoint.run": name, "zpoint.dataset": manifest.digest})


def _close_campaign(parent: str, result: dict[str, Any]) -> None:
    import json

    tracking.log_files(parent, {"campaign.json": json.dumps(result, indent=1).encode()}, "")
    tracking.client().set_terminated(parent, "FINISHED")


def best_of(name: str) -> str | None:
    """The best run of the campaign `name`, None where there is no such campaign."""
    fs, path = open_uri(campaign_uri(name))
    try:
        return read_json(fs, path)["best"]
    except FileNotFoundError:
        return None
