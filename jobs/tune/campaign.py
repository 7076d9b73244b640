"""A campaign's file `<store>/campaigns/<name>.json`: what it is of, its MLflow run and, at the end, its verdict."""

import json
from typing import Any

import pyarrow.fs as pafs

from aecore.config import Recipe
from aecore.data.io import read_json, write_json
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.settings import settings
from cluster.storage import open_uri

Campaign = dict[str, Any]


def place_of(name: str) -> tuple[pafs.FileSystem, str]:
    return open_uri(f"{settings().store}/campaigns/{name}.json")


def find_campaign(recipe: Recipe, stem: str, manifest: Manifest) -> Campaign:
    """The campaign that `recipe` on `manifest` means, as far as it has come; nothing is written.

    It has a `run_id` once it has begun and a `best` once it has finished. Raises ValueError when the name is taken
    by another recipe.
    """
    digest = recipe.digest(manifest.digest, recipe.search.model_dump_json(exclude={"parallel"}))
    name = recipe.name or f"{stem}-search-{digest}"
    known = read_campaign(name) or {"campaign": name, "digest": digest, "dataset": manifest.digest}
    if known["digest"] != digest:
        raise ValueError(f"campaign '{name}' was made from another recipe or dataset: give another name=...")
    return known


def read_campaign(name: str) -> Campaign | None:
    fs, path = place_of(name)
    try:
        return read_json(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def begin(campaign: Campaign, recipe: Recipe) -> Campaign:
    """Note that the campaign runs, in its file and in MLflow, where its trials will lie below its run."""
    if campaign.get("run_id"):
        tracking.set_status(campaign["run_id"], "RUNNING")
        return campaign
    name = campaign["campaign"]
    params = dict(tracking.flatten(recipe.model_dump(mode="json")))
    labels = {"zpoint.run": name, "zpoint.dataset": campaign["dataset"]}
    run_id = tracking.best_effort("open the campaign", lambda: tracking.create_run(name, params, labels), "")
    begun = campaign | {"run_id": run_id}
    write_json(*place_of(name), begun)
    return begun


def finish(campaign: Campaign, verdict: dict[str, Any]) -> Campaign:
    """Write the verdict into the campaign's file and MLflow run."""
    finished, run_id = campaign | verdict, campaign["run_id"]
    write_json(*place_of(campaign["campaign"]), finished)
    if run_id:
        files = {"campaign.json": json.dumps(finished, indent=1).encode()}
        tracking.best_effort("take the verdict", lambda: tracking.log_files(run_id, files, ""))
    tracking.set_status(run_id, "FINISHED")
    return finished


def drop(campaign: Campaign) -> None:
    """Forget a campaign that a user's mistake kept from starting."""
    fs, path = place_of(campaign["campaign"])
    fs.delete_file(path)
    tracking.forget_run(campaign["run_id"])


def best_of(name: str) -> str | None:
    """The best run of the campaign `name`, None where there is none. Raises ValueError for an unfinished one."""
    campaign = read_campaign(name)
    if campaign is None:
        return None
    if "best" not in campaign:
        raise ValueError(f"campaign '{name}' has not finished: start its command again, then promote it")
    return campaign["best"]
