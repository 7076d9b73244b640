"""Find the campaigns of the current store, and the runs of one."""

from typing import Any

import pyarrow.fs as pafs

from cluster.settings import settings
from cluster.storage import check_uri, open_uri
from jobs.run_store import resolve_name
from jobs.tune.campaign import Campaign, is_run_now, read_campaign
from jobs.tune.table import format_summary


def find_campaign(name: str) -> Campaign:
    """Return the campaign `name`, unfinished if its command was killed. Raises ValueError if there is none."""
    check_uri(settings().store)
    if (campaign := read_campaign(resolve_name(name))) is None:
        raise ValueError(f"no campaign '{name}' under {settings().store}/campaigns: see `zpoint campaign`")
    if campaign.state == "running" and not is_run_now(campaign.campaign):
        campaign.state = "unfinished"
        campaign.close_spans()
    return campaign


def find_trial(name: str, run: str) -> str:
    """Return the name of a campaign's run, given whole or without the stem that all its runs share."""
    campaign = find_campaign(name)
    for trial in campaign.trials:
        if run in (trial.run, campaign.short_name(trial.run)):
            return trial.run
    raise ValueError(f"campaign '{name}' has no run '{run}': see `zpoint campaign {name}`")


def expand_campaigns(names: list[str]) -> list[str]:
    """Return the runs that `names` mean: of a campaign those of its Pareto front, else the run itself.

    Raises ValueError for a campaign without a finished trial that has active units.
    """
    runs = []
    for name in names:
        campaign = read_campaign(resolve_name(name))
        if campaign is not None and not campaign.pareto_front:
            raise ValueError(f"campaign '{name}' has no finished trial with active units: see `zpoint campaign {name}`")
        runs += [name] if campaign is None else campaign.pareto_front
    return runs


def list_campaigns() -> list[dict[str, Any]]:
    """Return name, state, counts and best run of each campaign, the newest last."""
    check_uri(settings().store)
    fs, root = open_uri(f"{settings().store}/campaigns")
    files = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    files = [file for file in files if file.is_file and file.base_name.endswith(".json")]
    rows = []
    for file in sorted(files, key=lambda file: file.mtime_ns):
        name = file.base_name.removesuffix(".json")
        try:
            campaign = find_campaign(name)
        except ValueError as error:
            rows.append({"campaign": name, "state": "", "trials": 0, "best": "", "summary": str(error)})
            continue
        summary = format_summary(campaign).partition(": ")[2]
        rows.append({"campaign": name, "state": campaign.state, "trials": len(campaign.trials), "best": campaign.best,
                     "summary": summary})  # fmt: skip
    return rows
