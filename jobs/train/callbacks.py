"""Callbacks of Ray Train that every training on a cluster has. Imported only there: they need ray.train."""

import logging
from typing import Any

from ray.train import UserCallback

from cluster.progress import publish_warning
from cluster.ray_compat import end_worker_groups, leave_out_nodes
from jobs.train.errors import UnfitNodeError
from jobs.train.placement import worker_capacity
from jobs.train.stopping import SAVE_TIMEOUT_SECONDS, stop_this_process

log = logging.getLogger(__name__)


class FailOnUserError(UserCallback):
    """Ends the run at a user's mistake instead of retrying it: the next attempt would fail the same way.

    If only a node is unfit, as one with a full disk, an elastic training leaves it out and goes on with the others.
    """

    def __init__(self, run: str, resources: dict[str, float], min_workers: int | None) -> None:
        """`min_workers` of an elastic training, None for one with a fixed number of workers."""
        self.run, self.resources, self.min_workers = run, resources, min_workers
        self.left_out: set[str] = set()  # node ids

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first user's mistake in Ray Train's controller, which ends the run."""
        for error in worker_exceptions.values():
            if isinstance(error, UnfitNodeError) and self.min_workers:
                self._leave_out(error, self.min_workers)
            elif isinstance(error, ValueError | FloatingPointError):
                raise error

    def _leave_out(self, error: UnfitNodeError, min_workers: int) -> None:
        self.left_out.add(error.node_id)
        if worker_capacity(self.resources, without=self.left_out) < min_workers:
            raise error
        publish_warning(self.run, f"{error}; the training goes on without this node")


def default_callbacks(run: str, resources: dict[str, float], min_workers: int | None) -> list[Any]:
    """Return the callbacks: no retry of a user's mistake, a checkpoint before a worker ends, no worker left behind."""
    fail = FailOnUserError(run, resources, min_workers)
    return [fail, leave_out_nodes(fail.left_out), end_worker_groups(stop_this_process, SAVE_TIMEOUT_SECONDS)]
