"""The states of a campaign's trials on Ray's exporter, which Prometheus scrapes as `ray_zpoint_campaign_trials`."""

from jobs.tune.campaign import STATES, Campaign


class CampaignMetrics:
    """A listener of a campaign that counts its trials by state, with the labels `campaign` and `state`."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._trials = Gauge("zpoint_campaign_trials", "trials of the campaign in this state", ("campaign", "state"))

    def __call__(self, campaign: Campaign) -> None:
        for state in STATES:
            self._trials.set(campaign.count(state), {"campaign": campaign.campaign, "state": state})
