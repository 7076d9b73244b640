"""The trials of a campaign: what one trains, what is told of it, and those that an earlier command has left."""

import re
from typing import Any

import pyarrow.fs as pafs

from aecore.config import Recipe, check_recipe
from aecore.data.shards import Manifest
from cluster.settings import settings
from cluster.storage import open_uri
from jobs.run_store import RunStore, open_run

GOALS = {"valid_psnr": "max", "hog_frechet_normal": "min"}
Trial = dict[str, Any]


def trial_recipe(recipe: Recipe, campaign: str, z_dim: int, kl_factor: float) -> Recipe:
    """The recipe of one trial, named after what it tries: kl_factor has the three digits that its name shows."""
    raw = recipe.model_dump(mode="json")
    tried = f"-z{z_dim}-kl{kl_factor:.2e}".replace("+", "")
    raw["name"] = campaign[: 63 - len(tried)] + tried
    raw["model"]["z_dim"], raw["loss"]["kl_factor"] = z_dim, float(f"{kl_factor:.2e}")
    return check_recipe(raw)


def finished_trial(tried: Recipe, record: RunStore) -> Trial:
    """What the verdict says of a finished trial, from the metrics of its last epoch."""
    last = list(record.epochs().values())[-1]
    return {
        "run": record.name, "z_dim": tried.model.z_dim, "kl_factor": tried.loss.kl_factor,
        **{goal: last[goal] for goal in GOALS}, "hog_frechet_gaussian": last["hog_frechet_gaussian"],
    }  # fmt: skip


def known_trials(recipe: Recipe, campaign: str, manifest: Manifest) -> tuple[list[Trial], list[Trial]]:
    """The finished trials of a campaign, and what its unfinished ones try (`z_dim`, `kl_factor`), by their runs' names.

    Raises ValueError when a run has such a name and another recipe.
    """
    fs, root = open_uri(settings().runs_uri)
    folders = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    finished, begun = [], []
    for name in sorted(info.base_name for info in folders):
        if not (found := re.search(r"-z(\d+)-kl([\d.e-]+)$", name)):
            continue
        tried = trial_recipe(recipe, campaign, int(found[1]), float(found[2]))
        if tried.name != name or tried.model.z_dim not in recipe.search.z_dim:
            continue
        record = open_run(tried, name, manifest)
        if record.finished():
            record.close("FINISHED")  # MLflow may lack its last epochs
            finished.append(finished_trial(tried, record))
        else:
            begun.append({"z_dim": tried.model.z_dim, "kl_factor": tried.loss.kl_factor})
    return finished, begun
