"""The process of a trial, which trains one after the other."""

import pytest

from aecore.config import Recipe, check_recipe
from aecore.data.cache_eviction import CacheSpaceError
from jobs.run_store import RunStore
from jobs.tune import trial


@pytest.mark.parametrize("error", [None, ValueError("epochs"), FloatingPointError("nan"), RuntimeError("lost")])
def test_each_end_of_a_trial_releases_its_memory(monkeypatch: pytest.MonkeyPatch, error: Exception | None):
    def train(*_: object) -> None:
        if error:
            raise error

    released: list[bool] = []
    monkeypatch.setattr(trial, "_train", train)
    monkeypatch.setattr(trial, "release_memory", lambda: released.append(True))
    monkeypatch.setattr("ray.tune.report", lambda metrics: None)
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "")  # restored after the test
    try:
        trial.run_trial({"point": {}, "run": "x"}, recipe=Recipe(), env={}, gpu_share=1.0)
    except RuntimeError:
        assert isinstance(error, RuntimeError)
    assert released == [True]


def test_full_cache_disk_is_no_users_mistake(monkeypatch: pytest.MonkeyPatch):
    """Tune starts the trial again, perhaps on another node; before, it was lost at once."""

    def train(*_: object) -> None:
        raise CacheSpaceError("no space")

    monkeypatch.setattr(trial, "_train", train)
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "")  # restored after the test
    with pytest.raises(CacheSpaceError):
        trial.run_trial({"point": {}, "run": "x"}, recipe=Recipe(), env={}, gpu_share=1.0)


def test_store_that_fails_in_a_trial_is_no_users_mistake(monkeypatch: pytest.MonkeyPatch):
    """The driver has checked it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        trial._train(check_recipe({"data": {"uri": "s3://bucket/faces"}}), RunStore("x", "/x", run_id=""), 1.0)
