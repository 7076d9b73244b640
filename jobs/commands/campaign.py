"""`zpoint campaign`: the list of campaigns; the trials of one, with its report."""

from typing import Any

from jobs.tune.lookup import find_campaign, list_campaigns
from jobs.tune.report import write_report
from jobs.tune.table import format_campaign, format_campaigns


def show_campaigns() -> dict[str, Any]:
    """Return the campaigns of the store and their list as `text`."""
    rows = list_campaigns()
    return {"campaigns": rows, "text": format_campaigns(rows)}


def show_campaign(name: str, out: str | None = None) -> dict[str, Any]:
    """Write the report of campaign `name` as it stands; return its file's content, the page's path and its table."""
    campaign = find_campaign(name)
    report, _ = write_report(campaign, out)
    return campaign.to_json() | {"report": report, "text": f"{format_campaign(campaign)}\nreport: {report}"}
