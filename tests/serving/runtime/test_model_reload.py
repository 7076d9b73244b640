"""Following the alias: which versions the slot gets, and which are refused."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import pytest

from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_reload import DRAIN_POLLS, RETRY_S, follow_alias, load_first_loadable, update_slot
from serving.runtime.model_slot import ModelSlot
from serving.runtime.registry import ModelVersion
from tests.serving.app_server import Z_DIM, make_slot, serve_app

INFO = make_slot().current.info


def make_version(version):
    return ModelVersion("zpoint", str(version), "champion", "run", "source", "uri")


def load(version):
    """Load any version but 13."""
    if version.version == "13":
        raise FileNotFoundError("model.safetensors\nis missing")
    info = replace(INFO, version=version.version, run_id=version.run_id, sampler=version.sampler)
    return SimpleNamespace(info=info)


def ignore(version):
    pass


@pytest.fixture
def slot():
    return ModelSlot(load(make_version(1)))


def update(slot, version, saved=None, loaded=None, metrics=None):
    """Update the slot to a version; append to `saved` and `loaded` what it saves and loads."""
    saved, loaded = [] if saved is None else saved, [] if loaded is None else loaded

    def load_counted(version):
        loaded.append(version.version)
        return load(version)

    update_slot(slot, make_version(version), load_counted, saved.append, metrics or EndpointMetrics())


def test_the_slot_follows_the_alias_and_a_broken_version_is_loaded_once(slot, caplog):
    saved, loaded, metrics = [], [], EndpointMetrics("1")
    for version in (1, 2, 2, 13, 13, 13, 3, 13, 1):
        update(slot, version, saved, loaded, metrics)
    assert loaded == ["2", "13", "3", "13", "1"]
    assert [version.version for version in saved] == ["2", "3", "1"]
    assert (slot.current.info.version, slot.refused) == ("1", None)
    assert "cannot load zpoint version 13, so it is refused: model.safetensors is missing" in caplog.text
    assert "serving zpoint/3 instead of zpoint/2" in caplog.text
    lines = metrics.exposition().decode().splitlines()
    assert 'zpoint_swaps_total{replica="1"} 3.0' in lines
    assert 'zpoint_refused_versions_total{replica="1"} 2.0' in lines
    assert [line for line in lines if line.startswith("zpoint_model{")] == [
        'zpoint_model{alias="champion",name="zpoint",replica="1",version="1"} 1.0'
    ]


def test_another_run_with_the_same_version_number_is_loaded(slot):
    """The registered model was deleted, and another run promoted."""
    other, saved = replace(make_version(1), run_id="other"), []
    update_slot(slot, other, load, saved.append, EndpointMetrics())
    assert (slot.current.info.version, slot.current.info.run_id, saved) == ("1", "other", [other])


def test_another_sampler_of_the_served_version_is_taken_without_a_load(slot):
    version, saved = replace(make_version(1), sampler="gaussian"), []
    for _ in range(2):
        update_slot(slot, version, lambda _: pytest.fail("loaded again"), saved.append, EndpointMetrics())
    assert (slot.current.info.version, slot.current.info.sampler, saved) == ("1", "gaussian", [version])


def test_unreachable_registry_is_logged_once_and_followed_again_when_it_answers(slot, monkeypatch, caplog):
    outcomes = [2, ConnectionError("no answer"), ConnectionError("no answer"), 3, ConnectionError("again"), 4]

    def find(alias):
        if not outcomes:
            raise SystemExit  # ends the endless loop
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return make_version(outcome)

    monkeypatch.setattr("serving.runtime.model_reload.find_model_version", find)
    monkeypatch.setattr("serving.runtime.model_reload.POLL_S", 0.001)
    with pytest.raises(SystemExit):
        follow_alias(slot, "champion", load, ignore, EndpointMetrics())
    assert slot.current.info.version == "4"
    messages = [message for message in caplog.messages if "cannot resolve" in message]
    assert messages == [
        "cannot resolve alias 'champion': no answer; still serving zpoint/2",
        "cannot resolve alias 'champion': again; still serving zpoint/3",
    ]


def test_a_version_refused_for_a_transient_error_is_served_later(slot, monkeypatch):
    loaded, clock = [], SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("serving.runtime.model_reload.time", SimpleNamespace(monotonic=lambda: clock.seconds))

    def fail_once(version):
        loaded.append(version.version)
        if len(loaded) == 1:
            raise OSError("connection reset")
        return load(version)

    update_slot(slot, make_version(2), fail_once, ignore, EndpointMetrics())
    assert slot.refused == {"version": "2", "reason": "connection reset"}
    clock.seconds += RETRY_S - 1
    update_slot(slot, make_version(2), fail_once, ignore, EndpointMetrics())
    assert loaded == ["2"]
    clock.seconds += 2
    update_slot(slot, make_version(2), fail_once, ignore, EndpointMetrics())
    assert (slot.current.info.version, slot.refused, loaded) == ("2", None, ["2", "2"])


def test_following_goes_on_after_saving_the_served_version_failed(slot, monkeypatch, caplog):
    alias_versions = iter([2, 2, 3])
    saved = []

    def find(alias):
        try:
            return make_version(next(alias_versions))
        except StopIteration:
            raise SystemExit from None  # ends the endless loop

    def save_served(version):
        saved.append(version.version)
        if version.version == "2":
            raise ConnectionError("the cluster's head is away")

    monkeypatch.setattr("serving.runtime.model_reload.find_model_version", find)
    monkeypatch.setattr("serving.runtime.model_reload.POLL_S", 0.001)
    with pytest.raises(SystemExit):
        follow_alias(slot, "champion", load, save_served, EndpointMetrics())
    assert (slot.current.info.version, saved) == ("3", ["2", "3"])
    assert "the cluster's head is away" in caplog.text


def test_memory_is_released_once_the_old_models_requests_have_ended(slot, monkeypatch):
    alias_versions, released_at = [1] * DRAIN_POLLS + [2] * (DRAIN_POLLS + 3), []

    def find(alias):
        if not alias_versions:
            raise SystemExit  # ends the endless loop
        return make_version(alias_versions.pop(0))

    monkeypatch.setattr("serving.runtime.model_reload.find_model_version", find)
    monkeypatch.setattr("serving.runtime.model_reload.POLL_S", 0.001)
    monkeypatch.setattr("serving.runtime.model_reload.release_memory", lambda: released_at.append(len(alias_versions)))
    with pytest.raises(SystemExit):
        follow_alias(slot, "champion", load, ignore, EndpointMetrics())
    assert released_at == [DRAIN_POLLS + 4, 3]  # polls that remain: once after the start, once after the swap


def test_a_refusal_is_reported_until_the_alias_names_the_served_version(slot):
    update(slot, 13)
    assert slot.refused == {"version": "13", "reason": "model.safetensors is missing"}
    assert slot.current.info.version == "1"
    update(slot, 1)
    assert slot.refused is None


def test_a_new_replica_takes_the_first_loadable_version_and_reports_the_refused_one():
    version, slot = load_first_loadable([make_version(13), make_version(2), make_version(1)], load)
    assert version == make_version(2)
    assert (slot.current.info.version, slot.refused["version"]) == ("2", "13")
    assert load_first_loadable([make_version(2)], load)[1].refused is None
    with pytest.raises(FileNotFoundError):
        load_first_loadable([make_version(13)], load)


def test_an_idle_connection_does_not_keep_a_replaced_model_in_memory(wait_until):
    """uvicorn keeps the scope of a connection's last request until the next one."""
    slot = make_slot("1")
    with serve_app(slot) as url, httpx2.Client() as client:
        response = client.post(f"{url}/v1/decode", json={"z": [[0.0] * Z_DIM]})
        assert response.headers["x-zpoint-model"] == "zpoint/1"
        old_model = weakref.ref(slot.current)
        slot.current = make_slot("2").current
        wait_until(lambda: old_model() is None)
        assert client.get(f"{url}/v1/model").json()["version"] == "2"
