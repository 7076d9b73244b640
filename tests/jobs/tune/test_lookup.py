"""Campaigns and runs of the current store, as `zpoint campaign` and `zpoint runs` find them."""

from types import SimpleNamespace

import pytest

from aecore.data.io import read_json, write_json
from jobs.commands.runs import _status
from jobs.run_store import lock_run, stored_run
from jobs.tune.campaign import Span, campaign_file, lock_campaign, read_campaign, write_campaign
from jobs.tune.lookup import find_campaign, list_campaigns
from jobs.tune.table import format_campaign
from tests.jobs.tune.made_campaigns import START, make_campaign


def test_a_killed_campaign_is_unfinished_and_its_trial_interrupted():
    campaign = make_campaign()
    campaign.state = campaign.trials[0].state = "running"
    campaign.trials[0].spans[-1] = Span(START, None, 1.0, "core")
    write_campaign(campaign)
    with lock_campaign("faces"):
        assert find_campaign("faces").state == "running"
        assert find_campaign("faces").trials[0].spans[-1][1] is None
    killed = find_campaign("faces")
    assert killed.state == "unfinished"
    assert killed.trials[0].spans[-1][1] is not None
    first, *lines = format_campaign(killed).splitlines()
    assert first.startswith("campaign faces: unfinished, 1 interrupted, 8 finished")
    assert any(line.split()[2] == "interrupted" for line in lines if len(line.split()) > 2)
    assert max(map(len, lines)) <= 80
    assert list_campaigns()[0]["state"] == "unfinished"


def test_file_of_an_earlier_version_is_refused_by_what_it_lacks():
    write_campaign(make_campaign(1))
    fs, path = campaign_file("faces")
    content = read_json(fs, path)
    del content["recipe"]
    write_json(fs, path, content)
    with pytest.raises(ValueError, match=r"the file of campaign 'faces' has no field 'recipe'.* another name="):
        read_campaign("faces")


def test_a_run_whose_driver_died_is_killed():
    def status(name: str, status: str, **tags: str) -> str:
        return _status(SimpleNamespace(
            data=SimpleNamespace(tags={"zpoint.run": name, **tags}), info=SimpleNamespace(status=status)
        ))  # fmt: skip

    uri = {"zpoint.uri": stored_run("x").uri}
    with lock_run("x"), lock_campaign("faces"):
        assert status("x", "RUNNING", **uri) == "running"
        assert status("faces", "RUNNING") == "running"
    assert status("x", "RUNNING", **uri) == "killed"
    assert status("faces", "RUNNING") == "killed"
    assert status("x", "FINISHED", **uri) == "finished"
