"""The file of a campaign, `<store>/campaigns/<name>.json`: its recipe's digest, MLflow run and, at the end, result."""

import json
from contextlib import AbstractContextManager
from typing import Any

import pyarrow.fs as pafs

from aecore.config import Recipe
from aecore.data.io import read_json, write_json
from aecore.data.shards import Manifest
from cluster import tracking
from cluster.lock import hold_lock
from cluster.settings import settings
from cluster.storage import open_uri

Campaign = dict[str, Any]


def campaign_file(name: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path of a campaign's file."""
    return open_uri(f"{settings().store}/campaigns/{name}.json")


def open_campaign(recipe: Recipe, stem: str, manifest: Manifest) -> Campaign:
    """Return the campaign of `recipe` on `manifest`, as stored or new; write nothing.

    It has a `run_id` once it has started and a `best` once it has finished. Raises ValueError if another recipe has the
    name.
    """
    digest = recipe.digest(manifest.digest, recipe.search.model_dump_json(exclude={"parallel"}))
    name = recipe.name or f"{stem}-search-{digest}"
    campaign = read_campaign(name) or {"campaign": name, "digest": digest, "dataset": manifest.digest}
    if campaign["digest"] != digest:
        raise ValueError(f"campaign '{name}' was made from another recipe or dataset: give another name=...")
    return campaign


def lock_campaign(name: str) -> AbstractContextManager[None]:
    """Return a context in which no other process runs campaign `name`. Raises LockedError."""
    uri = f"{settings().store}/locks/campaign-{name}"
    return hold_lock(uri, f"campaign '{name}' is being run", "give another name=...")


def read_campaign(name: str) -> Campaign | None:
    """Return the campaign `name`, None if there is none."""
    fs, path = campaign_file(name)
    try:
        return read_json(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def start(campaign: Campaign, recipe: Recipe) -> Campaign:
    """Mark the campaign as running in its file and in MLflow, whose run is the parent of its trials' runs."""
    if campaign.get("run_id"):
        tracking.set_status(campaign["run_id"], "RUNNING")
        return campaign
    name = campaign["campaign"]
    params = dict(tracking.flatten(recipe.model_dump(mode="json")))
    labels = {"zpoint.run": name, "zpoint.dataset": campaign["dataset"]}
    run_id = tracking.best_effort("open the campaign", lambda: tracking.create_run(name, params, labels), "")
    started = campaign | {"run_id": run_id}
    write_json(*campaign_file(name), started)
    return started


def finish(campaign: Campaign, result: dict[str, Any]) -> Campaign:
    """Write the result to the campaign's file and MLflow run."""
    finished, run_id = campaign | result, campaign["run_id"]
    write_json(*campaign_file(campaign["campaign"]), finished)
    if run_id:
        files = {"campaign.json": json.dumps(finished, indent=1).encode()}
        tracking.best_effort("take the campaign's result", lambda: tracking.log_files(run_id, files, ""))
    tracking.set_status(run_id, "FINISHED")
    return finished


def discard(campaign: Campaign) -> None:
    """Delete a campaign that a user's mistake kept from starting."""
    fs, path = campaign_file(campaign["campaign"])
    fs.delete_file(path)
    tracking.delete_run(campaign["run_id"])


def find_best_run(name: str) -> str | None:
    """Return the best run of campaign `name`, None if there is no campaign. Raises ValueError for an unfinished one."""
    campaign = read_campaign(name)
    if campaign is None:
        return None
    if "best" not in campaign:
        raise ValueError(f"campaign '{name}' has not finished: start its command again, then promote it")
    return campaign["best"]
