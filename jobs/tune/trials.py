"""The trials of a campaign: their recipes, their results, and those that an earlier command has left."""

import re
from typing import Any

import pyarrow.fs as pafs

from aecore.config import Recipe, check_recipe
from aecore.data.shards import Manifest
from cluster.settings import settings
from cluster.storage import open_uri
from jobs.run_store import RunStore, open_run

OBJECTIVES = {"valid_psnr": "max", "hog_frechet_normal": "min"}
TrialResult = dict[str, Any]


def trial_recipe(recipe: Recipe, campaign: str, z_dim: int, kl_factor: float) -> Recipe:
    """Return the recipe of one trial, named after its point; kl_factor is rounded to the three digits in the name."""
    fields = recipe.model_dump(mode="json")
    suffix = f"-z{z_dim}-kl{kl_factor:.2e}".replace("+", "")
    fields["name"] = campaign[: 63 - len(suffix)] + suffix
    fields["model"]["z_dim"], fields["loss"]["kl_factor"] = z_dim, float(f"{kl_factor:.2e}")
    return check_recipe(fields)


def trial_result(recipe: Recipe, run_store: RunStore) -> TrialResult:
    """Return a finished trial's run, point and metrics of its last epoch."""
    metrics = run_store.epoch_metrics(recipe.optim.epochs)
    return {
        "run": run_store.name, "z_dim": recipe.model.z_dim, "kl_factor": recipe.loss.kl_factor,
        **{name: metrics[name] for name in OBJECTIVES}, "hog_frechet_gaussian": metrics["hog_frechet_gaussian"],
    }  # fmt: skip


def find_trials(recipe: Recipe, campaign: str, manifest: Manifest) -> tuple[list[TrialResult], list[dict[str, Any]]]:
    """Find a campaign's trials by the names of their runs.

    Returns the results of the finished ones and the points (`z_dim`, `kl_factor`) of the unfinished ones. Raises
    ValueError if a run of another recipe has such a name.
    """
    fs, root = open_uri(settings().runs_uri)
    folders = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    finished, unfinished = [], []
    for name in sorted(info.base_name for info in folders):
        if not (match := re.search(r"-z(\d+)-kl([\d.e-]+)$", name)):
            continue
        trial = trial_recipe(recipe, campaign, int(match[1]), float(match[2]))
        if trial.name != name or trial.model.z_dim not in recipe.search.z_dim:
            continue
        run_store = open_run(trial, name, manifest)
        if run_store.finished():
            run_store.end_mlflow_run("FINISHED")  # MLflow may lack its last epochs
            finished.append(trial_result(trial, run_store))
        else:
            unfinished.append({"z_dim": trial.model.z_dim, "kl_factor": trial.loss.kl_factor})
    return finished, unfinished
