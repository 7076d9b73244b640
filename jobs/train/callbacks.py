"""Callbacks of Ray Train that every training on a cluster has. Imported only there: they need ray.train."""

from typing import Any

from ray.train import UserCallback

from cluster.ray_compat import end_worker_groups
from jobs.train.stopping import SAVE_TIMEOUT_SECONDS, stop_this_process


class FailOnUserError(UserCallback):
    """Ends the run at a user's mistake instead of retrying it: the next attempt would fail the same way."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first user's mistake in Ray Train's controller, which ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, ValueError | FloatingPointError):
                raise error


def default_callbacks() -> list[Any]:
    """Return the callbacks: no retry of a user's mistake, a checkpoint before a worker ends, no worker left behind."""
    return [FailOnUserError(), end_worker_groups(stop_this_process, SAVE_TIMEOUT_SECONDS)]
