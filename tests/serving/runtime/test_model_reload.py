"""Following the alias: what is put into the slot, what is refused, what stays."""

import time
import weakref
from types import SimpleNamespace

import httpx2
import pytest

from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_reload import GONE_LOOKS, first_that_loads, follow, look
from serving.runtime.model_slot import ModelSlot
from serving.runtime.registry import ModelVersion
from tests.serving.app_server import Z_DIM, make_slot, serve_app


def version(number):
    return ModelVersion("zpoint", str(number), "champion", "run", "source", "uri")


def load(champion):
    if champion.version == "13":
        raise FileNotFoundError("model.safetensors\nis missing")
    return SimpleNamespace(info=SimpleNamespace(version=champion.version, label=f"zpoint/{champion.version}"))


@pytest.fixture
def slot():
    return ModelSlot(load(version(1)))


def see(slot, number, noted, loads):
    def count(champion):
        loads.append(champion.version)
        return load(champion)

    look(slot, version(number), count, noted.append, EndpointMetrics())


def test_the_slot_follows_and_a_bad_version_is_tried_once(slot, caplog):
    noted, loads = [], []
    for number in (1, 2, 2, 13, 13, 13, 3, 13, 1):
        see(slot, number, noted, loads)
    assert loads == ["2", "13", "3", "13", "1"]
    assert [each.version for each in noted] == ["2", "3", "1"]
    assert (slot.current.info.version, slot.refused) == ("1", None)
    assert "version 13 cannot be served and is refused: model.safetensors is missing" in caplog.text


def test_what_failed_for_a_moment_is_served_after_all(slot, monkeypatch):
    tried = []

    def fail_once(champion):
        tried.append(champion.version)
        if len(tried) == 1:
            raise OSError("connection reset")
        return load(champion)

    look(slot, version(2), fail_once, lambda found: None, EndpointMetrics())
    assert slot.refused == {"version": "2", "reason": "connection reset"}
    monkeypatch.setattr(time, "monotonic", lambda: slot.retry_at + 1)
    look(slot, version(2), fail_once, lambda found: None, EndpointMetrics())
    assert (slot.current.info.version, slot.refused, tried) == ("2", None, ["2", "2"])


def test_following_goes_on_after_a_fault_of_the_clusters_memory(slot, monkeypatch, caplog):
    named = iter([2, 2, 3])
    noted = []

    def find(alias):
        try:
            return version(next(named))
        except StopIteration:
            raise SystemExit from None  # ends the thread that would go on for ever

    def note(found):
        noted.append(found.version)
        if found.version == "2":
            raise ConnectionError("the cluster's head is away")

    monkeypatch.setattr("serving.runtime.model_reload.find_model_version", find)
    monkeypatch.setattr("serving.runtime.model_reload.POLL_SECONDS", 0.001)
    with pytest.raises(SystemExit):
        follow(slot, "champion", load, note, EndpointMetrics())
    assert (slot.current.info.version, noted) == ("3", ["2", "3"])
    assert "the cluster's head is away" in caplog.text


def test_memory_is_given_back_once_the_model_before_has_gone(slot, monkeypatch):
    named, given = [1] * GONE_LOOKS + [2] * (GONE_LOOKS + 3), []

    def find(alias):
        if not named:
            raise SystemExit  # ends the thread that would go on for ever
        return version(named.pop(0))

    monkeypatch.setattr("serving.runtime.model_reload.find_model_version", find)
    monkeypatch.setattr("serving.runtime.model_reload.POLL_SECONDS", 0.001)
    monkeypatch.setattr("serving.runtime.model_reload._give_back_memory", lambda: given.append(len(named)))
    with pytest.raises(SystemExit):
        follow(slot, "champion", load, lambda found: None, EndpointMetrics())
    assert given == [GONE_LOOKS + 4, 3]  # what is left of `named`: once after the start, once after the swap


def test_a_refusal_is_told_until_the_alias_names_what_is_served(slot):
    see(slot, 13, [], [])
    assert slot.refused == {"version": "13", "reason": "model.safetensors is missing"}
    assert slot.current.info.version == "1"
    see(slot, 1, [], [])
    assert slot.refused is None


def test_a_starting_replica_takes_the_first_that_loads_and_tells_what_did_not():
    slot = first_that_loads([version(13), version(2), version(1)], load)
    assert (slot.current.info.version, slot.refused["version"]) == ("2", "13")
    assert first_that_loads([version(2)], load).refused is None
    with pytest.raises(FileNotFoundError):
        first_that_loads([version(13)], load)


def test_an_idle_connection_keeps_no_model_in_memory():
    """The server keeps what it knows of the last request of a connection until the next one comes."""
    slot = make_slot("1")
    with serve_app(slot) as url, httpx2.Client() as client:
        answer = client.post(f"{url}/v1/decode", json={"z": [[0.0] * Z_DIM]})
        assert answer.headers["x-zpoint-model"] == "zpoint/1"
        before = weakref.ref(slot.current)
        slot.current = make_slot("2").current
        deadline = time.monotonic() + 2  # the server closes idle connections after 5
        while before() is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert before() is None
        assert client.get(f"{url}/v1/model").json()["version"] == "2"
