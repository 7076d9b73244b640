"""Ray Tune's callbacks report failures to a campaign, without Ray."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from jobs.tune.adapters import CampaignCallback

STORE_FAILED = RayTaskError("train", "Traceback ...", OSError("503 Slow Down"))
DIED = "its process died"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (STORE_FAILED, ["training failed: 503 Slow Down"] * 2),
        (RayActorError("", "preempted"), [DIED, "training failed: preempted"]),
        (None, [DIED, DIED]),
    ],
)
def test_failure_of_a_trial_is_read_without_the_storage(tmp_path: Path, error: Exception | None, expected: list[str]):
    """Before, it was read from the storage: if that failed, the campaign ended."""
    reasons: list[str] = []

    def append(trial_id: str, reason: str) -> None:
        reasons.append(reason)

    run: Any = SimpleNamespace(recover=append, end=append, running={"t1": None})
    trial = SimpleNamespace(trial_id="t1", status="ERROR", pickled_error_file=None)
    if error:
        trial.pickled_error_file = str(tmp_path / "error.pkl")
        (tmp_path / "error.pkl").write_bytes(pickle.dumps(error))
    callback = CampaignCallback(run, devices=1.0)
    callback.on_trial_recover(0, [], trial)
    callback.on_step_end(0, [trial])
    assert reasons == expected
